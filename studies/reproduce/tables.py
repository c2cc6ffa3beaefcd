"""The tables of parts with images."""

from __future__ import annotations

from collections.abc import Sequence

from studies.reproduce.base import Method
from studies.reproduce.outcome import Outcome, Summary, mean, std
from studies.reproduce.paper import Table

HEAD = (
    "method",
    "test accuracy, %",
    "against {reference}",
    "published",
    "seconds per epoch",
    "without control",
    "row-space share",
    "slowness, epochs",
    "diverged",
)


def cells(summary: Summary) -> list[str]:
    """One line of the table; what there is not is a dash."""
    shares = summary.condition
    return [
        summary.method,
        spread(summary.accuracy, summary.std),
        spread(summary.difference, summary.difference_std, signed=True),
        "–" if summary.published is None else f"{summary.published:.2f}",
        "–" if summary.seconds is None else f"{summary.seconds:.1f}",
        f"{100 * summary.unconverged:.2g} %" if summary.unconverged else "–",
        "–" if shares is None else f"{shares[0]:.3f} → {shares[1]:.3f}",
        "–" if summary.slowness is None else f"{summary.slowness:.2f}",
        f"{summary.diverged} of {summary.seeds}" if summary.diverged else "–",
    ]


def spread(middle: float | None, width: float | None, signed: bool = False) -> str:
    """A share 0..1 as per cent with its standard deviation."""
    if middle is None:
        return "–"
    text = f"{100 * middle:+.2f}" if signed else f"{100 * middle:.2f}"
    return text if width is None else f"{text} ± {100 * width:.2f}"


def summary_table(reference: str, summaries: Sequence[Summary]) -> Table:
    """A line for each method; columns of dashes are left out."""
    body = [cells(summary) for summary in summaries]
    kept = [i for i in range(len(HEAD)) if i < 2 or any(line[i] != "–" for line in body)]
    top = [HEAD[i].format(reference=reference) for i in kept]
    return top, [[line[i] for i in kept] for line in body]


def epochs_table(
    shown: Sequence[int], methods: Sequence[Method], outcomes: Sequence[Outcome]
) -> Table:
    """Test accuracy after some epochs, as far as any method came, and after the last, with what was
    published of it in a line below a method's own.
    """
    plain = [o for o in outcomes if o.level is None]
    reached = max((len(o.curve) for o in plain), default=0)
    epochs = [epoch for epoch in shown if epoch < reached]
    epochs = sorted({*epochs, reached - 1}) if shown and reached > 1 else []
    body = []
    for method in methods:
        own = [o.along("test_accuracy") for o in plain if o.method == method.name]
        ends = [[scores[epoch] for scores in own if epoch < len(scores)] for epoch in epochs]
        body.append([method.name, *(spread(mean(some), std(some)) for some in ends)])
        told = [method.published_epochs.get(epoch) for epoch in epochs]
        if any(told):
            known = ["–" if value is None else f"{value:.2f}" for value in told]
            body.append([f"{method.name}, published", *known])
    return ["test accuracy, % at epoch", *map(str, epochs)], body if epochs else []


def sweep_table(outcomes: Sequence[Outcome]) -> Table:
    """A line for each method, a column for each level, per cent."""
    swept = [o for o in outcomes if o.level is not None]
    levels = sorted({o.level for o in swept if o.level is not None})
    body = []
    for name in dict.fromkeys(o.method for o in swept):
        found = [name]
        for level in levels:
            scores = [o.accuracy for o in swept if o.method == name and o.level == level]
            known = [score for score in scores if score is not None]
            found.append(f"{100 * sum(known) / len(known):.1f}" if known else "–")
        body.append(found)
    return ["test accuracy, % at", *(f"{level:g}" for level in levels)], body
