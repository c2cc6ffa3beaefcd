"""Learners on episodes over their seeds, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studies.intervals import seeds_interval
from studies.reproduce.episode_jobs import EpisodeOutcome
from studies.reproduce.outcome import mean, std
from studies.reproduce.paper import Table

HEAD = (
    "method",
    "{score} at rest{unit}",
    "at the start",
    "against {reference}",
    "online",
    "residual",
    "left out",
    "seconds per meta-step",
    "diverged",
)


@dataclass(frozen=True)
class EpisodeSummary:
    """One method over its seeds. Scores are accuracies 0..1, or mean squared errors, at rest where
    nothing else is said; None is what there is not.
    """

    part: str
    method: str
    accuracy: bool
    """Whether scores are accuracies."""
    seeds: int
    diverged: int
    """Seeds without a score."""
    score: float | None
    std: float | None
    """Over seeds, n - 1 in the denominator."""
    start: float | None
    """Before any meta-step."""
    start_std: float | None
    difference: float | None
    """From the reference, mean over the seeds that both have."""
    half: float | None
    """Half the 95 % interval of the difference, by Student's t over seeds."""
    online: float | None
    """After the stream; None where it diverged with any seed."""
    residual: float | None
    left_out: float
    """Share of the training episodes."""
    seconds: float
    """For each meta-step."""


def summarise_episodes(outcomes: Sequence[EpisodeOutcome], reference: str) -> list[EpisodeSummary]:
    """One line for each method of one part, in the order given."""
    against = {o.seed: o.score for o in outcomes if o.method == reference}
    found = []
    for name in dict.fromkeys(o.method for o in outcomes):
        own = [o for o in outcomes if o.method == name]
        scores = {o.seed: o.score for o in own if o.score is not None}
        starts = [o.start for o in own if o.start is not None]
        streams = [o.online for o in own if o.online is not None]
        residuals = [o.residual for o in own if o.residual is not None]
        pairs = [
            score - other
            for seed, score in scores.items()
            if (other := against.get(seed)) is not None and name != reference
        ]
        found.append(
            EpisodeSummary(
                part=own[0].part,
                method=name,
                accuracy=own[0].accuracy,
                seeds=len(own),
                diverged=len(own) - len(scores),
                score=mean(list(scores.values())),
                std=std(list(scores.values())),
                start=mean(starts),
                start_std=std(starts),
                difference=mean(pairs),
                half=seeds_interval(np.array(pairs)) if len(pairs) > 1 else None,
                online=mean(streams) if len(streams) == len(own) else None,
                residual=mean(residuals),
                left_out=float(np.mean([o.left_out for o in own])),
                seconds=float(np.mean([o.seconds for o in own])),
            )
        )
    return found


def episodes_table(reference: str, summaries: Sequence[EpisodeSummary]) -> Table:
    """A line for each method; columns of dashes are left out."""
    accuracy = summaries[0].accuracy
    words = {
        "score": score_word(accuracy),
        "unit": ", %" if accuracy else "",
        "reference": reference,
    }
    body = [_cells(summary) for summary in summaries]
    kept = [i for i in range(len(HEAD)) if i < 2 or any(line[i] != "–" for line in body)]
    return [HEAD[i].format(**words) for i in kept], [[line[i] for i in kept] for line in body]


def score_word(accuracy: bool) -> str:
    """What the score is."""
    return "accuracy" if accuracy else "mean squared error"


def amount(middle: float | None, width: float | None, accuracy: bool, signed: bool = False) -> str:
    """An accuracy 0..1 in per cent, or an error, with what stands behind its ±."""
    if middle is None:
        return "–"
    factor, digits = (100.0, 2) if accuracy else (1.0, 4)
    form = f"{'+' if signed else ''}.{digits}f" if abs(middle) < 1e4 else ".2g"
    text = f"{factor * middle:{form}}"
    return text if width is None else f"{text} ± {factor * width:{form.removeprefix('+')}}"


def _cells(one: EpisodeSummary) -> list[str]:
    return [
        one.method,
        "diverged" if one.score is None else amount(one.score, one.std, one.accuracy),
        "diverged" if one.start is None else amount(one.start, one.start_std, one.accuracy),
        amount(one.difference, one.half, one.accuracy, signed=True),
        "diverged" if one.online is None else amount(one.online, None, one.accuracy),
        "–" if one.residual is None else f"{one.residual:.1e}",
        f"{100 * one.left_out:.3g} %" if one.left_out else "–",
        f"{one.seconds:.2f}",
        f"{one.diverged} of {one.seeds}" if one.diverged else "–",
    ]
