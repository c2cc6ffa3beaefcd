"""The papers that are reproduced: their methods, and what may be asked of them."""

import json
import pickle

import pytest
import torch

from metaplastic.errors import ConfigurationError, UnknownNameError
from studies.reproduce import PAPERS
from studies.reproduce.base import Setup, resized
from studies.reproduce.dfc import MNIST
from studies.reproduce.episodes import ChosenEpisodes
from studies.reproduce.images import ChosenImages
from studies.reproduce.paper import chosen
from tests.studies.reproductions import SIZES


def test_papers_are_complete_and_their_options_are_json():
    for name, paper in PAPERS.items():
        assert paper.name == name
        for preset in ("smoke", "quick", "acceptance", "full"):
            parts = chosen(paper, preset).values()
            assert {type(one) for one in parts} <= {ChosenImages, ChosenEpisodes}
            every = [(one, m) for one in parts if isinstance(one, ChosenImages) for m in one.every]
            assert every
            for one, method in every:
                assert len({m.name for m in one.every}) == len(one.every)
                assert one.part.reference in [m.name for m in one.methods]
                json.dumps(dict(method.options), allow_nan=False)
                pickle.dumps(method)
                shape = (3, 32, 32) if one.part.data == "cifar10" else (1, 8, 8)
                trainee = method.build(Setup(shape, 10, 0, one.sizes, method.options, None))
                own = {id(p) for p in trainee.learner.parameters()}
                held = {
                    id(p)
                    for phase in (*trainee.before, *trainee.phases)
                    for group in phase.optimizer.param_groups
                    for p in group["params"]
                }
                assert held == own, method.name


def test_methods_of_one_seed_begin_with_the_same_weights():
    methods = MNIST.methods("smoke")
    first = [
        m.build(Setup((1, 4, 4), 10, 3, SIZES, m.options)).learner.network.weights()
        for m in methods
    ]
    for weights in first[1:]:
        for name, value in weights.items():
            assert torch.equal(value, first[0][name])
    w = first[0]["layer1_weight"]
    assert float(w.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.02)


def test_what_is_asked_for_is_checked():
    paper = PAPERS["strong-dfc"]
    with pytest.raises(UnknownNameError, match="Did you mean 'dfc-ss'"):
        chosen(paper, "smoke", ["dfc-sss"])
    with pytest.raises(UnknownNameError, match="preset"):
        chosen(paper, "smokey")
    only = chosen(paper, "smoke", ["weak-in-noise"])["mnist"]
    assert isinstance(only, ChosenImages)
    assert not only.methods
    assert only.sweep is not None
    assert [m.name for m in only.sweep.methods] == ["weak-in-noise"]
    assert list(chosen(paper, "smoke", ["bp"])["mnist"].about) == ["bp"]
    assert resized(SIZES, 64, 2, [4, 4]).seeds == (4,)
    for wrong in ((4, 1, None), (64, 0, None), (64, 1, [-1]), (64, 1, [])):
        with pytest.raises(ConfigurationError):
            resized(SIZES, *wrong)
