"""The networks of the studies, and the sizes and schedules they are trained with."""

from itertools import pairwise

import pytest
import torch

from metaplastic.errors import ConfigurationError, UnknownNameError
from metaplastic.metagradient import Unrolled
from metaplastic.recipes import RECIPES, recipe
from studies.assembly import decay, pick_device
from studies.config import make_config, make_metagradient
from studies.networks import build_network
from studies.presets import PRESETS, sizes
from tasks import TASKS, make_task


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["sinusoid-continual", "glyphs-continual"])
@pytest.mark.parametrize("learner", ["flp", "maml"])
def test_one_seed_one_network_and_no_global_randomness(name, learner):
    task, before = make_task(name), torch.get_rng_state()
    first = build_network(task, recipe(learner), (16,), seeded())
    second = build_network(task, recipe(learner), (16,), seeded())
    other = build_network(task, recipe(learner), (16,), seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    values, again, others = (n.state_dict() for n in (first, second, other))
    assert all(torch.equal(v, again[k]) for k, v in values.items())
    assert any(not torch.equal(v, others[k]) for k, v in values.items())


def test_regression_has_no_trunk_and_images_have_one():
    network = build_network(make_task("sinusoid-iid", functions=4), recipe("flp"), (7, 6), seeded())
    assert network.trunk is None
    shapes = [(g.n_out, g.n_in) for g in network.groups().values() if g.role == "weight"]
    assert shapes == [(7, 5), (6, 7), (1, 6)]
    images = build_network(make_task("glyphs-iid", ways=3), recipe("flp"), (128,), seeded())
    shapes = [(g.n_out, g.n_in) for g in images.groups().values() if g.role == "weight"]
    assert shapes == [(128, 512), (3, 128)]


@pytest.mark.parametrize("size", [28, 17])
def test_features_are_centred_and_have_the_given_norm(size):
    task = make_task("glyphs-iid", size=size)
    network = build_network(task, recipe("flp"), (16,), seeded(), feature_norm=2.5)
    images = task.episodes("validation", 1, seeded()).query_x[0]
    with torch.no_grad():
        features = network.features(images)
    assert features.norm(dim=1) == pytest.approx(torch.full((len(images),), 2.5), rel=1e-2)
    assert features.mean(1) == pytest.approx(torch.zeros(len(images)), abs=1e-5)
    assert not any(p.shape == features.shape[1:] for p in network.trunk.parameters()
                   if p.requires_grad)  # fmt: skip


def test_a_whole_plastic_network_computes_the_same_as_the_one_with_a_trunk():
    task = make_task("glyphs-iid")
    images = task.episodes("validation", 1, seeded()).query_x[0]
    outputs = []
    for learner in ("oml", "maml"):
        network = build_network(task, recipe(learner), (16,), seeded())
        with torch.no_grad():
            outputs.append(network(network.features(images), network.weights()))
        assert (network.trunk is None) == (learner == "maml")
    assert torch.allclose(*outputs, atol=1e-5)


def test_inputs_without_a_network_are_refused():
    task = make_task("glyphs-iid")
    task.input_shape = (28, 28)
    with pytest.raises(ConfigurationError, match="no network"):
        build_network(task, recipe("flp"), (16,), seeded())
    with pytest.raises(ConfigurationError, match="positive"):
        build_network(make_task("glyphs-iid"), recipe("flp"), (0,), seeded())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_study_has_a_size_that_its_task_and_learner_take(preset):
    for task in TASKS:
        for learner in RECIPES:
            config = make_config(task, learner, preset, 0)
            assert config.steps >= 1
            if not task.startswith(("omniglot", "mnist")):  # which look for their files
                assert make_task(task, **config.task_options).name == task


def test_a_task_without_sizes_is_named():
    with pytest.raises(ConfigurationError, match="no sizes for the task cifar10"):
        sizes("cifar10", "flp", "smoke")


def test_meta_gradients_by_name():
    oml, first = recipe("oml"), recipe("oml-1")
    assert make_metagradient("unrolled", oml) == Unrolled()
    assert make_metagradient("unrolled-checkpoint:7", oml) == Unrolled(checkpoint_every=7)
    assert make_metagradient("truncated:3", oml) == Unrolled(truncate=3)
    assert make_metagradient("first-order", oml) == Unrolled(first_order=True)
    assert make_metagradient("truncated:3", first) == Unrolled(truncate=3, first_order=True)


def test_decays_end_at_zero_and_never_rise():
    for kind in ("cosine", "late"):
        values = [decay(kind, i / 100) for i in range(121)]
        assert values[0] == pytest.approx(1)
        assert values[100:] == pytest.approx([0.0] * 21)
        assert all(a >= b - 1e-12 for a, b in pairwise(values))
    assert decay("cosine", 0.5) == pytest.approx(0.5)
    assert decay("late", 0.69) == 1
    assert decay("late", 0.85) == pytest.approx(0.5)
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        decay("cosin", 0.5)


def test_devices_that_are_not_there_are_refused():
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(ConfigurationError, match="no usable GPU"):
            pick_device("cuda")
