"""One learner on episodes, one seed, in a process and a folder of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metaplastic.errors import CheckpointError, ConfigurationError, DataError
from studies.assembly import make_learner, make_run_task
from studies.config import RunConfig, own_rest, read_config
from studies.reproduce.jobs import ANEW
from studies.reproduce.paper import Job
from studies.results import finite, read_result
from studies.run import CHECKPOINT, CURVE, run_training
from studies.scoring import score
from studies.status import Report, Status

START = "start.json"


@dataclass(frozen=True)
class EpisodeOutcome:
    """One job that has ended. Scores are accuracies 0..1, or mean squared errors, at rest where
    nothing else is said; None where an episode left no error.
    """

    part: str
    method: str
    seed: int
    accuracy: bool
    """Whether scores are accuracies."""
    score: float | None
    start: float | None
    """Before any meta-step."""
    online: float | None
    """After the stream."""
    residual: float | None
    """Mean over episodes."""
    left_out: float
    """Share of the training episodes."""
    seconds: float
    """For each meta-step."""

    @property
    def diverged(self) -> str | None:
        """Why there is no score."""
        return "some unseen episodes diverged on the way to rest" if self.score is None else None

    @property
    def words(self) -> str:
        """For the display."""
        if self.score is None:
            return "diverged"
        return f"{100 * self.score:.2f} %" if self.accuracy else f"{self.score:.4g}"


@dataclass(frozen=True)
class EpisodeJob(Job):
    """One run as ``train`` makes it, and the score of the learner that it begins with."""

    part: str
    method: str
    config: RunConfig
    out: Path
    device: str

    @property
    def setting(self) -> dict[str, Any]:
        """All that decides its outcome."""
        about = {"part": self.part, "method": self.method}
        return json.loads(json.dumps({**about, **self.config.as_json()}))

    def row(self) -> dict[str, Any]:
        """Its row of ``result.json``, under the names of part and method."""
        row = read_result(self.out)["rows"][0]
        return {**row, "task": self.part, "learner": self.method}

    def work(self, report: Report) -> EpisodeOutcome:
        """Train and score one learner; goes on from a checkpoint, and reads what has ended.

        Raises:
            CheckpointError: for a checkpoint that is damaged or of another setting.
        """
        kept = self._kept()
        try:
            read_result(self.out)
        except DataError:  # not done yet, or interrupted while writing
            resume = kept is not None and (self.out / CHECKPOINT).is_file()
            device = torch.device(self.device)
            if not resume or not (self.out / START).is_file():
                self._score_start(device, report)
            config = kept if resume and kept is not None else self.config
            run_training(config, self.out, report, device=device, resume=resume)
        return self._outcome()

    def _kept(self) -> RunConfig | None:
        """The configuration in the folder, None where nothing was begun."""
        if not (self.out / CHECKPOINT).is_file():
            return None
        kept = read_config(self.out)
        own, there = (json.loads(json.dumps(c.as_json())) for c in (self.config, kept))
        # A run adds to the options of its task what it found on disk.
        own["task_options"] = {**there["task_options"], **own["task_options"]}
        if own != there:
            wrong = ", ".join(name for name in own if own[name] != there[name])
            raise CheckpointError(f"{self.out} was trained with another {wrong}: {ANEW}")
        return kept

    def _score_start(self, device: torch.device, report: Report) -> None:
        rest = own_rest(self.config)
        if rest is None:
            raise ConfigurationError(f"the learner {self.config.learner} has no method at rest.")
        task, count = make_run_task(self.config, device), self.config.test
        found = score(
            make_learner(self.config, task, device),
            task,
            count,
            between=lambda done: report(Status("start", done, count, unit="episodes")),
            evaluate=rest.evaluate,
        )
        start = {
            "rest_score": float(found.by_episode.mean()),
            "episodes": count,
            "diverged": found.diverged,
        }
        text = json.dumps(finite(start), indent=2, allow_nan=False)
        (self.out / START).write_text(text + "\n", encoding="utf-8")

    def _outcome(self) -> EpisodeOutcome:
        row = self.row()
        start = json.loads((self.out / START).read_text(encoding="utf-8"))
        curve = (self.out / CURVE).read_text(encoding="utf-8").splitlines()
        lost = sum(json.loads(line)["diverged"] for line in curve)
        kept = torch.load(self.out / CHECKPOINT, map_location="cpu", weights_only=True)
        return EpisodeOutcome(
            part=self.part,
            method=self.method,
            seed=self.config.seed,
            accuracy=self.config.chance is not None,
            score=row["rest_score"],
            start=start["rest_score"],
            online=row["online_score"],
            residual=row["residual"],
            left_out=lost / (self.config.steps * self.config.episodes),
            seconds=kept["extra"]["seconds"] / self.config.steps,
        )
