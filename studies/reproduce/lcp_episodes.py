"""Least control of learners at rest, on few examples (Meulemans et al. 2022)."""

from __future__ import annotations

from metaplastic.recipes import recipe
from studies.reproduce.episodes import EpisodePart, Row

SEEDS = {"smoke": (0,), "quick": (0,), "acceptance": (0, 1, 2), "full": (0, 1, 2)}
LEARNERS = ("imaml", "lcp", "lcp-direct", "lcp-contrastive", "t1-t2", "maml-rest")
"""The same inner loop; the first one's meta-gradient is what the others stand for."""
TASKS = ("sinusoid", "glyphs", "omniglot")
LOCAL = (
    Row(
        "flp-lcp-frozen",
        "Oja on random feedback that stays as it is drawn, by least control",
        "flp-lcp",
        {"feedback": "fixed"},
    ),
    Row("flp-lcp", "Oja on feedback that is learned by least control", "flp-lcp"),
    Row(
        "flp-unrolled",
        "the same learner, by the gradient through its online stream",
        "flp-lcp",
        metagradient="unrolled",
    ),
)
FEW_SHOT = tuple(Row(name, recipe(name).about, name) for name in LEARNERS)

EPISODES: dict[str, EpisodePart] = {
    **{
        f"few-shot-{task}": EpisodePart(f"{task}-iid", FEW_SHOT, SEEDS, FEW_SHOT[0].name)
        for task in TASKS
    },
    **{
        f"local-{task}": EpisodePart(f"{task}-iid", LOCAL, SEEDS, LOCAL[0].name)
        for task in TASKS[:2]
    },
}
"""By part."""
