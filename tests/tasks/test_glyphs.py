"""Glyphs: the pen against its geometry, and characters that can be told apart and learned."""

import itertools

import numpy as np
import pytest
import torch

from metaplastic.errors import ConfigurationError
from tasks import SPLITS, Glyphs
from tasks.glyphs import CLASSES, DRAWINGS, draw_character, rasterise

SIZE = 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nearest_pixels(drawn) -> float:
    """Accuracy of the label of the nearest support image, in pixels."""
    distance = torch.cdist(drawn.query_x.flatten(2), drawn.support_x.flatten(3).flatten(1, 2))
    guess = drawn.support_y.flatten(1).gather(1, distance.argmin(-1))
    return float((guess == drawn.query_y).double().mean())


def test_the_pen_inks_each_pixel_by_its_distance_to_the_curve():
    rng = np.random.default_rng(0)
    control = rng.uniform(2, 18, (3, 2, 3, 2))
    width = np.array([0.6, 1.0, 1.7])
    ink = rasterise(control, width, 20)
    # By dense points of each curve, pixel by pixel; twelve-point polylines stay this close.
    for d, row, column in itertools.product(range(3), range(20), range(20)):
        nearest = min(
            np.hypot(
                (1 - t) ** 2 * p[0, 0] + 2 * t * (1 - t) * p[1, 0] + t**2 * p[2, 0] - column - 0.5,
                (1 - t) ** 2 * p[0, 1] + 2 * t * (1 - t) * p[1, 1] + t**2 * p[2, 1] - row - 0.5,
            ).min()
            for p in control[d]
            for t in [np.linspace(0, 1, 400)]
        )
        assert abs(float(ink[d, row, column]) - np.clip(width[d] + 0.5 - nearest, 0, 1)) < 0.06


def test_a_stroke_without_length_is_a_dot():
    ink = rasterise(np.full((1, 1, 3, 2), 4.5), np.array([0.5]), 9)
    assert float(ink[0, 4, 4]) == 1
    assert float(ink.sum()) == pytest.approx(1, abs=1e-6)


def test_characters_do_not_depend_on_anything_but_their_seed():
    one = draw_character(3, SIZE)
    torch.rand(7)
    draw_character(4, SIZE)
    assert torch.equal(one, draw_character(3, SIZE))
    assert not torch.equal(one, draw_character(4, SIZE))
    assert one.shape == (DRAWINGS, 1, SIZE, SIZE)
    assert one.dtype == torch.uint8


def test_no_character_is_in_two_splits():
    for one, two in itertools.combinations(SPLITS, 2):
        assert not set(CLASSES[one]) & set(CLASSES[two])
    task = Glyphs("iid", size=SIZE)
    assert [task.pool(split).classes for split in SPLITS] == [200, 40, 100]
    images = {
        split: {draw_character(seed, SIZE)[0].numpy().tobytes() for seed in CLASSES[split]}
        for split in SPLITS
    }
    assert len(set.union(*images.values())) == sum(map(len, images.values())) == 340


def test_pools_hold_the_drawings_of_their_split():
    drawn = Glyphs("continual", ways=2, size=SIZE).episodes("validation", 3, seeded())
    known = {}
    for seed in CLASSES["validation"]:
        for image in draw_character(seed, SIZE):
            known[image.numpy().tobytes()] = seed
    for e in range(3):
        images = (drawn.support_x[e, :, 0] * 255).round().to(torch.uint8)
        seeds = [known[image.numpy().tobytes()] for image in images]
        assert len(set(seeds[:5])) == len(set(seeds[5:])) == 1
        assert seeds[0] != seeds[5]


@pytest.mark.parametrize("size", [16, 28])
def test_every_drawing_is_a_figure_on_an_empty_ground(size):
    ink = torch.cat([draw_character(seed, size) for seed in CLASSES["validation"]]).float() / 255
    assert ink.flatten(1).amax(1).min() > 0.6
    covered = ink.mean((1, 2, 3))
    assert covered.min() > 0.02
    assert covered.max() < 0.5
    # Little is lost at the edges of the image.
    edge = torch.ones(size, size, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    assert ink[:, 0, edge].mean() < 0.25 * ink.mean()


@pytest.mark.parametrize("split", ["train", "test"])
def test_drawings_of_a_character_are_alike_but_varied(split):
    one, five = (
        nearest_pixels(
            Glyphs("iid", ways=5, shots=shots, size=SIZE).episodes(split, 200, seeded(shots))
        )
        for shots in (1, 5)
    )
    # 200 episodes of 25 queries: well above chance (0.2), better with more examples, and far
    # from what copies of one drawing would give.
    assert 0.4 < one < 0.8
    assert one + 0.1 < five < 0.95


def test_same_seed_same_episodes_and_the_order_only_shuffles():
    continual = Glyphs("continual", size=SIZE).episodes("test", 4, seeded(1))
    again = Glyphs("continual", size=SIZE).episodes("test", 4, seeded(1))
    iid = Glyphs("iid", size=SIZE).episodes("test", 4, seeded(1))
    assert torch.equal(continual.support_x, again.support_x)
    assert torch.equal(continual.query_x, again.query_x)
    assert torch.equal(continual.query_x, iid.query_x)
    assert not torch.equal(continual.support_y, iid.support_y)
    assert torch.equal(continual.support_y, iid.support_y.sort(1).values)
    assert continual.support_task[0].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5


def test_attributes_describe_the_network_that_fits():
    task = Glyphs("iid", ways=4, shots=6, queries=2, size=20, batch=3)
    assert (task.name, task.input_shape, task.outputs, task.chance) == (
        "glyphs-iid",
        (1, 20, 20),
        4,
        0.25,
    )
    drawn = task.episodes("validation", 2, seeded())
    assert drawn.support_x.shape == (2, 8, 3, 1, 20, 20)
    assert drawn.query_x.shape == (2, 8, 1, 20, 20)


@pytest.mark.parametrize("size", [15, 65])
def test_other_sizes_are_refused(size):
    with pytest.raises(ConfigurationError, match=r"16\.\.64"):
        Glyphs("iid", size=size)
