"""Parts of a paper whose learners are meta-trained on episodes, and scored at rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from studies.assembly import make_run_task
from studies.config import RunConfig, make_config
from studies.folders import SUBRUNS, subrun
from studies.gather import gather
from studies.report import PICTURES, write_pictures
from studies.reproduce.base import pick_seeds
from studies.reproduce.episode_jobs import EpisodeJob, EpisodeOutcome
from studies.reproduce.episode_tables import (
    amount,
    episodes_table,
    score_word,
    summarise_episodes,
)
from studies.reproduce.paper import Chosen, Paper, Part, PartReport, Pictures

SHOWN = ("curve", "functions")
"""The pictures of a run, of the first seed of each method."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    about: str
    learner: str
    """A recipe with a method at rest."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe, in the place of the preset's."""
    metagradient: str | None = None
    """What it is trained by; None takes the learner's own."""


@dataclass(frozen=True)
class EpisodePart(Part):
    """One task and the learners that are compared on it, at the sizes of ``train``."""

    task: str
    rows: tuple[Row, ...]
    seeds: Mapping[str, tuple[int, ...]]
    """By preset; at others the part is left out."""
    reference: str
    """The row that the others are compared with, seed by seed."""

    def choose(self, name: str, preset: str) -> ChosenEpisodes | None:
        """All of it at a preset, None where the preset has no seeds."""
        if preset not in self.seeds:
            return None
        return ChosenEpisodes(name, self, preset, self.rows, self.seeds[preset])


@dataclass(frozen=True)
class ChosenEpisodes(Chosen):
    """What is to be run of a part with episodes."""

    of_images: ClassVar[bool] = False
    note: ClassVar[str] = (
        "Scores of episodes are means over unseen ones; at the start is before any meta-step, and "
        "left out is the share of the training episodes that diverged or did not settle. "
        "Differences are paired by seed, ± half their 95 % interval; of an error, less is better."
    )

    name: str
    part: EpisodePart
    preset: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]

    @property
    def about(self) -> dict[str, str]:
        """Every row by name, and what it is."""
        return {row.name: row.about for row in self.rows}

    @property
    def setting(self) -> dict[str, int]:
        """Nothing: each job has its own."""
        return {}

    @property
    def record(self) -> dict[str, Any]:
        """Its sizes."""
        config = self.config(self.rows[0], self.seeds[0])
        sizes = {name: getattr(config, name) for name in ("steps", "episodes", "test")}
        return {"task": self.part.task, **sizes, "seeds": list(self.seeds)}

    @property
    def sizes_text(self) -> str:
        """Seeds, meta-steps and episodes."""
        sizes = self.record
        word = "seeds" if len(self.seeds) > 1 else "one seed,"
        return (
            f"{word} {', '.join(map(str, self.seeds))}; {sizes['steps']} meta-steps of "
            f"{sizes['episodes']} episodes, {sizes['test']} unseen episodes"
        )

    def config(self, row: Row, seed: int) -> RunConfig:
        """The run of a row."""
        return make_config(
            self.part.task,
            row.learner,
            self.preset,
            seed,
            metagradient=row.metagradient,
            options=row.options,
        )

    def named(self, names: Sequence[str]) -> ChosenEpisodes:
        """The rows of these names alone."""
        return replace(self, rows=tuple(row for row in self.rows if row.name in names))

    def resized(
        self, images: int | None, epochs: int | None, seeds: Sequence[int] | None
    ) -> ChosenEpisodes:
        """With other seeds; the sizes of episodes are the preset's."""
        return replace(self, seeds=pick_seeds(self.seeds, seeds))

    def check(self, device: str) -> None:
        """Find the data."""
        make_run_task(self.config(self.rows[0], 0), torch.device(device))

    def jobs(self, out: Path, device: str) -> dict[str, EpisodeJob]:
        """All rows with one seed after another."""
        found = {}
        for seed in self.seeds:
            for row in self.rows:
                name, config = self._folder(row, seed), self.config(row, seed)
                found[name] = EpisodeJob(self.name, row.name, config, subrun(out, name), device)
        return found

    def _folder(self, row: Row, seed: int) -> str:
        return f"{self.name}-{row.name}-{seed}"

    def report(self, paper: Paper, ended: Sequence[EpisodeOutcome]) -> PartReport:
        """Scores at rest."""
        summaries = summarise_episodes(ended, self.part.reference)
        accuracy = ended[0].accuracy
        told = ", ".join(
            f"{one.method} {amount(one.score, one.std, accuracy)}" for one in summaries
        )
        spreads = "± standard deviation over " if len(self.seeds) > 1 else ""
        unit = " in %" if accuracy else ""
        return PartReport(
            tables=[episodes_table(self.part.reference, summaries)],
            headline=f"{self.name}, {score_word(accuracy)}{unit} at rest: {told} "
            f"({spreads}{self.sizes_text})",
            summary=[asdict(one) for one in summaries],
        )

    def draw(self, out: Path, paper: Paper, ended: Sequence[EpisodeOutcome]) -> Pictures:
        """Curves and fitted functions, as of any run."""
        runs = [
            replace(run, label=row.name)
            for row in self.rows
            for run in gather([out / SUBRUNS / self._folder(row, self.seeds[0])])
        ]
        shown = [picture for picture in PICTURES if picture.name in SHOWN]
        return write_pictures(out, self.name, shown, runs)
