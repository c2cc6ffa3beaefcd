"""Learners over seeds, against numbers worked out by hand."""

import json

import numpy as np
import pytest

from studies.compare import Comparison, compare, comparison_table
from studies.config import make_config
from studies.gather import Run


def run(learner: str, seed: int, score: float, task: str = "glyphs-iid", episodes: int = 9) -> Run:
    image = task.startswith("glyphs")
    row = {
        "task": task,
        "learner": learner,
        "seed": seed,
        "episodes": episodes,
        "loss": 1.0 if image else score,
        "accuracy": score if image else None,
    }
    return Run("", "", make_config(task, learner, "smoke", seed), row, None, {}, 0.0)


def test_paired_differences_over_seeds():
    runs = [
        *(run("flp", seed, value) for seed, value in enumerate((0.8, 0.6, 0.7))),
        *(run("oml", seed, value) for seed, value in enumerate((0.7, 0.4, 0.4))),
        run("oml", 3, 0.9),  # a seed that the other has not run
        *(run("dfa", seed, 2.0 + seed, "sinusoid-iid") for seed in (0, 1)),
        *(run("oml", seed, 1.0 + 3 * seed, "sinusoid-iid") for seed in (0, 1)),
    ]
    first, second, third, fourth = compare(runs)
    assert (first.learner, second.learner) == ("flp", "oml")
    assert first.seeds == second.seeds == [0, 1, 2]
    assert (first.mean, second.mean) == pytest.approx((0.7, 0.5))
    assert second.spread == pytest.approx(np.sqrt(0.03))
    assert (first.behind, first.half) == (0, 0)
    assert second.behind == pytest.approx(0.2)
    assert second.half == pytest.approx(4.303 * 0.1 / np.sqrt(3))
    # Losses: the lower one is the better.
    assert (third.learner, third.mean, fourth.learner) == ("dfa", 2.5, "oml")
    assert fourth.behind == pytest.approx(0.0)
    text = comparison_table("glyphs-iid", 0.25, [first, second])
    assert "20.0 points" in text
    assert "24.8" in text


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [run("flp", 0, 0.5), run("flp", 1, 0.5)],
        [run("flp", 0, 0.5), run("oml", 0, 0.5)],
        [run("flp", 0, 0.5), run("flp", 1, 0.5), run("oml", 0, 0.5), run("oml", 2, 0.5)],
        [run("flp", s, 0.5) for s in (0, 1)] + [run("oml", s, 0.5, episodes=8) for s in (0, 1)],
    ],
    ids=["none", "one learner", "one seed", "one shared seed", "other episodes"],
)
def test_what_cannot_be_paired_is_not_compared(runs):
    assert compare(runs) == []


def test_the_report_writes_the_comparison(command, tmp_path):
    folders = []
    for learner in ("dfa", "none"):
        for seed in (0, 1):
            folders.append(tmp_path / f"{learner}-{seed}")
            done = command(
                "train", "--preset", "smoke", "--task", "sinusoid-iid", "--learner", learner,
                "--steps", 1, "--seed", seed, "--out", folders[-1],
            )  # fmt: skip
            assert done.code == 0
    done = command("report", *folders, "--out", tmp_path / "all")
    assert done.code == 0
    lines = [
        Comparison(**line) for line in json.loads((tmp_path / "all/comparison.json").read_text())
    ]
    assert {line.learner for line in lines} == {"dfa", "none"}
    assert "paired over seeds 0, 1" in done.out
