"""What every credit must do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaplastic.credit import CreditAssignment
from metaplastic.evaluation import evaluate
from metaplastic.hinge import Record
from metaplastic.learner import Learner
from metaplastic.metagradient import Unrolled
from metaplastic.portable import load_rule, save_rule
from metaplastic.rules import Delta, Eligibility, Hebb, PlasticityRule
from metaplastic.testing.heard import assert_sent, rules_of
from metaplastic.testing.loop import (
    NOISE,
    LearnerBench,
    LearnerFixtures,
    assert_one_gradient_on_all_ways,
    assert_slope,
    gradient,
)
from metaplastic.testing.oracles import (
    assert_close,
    assert_equal,
    assert_structure,
    copied,
    global_chance_untouched,
    seeded,
    unlike,
    without_autograd,
)
from metaplastic.testing.parts import FIELDS, Silent, known

SIZES = [(1, 1, 1, 1), (1, 3, 2, 5), (3, 5, 1, 2), (2, 1, 3, 1)]
"""Episodes, presentations, examples and queries."""


class CreditContract(LearnerFixtures):
    """Subclass it with a fixture ``credit``, a template. What runs beside it are the fixtures
    ``network``, ``rule``, ``shape`` and ``batch``, with defaults.
    """

    @pytest.fixture
    def credit(self) -> CreditAssignment:
        """The credit to be tested."""
        raise NotImplementedError("override the fixture `credit`")

    @pytest.fixture
    def exact(self) -> bool:
        """Whether the outer loop differentiates the whole of it; False where it declares something
        a constant.
        """
        return True

    @pytest.fixture
    def rule(
        self, credit: CreditAssignment
    ) -> PlasticityRule | Mapping[str, PlasticityRule | None]:
        """The rule of every group, or rules by pattern; by default one for what is sent."""
        if "teaching" in credit.provides:
            return Delta(0.02, learned=True, derivative="gain" in credit.provides)
        return Eligibility(0.02) if "modulator" in credit.provides else Hebb(0.02, mix=0.0)

    # --- one presentation -----------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_step_is_pure(self, bench: LearnerBench, dtype: torch.dtype) -> None:
        """It leaves state and presentation as they were, answers the same twice, and its new state
        has the structure, shapes, precision and device of the old.
        """
        learner = bench.learner(dtype=dtype)
        shown = bench.stream(learner)[0]
        state = bench.start(learner)
        given = {"state": state, "x": shown.x, "target": shown.teacher.target}
        given |= {} if shown.noise is None else {"noise": shown.noise}
        before = copied(given)
        after = learner.step(state, shown)
        assert_equal(given, before)
        assert_structure(after, state)
        assert_equal(learner.step(state, shown), after)
        weights = after["weights"]
        assert {(w.dtype, w.device.type) for w in weights.values()} == {(dtype, bench.device)}

    def test_calls_no_autograd(self, bench: LearnerBench) -> None:
        """It runs in inference mode, with the same result."""
        learner = bench.learner()
        stream = bench.stream(learner)
        wanted = bench.run(learner, stream)
        with without_autograd():
            found = bench.run(learner, stream)
        assert_equal(found, wanted)

    def test_every_plastic_group_moves(self, bench: LearnerBench) -> None:
        """Within three presentations, to finite weights."""
        learner = bench.learner()
        first = bench.start(learner)["weights"]
        after = bench.run(learner, bench.stream(learner))["weights"]
        moved = {n for n in first if not torch.equal(after[n], first[n])}
        assert moved == set(learner.plastic)
        assert all(bool(w.isfinite().all()) for w in after.values())

    def test_sends_what_is_asked_for_and_no_more(self, bench: LearnerBench) -> None:
        """Each signal alone, and all that it provides, in the shapes of LocalSignals."""
        mine = bench.learner()
        assert_sent(mine, bench.stream(mine)[0], bench.start(mine), all_groups=True)
        sent = mine.credit.provides
        assert sent <= FIELDS
        for asked in ([], *([name] for name in sorted(sent)), sorted(sent)):
            probe = replace(bench, rule={"*": Silent(asked)})
            learner = probe.learner()
            assert_sent(learner, probe.stream(learner)[0], probe.start(learner), all_groups=False)

    def test_padding_leaves_no_trace(self, bench: LearnerBench) -> None:
        """An example of weight 0 changes nothing beside others, and neither does a presentation
        that is nothing else.
        """
        learner = bench.learner()
        shown = bench.episodes(1, 3).to(bench.device, torch.float64)
        x, y = shown.support_x[0], shown.support_y[0]
        ones = torch.ones_like(x.flatten(2)[0, :, :1])
        real = bench.noise(learner, bench.batch)
        state = plain = bench.start(learner)
        for t in range(2):
            noise = None if real is None else real[t]
            given = bench.presentation(learner, x[t], y[t], ones, noise)
            plain = learner.step(plain, given)
        noise = None if real is None else real[2]
        empty = bench.presentation(learner, 3 * x[2], y[2], 0 * ones, noise)
        assert_equal(learner.step(plain, empty), plain)
        if bench.batch == 1:
            return
        few = bench.batch - 1
        fewer = bench.noise(learner, few)
        short = long = state
        for t in range(2):
            weight = torch.cat([ones[:few], 0 * ones[few:]])
            noise = None if real is None else real[t]
            long = learner.step(long, bench.presentation(learner, x[t], y[t], weight, noise))
            if fewer is not None and noise is not None:  # the noise of the examples that are left
                noise = noise[tuple(slice(n) for n in fewer.shape[1:])]
            given = bench.presentation(learner, x[t, :few], y[t, :few], None, noise)
            short = learner.step(short, given)
        assert_close(long["weights"], short["weights"], 1e-12)

    def test_some_groups_learn_alone(self, bench: LearnerBench) -> None:
        """The groups of one role, and twins with them, where nobody asks for the others: the
        changes of all together, but for weights whose feedback learns before they do.
        """
        learner = bench.learner()
        shown, state, rules = bench.stream(learner)[0], bench.start(learner), rules_of(learner)

        def changes(names: set[str]) -> dict[str, Tensor]:
            record = Record({name: rules[name] for name in names})
            learner.credit.present(learner.network, state, shown, record)
            return record.change

        together, groups = changes(set(rules)), learner.groups()
        own = rules.keys() & learner.credit.groups().keys()
        for role in {groups[name].role for name in rules}:
            some = {name for name in rules if groups[name].role == role}
            some |= {str(groups[name].twin) for name in some if groups[name].twin}
            some |= {name for name in rules if groups[name].twin in some}
            found = changes(some)
            assert found.keys() == some
            if not own or own <= some:
                assert_close(found, {name: together[name] for name in some}, 1e-12)

    # --- the outer loop -------------------------------------------------------------------------

    def test_all_ways_through_the_loop_give_one_gradient(self, bench: LearnerBench) -> None:
        """Episodes at once or one by one, checkpointed or not."""
        assert_one_gradient_on_all_ways(bench)

    @pytest.mark.parametrize("classes", [True, False])
    def test_meta_gradient_equals_central_differences(
        self, bench: LearnerBench, exact: bool, classes: bool
    ) -> None:
        """Through four presentations, for classification and regression."""
        if not exact:
            pytest.skip("it declares that the outer loop takes something for a constant")
        assert_slope(bench, classes)

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_any_number_of_episodes_and_examples(
        self, bench: LearnerBench, sizes: tuple[int, int, int, int]
    ) -> None:
        """One of each, and odd numbers: every Parameter gets a finite gradient."""
        count, presentations, batch, queries = sizes
        shown = bench.episodes(count, presentations, min(batch, bench.batch), queries)
        gradient(bench.learner(), shown, Unrolled())

    def test_learned_feedback_has_a_gradient(self, bench: LearnerBench) -> None:
        """Each Parameter of its own is read: none of their gradients is 0."""
        learner = bench.learner()
        found = gradient(learner, bench.episodes(), Unrolled())
        unread = [n for n, _ in learner.credit.named_parameters() if not found[f"credit.{n}"].any()]
        assert unread == []

    def test_chance_comes_from_the_generator_alone(self, bench: LearnerBench) -> None:
        """The same seed gives the same gradient and another seed another one, where anything is
        drawn; global random numbers are left alone.
        """
        learner, shown = bench.learner(), bench.episodes()
        with global_chance_untouched():
            first = gradient(learner, shown, Unrolled())
            assert_close(gradient(learner, shown, Unrolled()), first, 1e-12)
            other = gradient(learner, shown, Unrolled(), seed=NOISE + 1)
        draws = bool(learner.resampled) or bench.noise(learner, 1) is not None
        assert (unlike(other, first, 1e-12) != {}) == draws

    def test_what_is_given_stays_as_it_was(self, bench: LearnerBench) -> None:
        """Episodes, Parameters and buffers."""
        learner, shown = bench.learner(), bench.episodes()
        given = {"learner": dict(learner.state_dict()), "x": shown.support_x, "y": shown.support_y}
        before = copied(given)
        gradient(learner, shown, Unrolled())
        assert_equal(given, before)

    # --- how it is kept -------------------------------------------------------------------------

    def test_binding_again_keeps_its_weights(self, bench: LearnerBench) -> None:
        """The template stays without weights; what was bound keeps them where they fit."""
        network = copy.deepcopy(bench.network)
        needs = {name: rule.needs for name, rule in rules_of(bench.learner()).items()}
        needs = {name: asked for name, asked in needs.items() if name in network.groups()}
        before = copied(dict(bench.credit.state_dict()))
        bound = bench.credit.bind(network, needs, seeded(1))
        assert_equal(dict(bench.credit.state_dict()), before)
        again = bound.bind(network, needs, seeded(2))
        assert again is not bound
        assert_equal(again.weights(), bound.weights())
        assert again.groups().keys() == again.weights().keys()
        for name, group in again.groups().items():
            assert again.weights()[name].shape == (group.n_out, group.n_in), name

    def test_a_state_dict_brings_it_back(self, bench: LearnerBench) -> None:
        """Into a learner that was drawn otherwise: the same losses."""
        learner, other, shown = bench.learner(), bench.learner(seed=1), bench.episodes()
        other.load_state_dict(learner.state_dict())
        wanted = evaluate(learner, shown, generator=seeded())
        assert_equal(evaluate(other, shown, generator=seeded()).loss, wanted.loss)

    def test_a_file_brings_it_back(self, bench: LearnerBench, tmp_path: Path) -> None:
        """``save_rule`` and ``load_rule`` onto the same network: the same losses."""
        learner, shown = bench.learner(), bench.episodes()
        save_rule(learner, tmp_path / "rule.safetensors")
        credit, rules = load_rule(
            tmp_path / "rule.safetensors",
            learner.network,
            policy="exact",
            known=known(learner.credit, *rules_of(learner).values()),
        )
        other = Learner(copy.deepcopy(learner.network), credit, rules, learner.objective)
        wanted = evaluate(learner, shown, generator=seeded())
        assert_equal(evaluate(other, shown, generator=seeded()).loss, wanted.loss)
