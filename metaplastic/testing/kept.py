"""How a rule is bound, copied, described and kept in files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from metaplastic.credit import Backprop
from metaplastic.errors import ConfigurationError
from metaplastic.learner import Learner
from metaplastic.portable import load_rule, save_rule
from metaplastic.rule_file import LearnedRule, rebuild
from metaplastic.rules import Coefficient, PlasticityRule
from metaplastic.testing.loop import LearnerBench
from metaplastic.testing.oracles import assert_equal, copied
from metaplastic.testing.parts import EverySignal, known, mlp
from metaplastic.testing.synapses import GROUP, OTHER_SIZES, SynapseBench


class KeptRule:
    """The part of RuleContract about what a rule is made with."""

    def test_a_template_binds_without_changing(self, rule: PlasticityRule) -> None:
        """Every group gets Parameters of its own, but for those of the granularity network."""
        before = copied(rule.state_dict())
        made = [rule.bind(group) for group in (GROUP, GROUP, *OTHER_SIZES)]
        assert_equal(dict(rule.state_dict()), before)
        parts = [m for m in rule.modules() if isinstance(m, Coefficient)]
        shared = {id(p) for m in parts if m.granularity == "network" for p in m.parameters()}
        own = [id(p) for m in made for p in m.parameters() if id(p) not in shared]
        assert len(own) == len(set(own))
        assert not {id(p) for p in rule.parameters()} & set(own)

    def test_a_copy_is_the_same_rule_with_numbers_of_its_own(self, bench: SynapseBench) -> None:
        """``copy.deepcopy``."""
        shown = [bench.rows(seed) for seed in range(2)]
        wanted = bench.after(shown)
        other = copy.deepcopy(bench)
        assert_equal(other.after(shown), wanted)
        with torch.no_grad():
            for p in other.bound.parameters():
                p.zero_()
        assert_equal(bench.after(shown), wanted)

    def test_its_description_makes_it_again(self, bench: SynapseBench) -> None:
        """From arguments that went through JSON, as they do in a rule file."""
        described = json.loads(json.dumps(bench.rule.describe(), allow_nan=False))
        objective = {"type": "CrossEntropy", "scale": "example"}
        learned = LearnedRule(Backprop().describe(), {"*": described}, objective, {}, {}, {})
        made = rebuild(learned, known(bench.rule))[1]["*"]
        assert made is not None
        assert type(made) is type(bench.rule)
        assert (made.needs, made.scope) == (bench.rule.needs, bench.rule.scope)
        assert_equal(dict(made.state_dict()), dict(bench.rule.state_dict()))
        shown = [bench.rows(seed) for seed in range(2)]
        assert_equal(bench.with_rule(made).after(shown), bench.after(shown))

    def test_a_file_brings_its_coefficients_back(
        self, rule: PlasticityRule, tmp_path: Path
    ) -> None:
        """``save_rule`` and ``load_rule`` onto another network of the same shape."""
        learner = LearnerBench(mlp(), EverySignal(), {"*": rule}).learner()
        save_rule(learner, tmp_path / "rule.safetensors")
        credit, rules = load_rule(
            tmp_path / "rule.safetensors",
            mlp().double(),
            policy="exact",
            known=known(learner.credit, rule),
        )
        other = Learner(mlp().double(), credit, rules)
        assert_equal(dict(other.rules.state_dict()), dict(learner.rules.state_dict()))

    def test_its_plainest_form_is_a_rule(self, bench: SynapseBench) -> None:
        """``with_rate`` gives one, or says that there is none."""
        try:
            plain = bench.rule.with_rate(0.01)
        except ConfigurationError:
            pytest.skip("it has no form with a single rate")
        assert isinstance(plain, PlasticityRule)
        bench.with_rule(plain).after([bench.rows(0, plain.needs)])
