"""The options of a trial as a file that ``train --config`` takes."""

from __future__ import annotations

import json
import tomllib
from datetime import date
from pathlib import Path

from metaplastic.errors import ConfigurationError
from studies.search_read import Study, Trial, scale
from studies.search_standings import Standing
from studies.spelling import run_words


def check_target(file: str, overwrite: bool) -> Path:
    """Where the options will stand.

    Raises:
        ConfigurationError: for a file that is there already, unless it may be replaced.
    """
    path = Path(file)
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigurationError(
            f"--export-best {file} is there already: name another file, or pass --overwrite."
        )
    return path


def write_options(path: Path, study: Study, trial: Trial, line: Standing, seeds: list[int]) -> None:
    """Write all options of a trial, under a heading that says where they come from."""
    measure = study.measures[0]
    written = scale(measure, study.config.chance)
    heading = [
        f"{_one_line(study.name)}: options of {line.label}"
        + (f" (trial {trial.number})" if trial.baseline else ""),
        f"{written.label} in the search: {written.text(line.search)}",
        f"{written.label} on fresh validation episodes, training seeds "
        f"{', '.join(map(str, seeds))}: {written.text(line.mean)} ± {written.text(line.half)}",
        f"searched with: {_one_line(study.command)}",
        f"train with: python -m studies train {run_words(study.config)} --config {path.name}",
        f"written: {date.today().isoformat()}",
    ]
    # An option without a value keeps its default, which is none.
    options = {name: v for name, v in trial.options.items() if v is not None}
    text = "".join(f"# {words}\n" for words in heading) + "\n"
    text += "".join(f"{name} = {toml(value)}\n" for name, value in options.items())
    assert tomllib.loads(text) == options, "options read back as they were written"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def toml(value: float | int | str | bool) -> str:
    """A plain value in TOML; floats come back exactly."""
    if isinstance(value, str):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
