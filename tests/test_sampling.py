"""Episodes drawn from labelled data: what is shown, to whom it belongs, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from metaplastic.episodes import Episodes
from metaplastic.errors import (
    ConfigurationError,
    DataError,
    LabelError,
    ShapeError,
    UnknownNameError,
)
from metaplastic.sampling import LabelledPool


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def named_pool(counts: list[int]) -> LabelledPool:
    """Examples that say who they are, x = (label, number); labels 10, 20, ... in mixed order."""
    labels = torch.tensor([10 * (c + 1) for c, n in enumerate(counts) for _ in range(n)])
    labels = labels[torch.randperm(len(labels), generator=seeded(99))]
    x = torch.stack((labels.double(), torch.arange(len(labels)).double()), 1)
    return LabelledPool(x, labels)


def rows(x: torch.Tensor) -> list[tuple[float, ...]]:
    return [tuple(row.tolist()) for row in x.flatten(0, -2)]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(6, 9), min_size=3, max_size=6),
    ways=st.integers(1, 3),
    batches=st.integers(1, 2),
    batch=st.integers(1, 2),
    queries=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_continual_episodes_show_distinct_examples_class_by_class(
    counts, ways, batches, batch, queries, seed
):
    shots = batches * batch
    drawn = named_pool(counts).draw(3, ways, shots, queries, batch=batch, generator=seeded(seed))
    assert drawn.support_x.shape == (3, ways * batches, batch, 2)
    assert drawn.query_x.shape == (3, ways * queries, 2)
    for e in range(3):
        shown = rows(drawn.support_x[e]) + rows(drawn.query_x[e])
        assert len(set(shown)) == ways * (shots + queries)
        owner = {}
        for x, label in zip(rows(drawn.support_x[e]), drawn.support_y[e].flatten(), strict=True):
            owner.setdefault(int(label), set()).add(x[0])
        for x, label in zip(rows(drawn.query_x[e]), drawn.query_y[e], strict=True):
            owner[int(label)].add(x[0])
        assert sorted(owner) == list(range(ways))
        assert all(len(classes) == 1 for classes in owner.values())
        assert len(set.union(*owner.values())) == ways
        assert drawn.support_y[e].flatten().tolist() == sorted(drawn.support_y[e].flatten())
        assert drawn.support_task[e].tolist() == drawn.support_y[e, :, 0].tolist()
        assert drawn.query_task[e].tolist() == drawn.query_y[e].tolist()


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_iid_episodes_are_a_shuffle_of_the_continual_ones(batch):
    pool = named_pool([9] * 8)
    continual = pool.draw(20, 4, 6, 2, batch=batch, generator=seeded())
    iid = pool.draw(20, 4, 6, 2, order="iid", batch=batch, generator=seeded())
    assert torch.equal(iid.query_x, continual.query_x)
    assert torch.equal(iid.query_y, continual.query_y)
    assert iid.support_task is None
    assert iid.query_task is None
    moved = 0
    for e in range(20):
        pairs = [
            list(zip(rows(d.support_x[e]), d.support_y[e].flatten().tolist(), strict=True))
            for d in (continual, iid)
        ]
        assert sorted(pairs[0]) == sorted(pairs[1])
        moved += pairs[0] != pairs[1]
    assert moved == 20
    # Batches are not kept together: most hold more than one class.
    mixed = (iid.support_y != iid.support_y[..., :1]).any(-1).double().mean()
    assert mixed == 0 if batch == 1 else mixed > 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_classes_and_examples_are_drawn_uniformly_and_padding_never(seed):
    counts = [3, 7, 4, 5]
    episodes = 4000
    drawn = named_pool(counts).draw(episodes, 2, 2, 1, generator=seeded(seed))
    for position in (0, 2):
        labels = drawn.support_x[:, position, 0, 0]
        for c in range(4):
            seen = int((labels == 10 * (c + 1)).sum())
            assert abs(seen - episodes / 4) < 5 * (episodes * 3 / 16) ** 0.5
    of_class_20 = drawn.query_x[drawn.query_x[..., 0] == 20][:, 1]
    numbers, seen = of_class_20.unique(return_counts=True)
    assert len(numbers) == 7
    expected = len(of_class_20) / 7
    assert ((seen - expected).abs() < 5 * expected**0.5).all()


def test_same_seed_same_episodes_and_the_generator_moves_on():
    pool = named_pool([8] * 6)
    generator = seeded(3)
    first, second = (pool.draw(2, 3, 2, 2, generator=generator) for _ in range(2))
    again = pool.draw(2, 3, 2, 2, generator=seeded(3))
    assert torch.equal(first.support_x, again.support_x)
    assert torch.equal(first.query_x, again.query_x)
    assert not torch.equal(first.support_x, second.support_x)


def test_draws_ignore_the_global_generator():
    pool = named_pool([8] * 6)
    state = torch.get_rng_state()
    first = pool.draw(2, 3, 2, 2, order="iid", generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(
        first.support_x, pool.draw(2, 3, 2, 2, order="iid", generator=seeded(3)).support_x
    )


def test_draws_do_not_depend_on_the_default_dtype():
    pool = LabelledPool(torch.arange(48, dtype=torch.uint8).view(48, 1), torch.arange(48) % 6)
    single = pool.draw(2, 3, 2, 2, order="iid", generator=seeded())
    torch.set_default_dtype(torch.float64)
    try:
        double = pool.draw(2, 3, 2, 2, order="iid", generator=seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    assert double.support_x.dtype == torch.float64
    torch.testing.assert_close(double.support_x.float(), single.support_x)
    torch.testing.assert_close(double.query_x.float(), single.query_x)


def tiles(order: str) -> tuple[torch.Tensor, Episodes]:
    """All 12 rotated classes of 3 upright ones in one episode; every pixel of a class differs."""
    upright = torch.arange(3 * 9, dtype=torch.uint8).view(3, 1, 1, 3, 3).expand(3, 4, 1, 3, 3)
    pool = LabelledPool(
        upright.reshape(12, 1, 3, 3), torch.arange(3).repeat_interleave(4), rotations=True
    )
    assert pool.classes == 12
    return upright[:, 0, 0], pool.draw(1, 12, 2, 2, order=order, generator=seeded())


@pytest.mark.parametrize("order", ["continual", "iid"])
def test_each_rotation_is_a_class_of_its_own(order):
    upright, drawn = tiles(order)
    # Turned by hand: a quarter anticlockwise moves pixel (row, column) to (2 - column, row).
    expected = {}
    for c in range(3):
        image = upright[c].tolist()
        for quarters in range(4):
            expected[tuple(itertools.chain(*image))] = (c, quarters)
            image = [[image[j][2 - i] for j in range(3)] for i in range(3)]
    assert len(expected) == 12
    kinds = {}
    support = zip(drawn.support_x[0, :, 0], drawn.support_y[0, :, 0], strict=True)
    for x, label in [*support, *zip(drawn.query_x[0], drawn.query_y[0], strict=True)]:
        pixels = tuple((x * 255).round().int().flatten().tolist())
        kinds.setdefault(int(label), set()).add(expected[pixels])
    assert all(len(kind) == 1 for kind in kinds.values())
    assert set.union(*kinds.values()) == set(itertools.product(range(3), range(4)))


def test_bytes_become_floats_in_0_to_1_and_the_pool_stays_as_it_was():
    x = torch.tensor([[[0, 51], [102, 255]]] * 2, dtype=torch.uint8)
    before = x.clone()
    pool = LabelledPool(x, [7, 7], rotations=True)
    drawn = pool.draw(1, 4, 1, 1, generator=seeded())
    assert drawn.support_x.dtype == torch.get_default_dtype()
    for image in drawn.support_x.flatten(0, 2):
        torch.testing.assert_close(
            image.flatten().sort().values, torch.tensor([0, 0.2, 0.4, 1.0]), atol=1e-7, rtol=0
        )
    assert torch.equal(x, before)


def test_floating_point_keeps_its_precision():
    drawn = named_pool([4, 4]).draw(1, 2, 1, 1, generator=seeded())
    assert drawn.support_x.dtype == torch.float64


@pytest.mark.parametrize("arrays", [False, True], ids=["tensors", "arrays"])
def test_from_dataset_equals_the_pool_of_its_tensors(arrays):
    x = torch.rand(12, 1, 3, 3, generator=seeded())
    labels = torch.arange(12) % 3
    dataset = TensorDataset(x, labels)
    if arrays:
        read_only = x.numpy()
        read_only.setflags(write=False)
        dataset = [(read_only[i], np.int64(labels[i])) for i in range(12)]
    drawn = [
        pool.draw(2, 5, 1, 1, generator=seeded())
        for pool in (
            LabelledPool.from_dataset(dataset, rotations=True),
            LabelledPool(x, labels, rotations=True),
        )
    ]
    assert torch.equal(drawn[0].support_x, drawn[1].support_x)
    assert torch.equal(drawn[0].query_y, drawn[1].query_y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_sees_the_same_episodes():
    x = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=seeded())
    labels = torch.arange(40) % 4
    here, there = (
        LabelledPool(x.to(device), labels.to(device), rotations=True).draw(
            3, 6, 2, 2, generator=seeded()
        )
        for device in ("cpu", "cuda")
    )
    assert there.support_x.is_cuda
    assert there.support_task.is_cuda
    assert torch.equal(there.support_x.cpu(), here.support_x)
    assert torch.equal(there.query_y.cpu(), here.query_y)


def test_too_few_classes_or_examples_are_named():
    pool = named_pool([4, 3, 5])
    with pytest.raises(DataError, match="4 ways need 4 classes and the pool has 3"):
        pool.draw(1, 4, 1, 1, generator=seeded())
    with pytest.raises(DataError, match=r"class 20 has 3 examples .* = 4 distinct"):
        pool.draw(1, 2, 2, 2, generator=seeded())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shots": 3, "batch": 2}, ConfigurationError, "batch=2 does not divide the 3"),
        ({"ways": 0}, ConfigurationError, "ways must be a positive"),
        ({"queries": 1.5}, ConfigurationError, "queries must be a positive"),
        ({"episodes": True}, ConfigurationError, "episodes must be a positive"),
        ({"order": "idd"}, UnknownNameError, "Did you mean 'iid'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, words):
    wanted = {"episodes": 1, "ways": 2, "shots": 2, "queries": 1, **options}
    with pytest.raises(error, match=words):
        named_pool([6, 6]).draw(**wanted, generator=seeded())


IMAGES = torch.zeros(4, 1, 3, 3)


@pytest.mark.parametrize(
    ("x", "labels", "rotations", "error", "words"),
    [
        (torch.zeros(0, 3), [], False, DataError, "empty"),
        (torch.full((4, 3), float("nan")), [0, 0, 1, 1], False, DataError, r"NaN.*\[0, 0\]"),
        (torch.zeros(4, 3, dtype=torch.int32), [0, 0, 1, 1], False, DataError, "int32"),
        (torch.zeros(4), [0, 0, 1, 1], False, ShapeError, "features"),
        (IMAGES, [0, 1, 1], False, ShapeError, r"must be \(4,\)"),
        (IMAGES, [[0, 0, 1, 1]], False, ShapeError, r"must be \(4,\)"),
        (IMAGES, [0.0, 0.0, 1.0, 1.0], False, LabelError, "float"),
        (IMAGES, ["a", "a", "b", "b"], False, LabelError, "integers"),
        (torch.zeros(4, 1, 2, 3), [0, 0, 1, 1], True, ShapeError, "square"),
        (torch.zeros(4, 3), [0, 0, 1, 1], True, ShapeError, "square"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(x, labels, rotations, error, words):
    with pytest.raises(error, match=words):
        LabelledPool(x, labels, rotations=rotations)


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        ([], DataError, "empty"),
        ([("not a tensor", 0)], DataError, "example 0 is a str"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], ShapeError, "example 1"),
        ([(torch.zeros(2), 0.5)], LabelError, "float"),
    ],
)
def test_data_sets_that_cannot_be_pooled_are_refused(dataset, error, words):
    with pytest.raises(error, match=words):
        LabelledPool.from_dataset(dataset)
