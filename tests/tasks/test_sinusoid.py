"""Sinusoids: the sampler's ranges and order, its pools, and ragged episodes."""

import math

import pytest
import torch

from metaplastic.errors import ConfigurationError, UnknownNameError
from metaplastic.objectives import SquaredError
from tasks import SPLITS, Sinusoid
from tasks.sinusoid import FEWEST_STEPS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def functions_behind(task: Sinusoid, split, x: torch.Tensor, y: torch.Tensor) -> list[int]:
    """Functions of the pool that pass through all points (n, features), (n, 1)."""
    points = x[:, -1].double() / task.x_scale
    curves = task.pool(split)[:, :1] * torch.sin(points + task.pool(split)[:, 1:])
    misfit = (curves - y[:, 0].double()).abs().amax(1)
    return (misfit < 1e-5).nonzero().flatten().tolist()


def multiset(episodes, e: int) -> list[list[float]]:
    """The presentations of one episode, inputs and targets, in an order of their own."""
    both = torch.cat((episodes.support_x[e], episodes.support_y[e]), -1).flatten(1)
    return sorted(both.tolist())


@pytest.mark.parametrize("split", SPLITS)
def test_flp_P17_sampler_functions_are_in_range_and_fill_it(split):
    amplitude, phase = Sinusoid("continual").pool(split).unbind(1)
    assert amplitude.min() >= 0.1
    assert amplitude.max() < 5.1
    assert phase.min() >= 0
    assert phase.max() < math.pi
    # Uniform: the means of n draws lie within five standard errors of the middle.
    error = 5 / math.sqrt(12 * len(phase))
    assert abs(amplitude.mean() - 2.6) < 5 * error
    assert abs(phase.mean() - math.pi / 2) < math.pi * error
    assert abs(torch.corrcoef(torch.stack((amplitude, phase)))[0, 1]) < 5 / math.sqrt(len(phase))


@pytest.mark.parametrize("split", SPLITS)
def test_flp_P17_sampler_presents_one_function_at_a_time_in_the_order_of_its_slots(split):
    task = Sinusoid("continual", functions=4, batches=3, batch=16, queries=8)
    drawn = task.episodes(split, 2, seeded())
    assert drawn.support_x.shape == (2, 12, 16, 5)
    assert drawn.support_y.shape == (2, 12, 16, 1)
    assert drawn.query_x.shape == (2, 32, 5)
    assert drawn.support_task.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]] * 2
    for e in range(2):
        behind = [
            functions_behind(task, split, drawn.support_x[e, t], drawn.support_y[e, t])
            for t in range(12)
        ]
        assert all(len(found) == 1 for found in behind)
        assert behind[0::3] == behind[1::3] == behind[2::3]
        assert len({found[0] for found in behind}) == 4
        for slot in range(4):
            mine = drawn.query_task[e] == slot
            query = (drawn.query_x[e, mine], drawn.query_y[e, mine])
            assert functions_behind(task, split, *query) == behind[3 * slot]
            assert len(query[0]) == 8
            assert (query[0][:, slot] == 1).all()
    slots = drawn.support_x[..., :4]
    assert (slots.sum(-1) == 1).all()
    assert torch.equal(slots.argmax(-1), drawn.support_task.unsqueeze(-1).expand(-1, -1, 16))


def test_flp_P17_sampler_points_are_in_range_and_fresh():
    task = Sinusoid("continual", x_scale=0.5)
    assert task.functions * task.batches == task.episodes("train", 1, seeded()).presentations
    drawn = task.episodes("train", 8, seeded())
    points = torch.cat((drawn.support_x[..., -1].flatten(), drawn.query_x[..., -1].flatten())) / 0.5
    assert -5 <= points.min() < -4.99
    assert 4.99 < points.max() <= 5
    assert abs(points.mean()) < 5 * 10 / math.sqrt(12 * len(points))
    assert len(points.unique()) > 0.99 * len(points)


def test_flp_P17_sampler_iid_is_a_permutation_of_the_continual_presentations():
    continual = Sinusoid("continual", functions=5).episodes("train", 3, seeded(4))
    iid = Sinusoid("iid", functions=5).episodes("train", 3, seeded(4))
    assert torch.equal(iid.query_x, continual.query_x)
    assert torch.equal(iid.query_y, continual.query_y)
    for e in range(3):
        assert multiset(iid, e) == multiset(continual, e)
        slots = iid.support_x[e, :, 0, :5].argmax(-1)
        assert (slots.diff() != 0).sum() > 15
    assert iid.support_task is None
    assert iid.query_task is None


def test_flp_P17_sampler_same_seed_same_tasks():
    task = Sinusoid("continual")
    one, two = (task.episodes("test", 3, seeded(7)) for _ in range(2))
    other = task.episodes("test", 3, seeded(8))
    again = Sinusoid("continual").episodes("test", 3, seeded(7))
    for name in ("support_x", "support_y", "query_x", "query_y"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))


def test_no_function_is_in_two_splits_and_resizing_one_changes_no_other():
    task = Sinusoid("iid")
    pools = [task.pool(split) for split in SPLITS]
    assert [len(pool) for pool in pools] == [400, 200, 1000]
    assert len(torch.cat(pools).unique(dim=0)) == 1600
    assert len(torch.cat(pools)[:, 1].unique()) == 1600
    smaller = Sinusoid("iid", pools={"train": 50})
    assert torch.equal(smaller.pool("train"), pools[0][:50])
    assert torch.equal(smaller.pool("test"), pools[2])


@pytest.mark.parametrize("order", ["continual", "iid"])
def test_varied_lengths_show_the_first_presentations_of_each_function_and_pad_the_rest(order):
    sizes = {"functions": 6, "batches": 7, "batch": 3}
    full = Sinusoid(order, **sizes).episodes("train", 20, seeded())
    ragged = Sinusoid(order, **sizes, vary_length=True).episodes("train", 20, seeded())
    assert full.support_weight is None
    weight = ragged.support_weight
    assert weight.shape == (20, 42, 3)
    assert torch.equal(weight, weight[..., :1].expand_as(weight))
    shown = weight[..., 0] == 1
    assert (shown | (weight[..., 0] == 0)).all()
    assert torch.equal(ragged.support_x[shown], full.support_x[shown])
    assert torch.equal(ragged.support_y[shown], full.support_y[shown])
    assert not ragged.support_x[~shown].any()
    assert not ragged.support_y[~shown].any()
    assert torch.equal(ragged.query_x, full.query_x)
    slots = full.support_x[:, :, 0, :6].argmax(-1)
    lengths = torch.stack([(shown & (slots == slot)).sum(1) for slot in range(6)], 1)
    assert set(lengths.flatten().tolist()) == set(range(FEWEST_STEPS, 8))
    if order == "continual":
        expected = torch.arange(7) < lengths.unsqueeze(-1)
        assert torch.equal(shown, expected.flatten(1))


def test_draws_do_not_depend_on_the_precision_in_use():
    task = Sinusoid("iid", vary_length=True)
    single = task.episodes("train", 2, seeded())
    torch.set_default_dtype(torch.float64)
    try:
        double = task.episodes("train", 2, seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    assert single.support_x.dtype == torch.float32
    assert double.support_x.dtype == torch.float64
    assert double.support_weight.dtype == torch.float64
    torch.testing.assert_close(double.support_y.float(), single.support_y)
    torch.testing.assert_close(double.query_x.float(), single.query_x)


def test_attributes_describe_the_network_that_fits():
    task = Sinusoid("iid", functions=3)
    assert (task.name, task.input_shape, task.outputs, task.chance) == (
        "sinusoid-iid",
        (4,),
        1,
        None,
    )
    assert isinstance(task.objective, SquaredError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"functions": 0}, "functions must be a positive"),
        ({"batches": 3, "vary_length": True}, "batches=3"),
        ({"pools": {"train": 0}}, "train"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        Sinusoid("iid", **options)


def test_more_functions_than_the_pool_has_and_unknown_splits_are_refused():
    task = Sinusoid("iid", functions=11, pools={"validation": 10})
    with pytest.raises(ConfigurationError, match="11 distinct functions and split 'validation'"):
        task.episodes("validation", 1, seeded())
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        task.episodes("trian", 1, seeded())
    with pytest.raises(UnknownNameError, match="split"):
        Sinusoid("iid", pools={"valid": 10})
