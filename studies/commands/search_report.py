"""``search-report``: what a search found, and whether it holds on fresh seeds."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaplastic.errors import ConfigurationError
from studies.assembly import pick_device
from studies.commands.base import Command
from studies.display import make_display
from studies.folders import open_folder
from studies.results import Result, finite

if TYPE_CHECKING:
    from metaplastic.tune.problem import Measure
    from studies.search_again import Candidate
    from studies.search_read import Study
    from studies.search_standings import Standing

FILE = "search.json"
BEST, SEEDS = 3, 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``search-report``."""
    parser.add_argument(
        "study", metavar="STUDY", help="the folder of a search, or the name of a study in --storage"
    )
    parser.add_argument("--storage", metavar="URL", help="where the study is kept, as in search")
    parser.add_argument(
        "--artifacts", metavar="DIR", help="folder with learning curves (beside the database)"
    )
    parser.add_argument(
        "--best",
        type=int,
        default=BEST,
        metavar="K",
        help=f"trials that are run again, besides the baselines ({BEST})",
    )
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, metavar="S", help=f"fresh seeds of each ({SEEDS})"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that run them (1)")
    parser.add_argument(
        "--export-best",
        metavar="FILE",
        help="write the options that do best on fresh seeds, by the first objective, for `train "
        "--config FILE`",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run ``search-report``."""
    try:
        import optuna

        from studies.search import VALIDATION
        from studies.search_again import chosen, fresh_seeds, rows, run_again
        from studies.search_export import check_target, write_options
        from studies.search_page import write_search_page
        from studies.search_read import find_study, read_study, storage_file
        from studies.search_standings import standings, tables, verdict
    except ImportError as reason:
        raise ConfigurationError(
            f"the report of a search needs Optuna ({reason}): pip install 'metaplastic[tune]'."
        ) from reason
    began, device = time.monotonic(), pick_device(arguments.device)
    _check(arguments)
    target = None
    if arguments.export_best is not None:
        target = check_target(arguments.export_best, arguments.overwrite)
    logging = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage, name, artifacts = find_study(
            arguments.study, arguments.storage, arguments.artifacts
        )
        study = read_study(storage, name, artifacts)
    finally:
        optuna.logging.set_verbosity(logging)
    database = storage_file(storage)
    sources = [artifacts] if database is None else [artifacts, database]
    out = open_folder(arguments.out, "search-report", arguments.overwrite, sources)
    trials, seeds = chosen(study, arguments.best), fresh_seeds(study, arguments.seeds)
    with make_display([t.label for t in trials]) as display:
        candidates = run_again(study, trials, seeds, arguments.workers, device.type, display)
    chance, found = study.config.chance, standings(study, candidates)
    result = Result(
        command="search-report",
        config={**study.config.as_json(), "study": study.name, "objectives": list(study.measures)},
        seeds=seeds,
        rows=rows(study, candidates, min(study.config.test, VALIDATION)),
        headline=f"{study.name}: {verdict(found, chance, len(seeds))}",
        seconds=time.monotonic() - began,
        device=device,
    )
    result.write(out)
    _write(out, study, candidates, found)
    left_out = write_search_page(out, study, candidates, found, result.as_json())
    print(f"\n{tables(found, chance)}\n")
    if left_out:
        print(
            f"Without matplotlib these pictures are left out: {', '.join(left_out)}. Install it "
            "and report again to get them."
        )
    if target is not None:
        line = found[study.measures[0]][0]
        trial = next(t for t in study.trials if t.number == line.trial)
        write_options(target, study, trial, line, seeds)
        print(f"The options of {line.label} are in {target}")
    print(f"Results, pictures and report.html are in {out}")
    print(result.headline)


def _check(arguments: argparse.Namespace) -> None:
    if min(arguments.best, arguments.seeds, arguments.workers) < 1:
        raise ConfigurationError(
            f"--best, --seeds and --workers count from 1; got {arguments.best}, {arguments.seeds} "
            f"and {arguments.workers}."
        )


def _write(
    out: Path,
    study: Study,
    candidates: list[Candidate],
    found: dict[Measure, list[Standing]],
) -> None:
    """``search.json``: the study and what was run again."""
    plain: dict[str, Any] = asdict(
        replace(study, trials=[replace(trial, curve=None) for trial in study.trials])
    )
    for trial in plain["trials"]:
        del trial["curve"]
    content = {
        **plain,
        "again": {measure: [asdict(line) for line in lines] for measure, lines in found.items()},
        "runs": [
            {"trial": candidate.trial.number, **asdict(outcome)}
            for candidate in candidates
            for outcome in candidate.outcomes
        ],
    }
    text = json.dumps(finite(content), indent=2, allow_nan=False)
    (out / FILE).write_text(text + "\n", encoding="utf-8")


COMMAND = Command(
    name="search-report",
    about="report a search, and run its best trials again on fresh seeds",
    description="Pictures and a page of a search. The best trials and the baselines are trained "
    "again with seeds that no trial had and scored on validation episodes that no trial saw, "
    "because the best score of many is too good: what is left of it shows here. The test episodes "
    "stay unseen.",
    add_options=add_options,
    run=run,
    preset=None,
)
