"""The outer loop: reports, optimisers, and checkpoints that go on where they were written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metaplastic import (
    CrossEntropy,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    Oja,
    SquaredError,
    Unrolled,
)
from metaplastic.errors import CheckpointError
from metaplastic.evaluation import evaluate
from metaplastic.recipes import RECIPES
from metaplastic.seeds import STREAMS, evaluation_stream, streams
from metaplastic.training import MetaTraining, load_checkpoint
from tests.helpers import classification, gradients, meta_gradient, mlp, regression, seeded

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "milestones": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4], 0.3),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [2],
    ),
}


def sample(g: torch.Generator) -> Episodes:
    """Two episodes of three classes, drawn from the generator."""
    x = torch.randn(2, 4, 2, 4, generator=g)
    y = torch.randint(3, (2, 4, 2), generator=g)
    return Episodes(x, y, x[:, :, 0].clone(), y[:, :, 0].clone())


def resampling() -> Learner:
    """A learner that draws its feedback anew in every episode, in single precision."""
    torch.manual_seed(0)
    credit = DirectFeedback("target", weights="resampled")
    return Learner(mlp(4, 6, 3).float(), credit, Oja(0.1, granularity="synapse"))


def training(
    learner: Learner | None = None, scheduler: str | None = None, seed: int = 3
) -> MetaTraining:
    learner = learner or resampling()
    optimizer = torch.optim.Adam(learner.param_groups(lr=0.01, plasticity=0.03))
    schedule = None if scheduler is None else SCHEDULERS[scheduler](optimizer)
    return MetaTraining(learner, sample, optimizer=optimizer, scheduler=schedule, seed=seed)


def everything(t: MetaTraining) -> dict[str, Any]:
    """All that a checkpoint should hold, copied."""
    return copy.deepcopy(
        {
            "learner": dict(t.learner.state_dict()),
            "optimizer": t.optimizer.state_dict(),
            "scheduler": None if t.scheduler is None else t.scheduler.state_dict(),
            "generators": {n: g.get_state() for n, g in t._generators.items()},
            "steps": t.steps,
        }
    )


def same(a: Any, b: Any) -> bool:
    """Bitwise the same structure."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# --- save and resume ---


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_six_steps_are_three_and_three_more_after_a_restart(scheduler, tmp_path):
    whole = training(scheduler=scheduler)
    reports = list(whole.run(6))
    half = training(scheduler=scheduler)
    list(half.run(3))
    half.save(tmp_path / "c.pt", extra={"note": "three", "rates": [0.1, 2]})

    fresh = training(scheduler=scheduler, seed=99)
    list(fresh.run(1))  # it has moved on its own
    assert fresh.resume(tmp_path / "c.pt") == {"note": "three", "rates": [0.1, 2]}
    assert same(everything(fresh), everything(half))
    rest = list(fresh.run(6))
    assert rest == reports[3:]
    assert same(everything(fresh), everything(whole))
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_resume_reads_a_string_path_and_its_own_precision(tmp_path):
    one = training(resampling().double())
    list(one.run(2))
    one.save(str(tmp_path / "c.pt"))
    two = training(resampling().double())
    two.resume(str(tmp_path / "c.pt"))
    assert same(everything(one), everything(two))


def test_a_checkpoint_is_not_touched_by_what_comes_after(tmp_path):
    t = training()
    list(t.run(1))
    t.save(tmp_path / "c.pt")
    before = everything(t)
    list(t.run(3))
    t.resume(tmp_path / "c.pt")
    assert same(everything(t), before)


def damaged(path: Path) -> dict[str, bytes]:
    content = path.read_bytes()
    return {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"not a checkpoint",
        "flipped": content[:200] + bytes(64) + content[264:],
    }


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "flipped", "missing", "folder"])
def test_a_damaged_file_is_an_error_and_changes_nothing(how, tmp_path):
    t = training()
    list(t.run(1))
    path = tmp_path / "c.pt"
    t.save(path)
    if how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(damaged(path)[how])
    other = training(seed=5)
    before = everything(other)
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        other.resume(path)
    assert same(everything(other), before)


@pytest.mark.parametrize("missing", ["learner", "optimizer", "generators", "steps", "extra"])
def test_a_file_without_a_part_is_an_error_and_changes_nothing(missing, tmp_path):
    t = training()
    list(t.run(1))
    t.save(tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    del content[missing]
    torch.save(content, tmp_path / "c.pt")
    other = training(seed=5)
    before = everything(other)
    with pytest.raises(CheckpointError):
        other.resume(tmp_path / "c.pt")
    assert same(everything(other), before)


def test_a_later_format_is_an_error(tmp_path):
    t = training()
    t.save(tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    torch.save(content | {"format": 999}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="format 999"):
        t.resume(tmp_path / "c.pt")


def test_another_network_is_an_error_that_names_what_differs(tmp_path):
    t = training()
    list(t.run(1))
    t.save(tmp_path / "c.pt")
    wider = training(Learner(mlp(4, 7, 3).float(), DirectFeedback(weights="resampled"), Oja(0.1)))
    before = everything(wider)
    with pytest.raises(CheckpointError, match=r"belongs to another learner: .*\[6.*\[7"):
        wider.resume(tmp_path / "c.pt")
    assert same(everything(wider), before)


def sgd(learner: Learner) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": list(learner.parameters()), "lr": 0.1}])


def test_another_optimiser_is_an_error_and_changes_nothing(tmp_path):
    """One that sorts the Parameters into other groups."""
    t = training()
    list(t.run(1))
    t.save(tmp_path / "c.pt")
    learner = resampling()
    other = MetaTraining(learner, sample, optimizer=sgd(learner))
    before = everything(other)
    with pytest.raises(CheckpointError, match="optimi"):
        other.resume(tmp_path / "c.pt")
    assert same(everything(other), before)


def test_a_scheduler_that_the_checkpoint_does_not_hold_is_an_error(tmp_path):
    """Else the rates would begin anew in the middle of the training."""
    t = training()
    list(t.run(1))
    t.save(tmp_path / "c.pt")
    other = training(scheduler="step")
    before = everything(other)
    with pytest.raises(CheckpointError, match="scheduler"):
        other.resume(tmp_path / "c.pt")
    assert same(everything(other), before)


def test_an_interrupted_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    t = training()
    list(t.run(1))
    t.save(tmp_path / "c.pt")
    before, written = everything(t), (tmp_path / "c.pt").read_bytes()
    list(t.run(2))

    def broken(content: object, path: Path) -> None:
        Path(path).write_bytes(b"half a che")
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", broken)
        with pytest.raises(OSError, match="disk is full"):
            t.save(tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == written
    t.resume(tmp_path / "c.pt")
    assert same(everything(t), before)


def test_a_checkpoint_gives_its_learner_to_an_evaluation(tmp_path):
    """The content fits a learner of its own, which is left as it is."""
    t = training()
    list(t.run(2))
    t.save(tmp_path / "c.pt")
    learner = resampling()
    before = copy.deepcopy(learner.state_dict())
    content = load_checkpoint(tmp_path / "c.pt", learner)
    assert same(dict(learner.state_dict()), dict(before))
    learner.load_state_dict(content["learner"])
    episodes = classification(2, 3, 2, 4, 3)
    scores = [evaluate(x, episodes, generator=seeded(1)).loss for x in (learner, t.learner)]
    assert torch.equal(scores[0], scores[1])


# --- steps ---


def test_a_step_is_the_clipped_gradient_and_one_optimiser_step():
    learner, twin = resampling(), resampling()
    rate, clip = 0.5, 0.01
    optimizer = torch.optim.SGD(learner.parameters(), rate)
    t = MetaTraining(learner, sample, optimizer=optimizer, clip=clip, seed=7)
    generators = streams(7)
    for step in (1, 2, 3):
        report = t.step()
        episodes = sample(generators["episodes"])
        twin.zero_grad()
        outcome = Unrolled().gradient(twin, episodes, generator=generators["noise"])
        slopes = gradients(twin)
        norm = sum(float(g.square().sum()) for g in slopes.values()) ** 0.5
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p -= rate * min(1.0, clip / norm) * slopes[name]
        assert report.step == step
        assert report.loss == pytest.approx(float(outcome.loss.mean()), rel=1e-5)
        assert report.accuracy == pytest.approx(float(outcome.accuracy.mean()), rel=1e-5)
        assert report.gradient_norm == pytest.approx(norm, rel=1e-5)
        assert report.diverged == ()
        for (name, p), q in zip(learner.named_parameters(), twin.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-4, atol=1e-6), name


def test_a_regression_report_has_no_accuracy_and_clipping_can_be_off():
    learner = Learner(mlp(3, 4, 2), DirectFeedback(), Oja(0.1), SquaredError()).double()
    episodes = regression(2, 3, 2, 3, 2)
    gradient = meta_gradient(learner, episodes)
    t = MetaTraining(learner, lambda g: episodes, clip=None)
    report = t.step()
    assert report.accuracy is None
    norm = sum(float(g.square().sum()) for g in gradient.values()) ** 0.5
    assert report.gradient_norm == pytest.approx(norm, rel=1e-12)
    for name, p in learner.named_parameters():
        assert torch.allclose(p.grad, gradient[name], rtol=1e-12), name


def test_run_counts_the_steps_of_all_runs_together():
    t = training()
    assert [r.step for r in t.run(2)] == [1, 2]
    assert [r.step for r in t.run(5)] == [3, 4, 5]
    assert list(t.run(5)) == []


def test_the_same_seed_is_the_same_training():
    one, two, other = training(seed=4), training(seed=4), training(seed=5)
    assert list(one.run(3)) == list(two.run(3))
    assert same(everything(one), everything(two))
    assert list(other.run(3)) != list(training(seed=4).run(3))


def test_training_lowers_the_loss():
    """On a fixed batch of episodes, for every named learner at its default rates."""
    episodes = classification(4, 6, 2, 6, 3, seed=3)
    query = {"query_x": episodes.support_x.flatten(1, 2), "query_y": episodes.support_y.flatten(1)}
    episodes = Episodes(episodes.support_x, episodes.support_y, **query)
    for name, recipe in RECIPES.items():
        network = LayeredNetwork(mlp(6, 12, 3).float())
        learner = recipe.build(network, CrossEntropy(), recipe.options, seeded(1))
        t = MetaTraining(
            learner,
            lambda g: episodes,
            metagradient=Unrolled(first_order=recipe.first_order),
            optimizer=torch.optim.Adam(recipe.options.param_groups(learner)),
            clip=recipe.options.clip,
        )
        before = evaluate(learner, episodes, generator=seeded(2)).loss
        assert [len(report.diverged) for report in t.run(10)] == [0] * 10, name
        after = evaluate(learner, episodes, generator=seeded(2)).loss
        assert after.mean() < before.mean(), name


# --- seeds ---


def test_streams_are_independent_and_evaluation_is_its_own():
    draws = {n: torch.rand(4, generator=g) for n, g in streams(0).items()}
    assert draws.keys() == set(STREAMS)
    again = {n: torch.rand(4, generator=g) for n, g in streams(0).items()}
    assert same(draws, again)
    numbers = [tuple(d.tolist()) for seed in range(3) for d in draws_of(seed)]
    numbers += [tuple(torch.rand(4, generator=evaluation_stream(i)).tolist()) for i in range(3)]
    assert len(set(numbers)) == 3 * len(STREAMS) + 3


def draws_of(seed: int) -> list[Tensor]:
    return [torch.rand(4, generator=g) for g in streams(seed).values()]
