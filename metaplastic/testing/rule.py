"""What every plasticity rule must do."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metaplastic.rules import PlasticityRule
from metaplastic.signals import Kind
from metaplastic.testing.kept import KeptRule
from metaplastic.testing.loop import (
    LearnerBench,
    assert_one_gradient_on_all_ways,
    assert_slope,
    available,
)
from metaplastic.testing.oracles import (
    assert_close,
    assert_equal,
    assert_structure,
    copied,
    global_chance_untouched,
    leaves,
    without_autograd,
)
from metaplastic.testing.parts import FIELDS, EverySignal, conv
from metaplastic.testing.synapses import (
    EXAMPLES,
    GROUP,
    OTHER_SIZES,
    SITES,
    SynapseBench,
    changed_elsewhere,
    matrix_changed_elsewhere,
)


class RuleContract(KeptRule):
    """Subclass it with a fixture ``rule``, a template with coefficients that move something."""

    @pytest.fixture
    def rule(self) -> PlasticityRule:
        """The rule to be tested."""
        raise NotImplementedError("override the fixture `rule`")

    @pytest.fixture(params=["cpu", "cuda"])
    def device(self, request: pytest.FixtureRequest) -> str:
        """Where it runs."""
        return available(request.param)

    @pytest.fixture
    def bench(self, rule: PlasticityRule, device: str) -> SynapseBench:
        """The rule on 4 x 3 synapses."""
        return SynapseBench(rule, device)

    @pytest.fixture
    def loop(self, rule: PlasticityRule, device: str) -> LearnerBench:
        """The rule in a network with a convolution."""
        return LearnerBench(conv(), EverySignal(), {"*": rule}, device=device)

    # --- what it sees ---------------------------------------------------------------------------

    def test_declares_what_it_reads(self, rule: PlasticityRule) -> None:
        """It names optional signals that exist, a scope, and takes nothing but local arguments."""
        assert isinstance(rule.needs, frozenset)
        assert rule.needs <= FIELDS
        assert rule.scope in ("synapse", "group")
        arguments = list(inspect.signature(rule.update).parameters)
        assert arguments == ["weight", "signals", "traces", "coefficients"]

    def test_a_synapse_sees_its_own_units_alone(self, bench: SynapseBench) -> None:
        """Other signals at all other units, other weights and coefficients of all other synapses
        leave its changes as they were.
        """
        if bench.rule.scope == "group":
            pytest.skip("its scope is the whole group")
        shown = [bench.rows(seed) for seed in range(3)]
        weight, coefficients = bench.weight(), bench.bound.coefficients()
        plain, _ = bench.live(weight, shown)
        for i in range(GROUP.n_out):
            for j in range(GROUP.n_in):
                other, _ = bench.live(
                    matrix_changed_elsewhere(weight, i, j),
                    [changed_elsewhere(rows, i, j) for rows in shown],
                    coefficients={
                        n: matrix_changed_elsewhere(c, i, j) for n, c in coefficients.items()
                    },
                )
                torch.testing.assert_close(other[i, j], plain[i, j], rtol=1e-12, atol=1e-14)

    def test_reads_the_signals_that_it_needs_and_no_others(self, bench: SynapseBench) -> None:
        """Fields that it did not ask for change nothing where they are there."""
        alone = bench.after([bench.rows(seed) for seed in range(3)])
        assert_equal(bench.after([bench.rows(seed, FIELDS) for seed in range(3)]), alone)

    def test_one_modulator_is_as_many_alike(self, bench: SynapseBench) -> None:
        """A modulator (N, 1) does what the same number for each neuron (N, n_out) does."""
        if "modulator" not in bench.rule.needs:
            pytest.skip("it reads no modulator")
        one = [bench.rows(seed, modulators=1) for seed in range(3)]
        each = [r | {"modulator": r["modulator"].expand(-1, GROUP.n_out)} for r in one]
        assert_close(bench.after(each), bench.after(one), 1e-12)

    # --- what it does ---------------------------------------------------------------------------

    def test_moves_within_three_presentations(self, bench: SynapseBench) -> None:
        """Else nothing here is put to the test: give the fixture coefficients that are not 0."""
        after = bench.after([bench.rows(seed) for seed in range(3)])
        assert not torch.equal(after["weight"], bench.weight())
        assert all(bool(t.isfinite().all()) for t in after.values())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("kind", ["error", "target"])
    def test_change_and_traces_keep_shape_precision_and_device(
        self, bench: SynapseBench, dtype: torch.dtype, kind: Kind
    ) -> None:
        """The change is (n_out, n_in) and like the weights; traces stay as ``init`` made them."""
        bench = replace(bench, dtype=dtype)
        weight = bench.weight()
        traces = bench.bound.init(weight)
        assert all(t.dtype == dtype for t in traces.values())
        seen = bench.seen(bench.rows(), kind)
        change, after = bench.bound.update(weight, seen, traces, bench.bound.coefficients())
        assert_structure(change, weight)
        assert_structure(after, traces)

    def test_any_size_of_group(self, bench: SynapseBench) -> None:
        """Each coefficient is broadcast over the synapses, whatever its granularity."""
        for group in OTHER_SIZES:
            bound = copy.deepcopy(bench.rule).bind(group).to(bench.device, torch.float64)
            weight = bench.weight(group=group)
            coefficients = bound.coefficients()
            for name, value in coefficients.items():
                assert torch.broadcast_shapes(value.shape, weight.shape) == weight.shape, name
            seen = bench.seen(bench.rows(group=group))
            change, _ = bound.update(weight, seen, bound.init(weight), coefficients)
            assert_structure(change, weight)

    def test_what_is_given_stays_as_it_was(self, bench: SynapseBench) -> None:
        """Weights, signals, traces and coefficients are not written to."""
        weight, coefficients = bench.weight(), bench.bound.coefficients()
        shown = [bench.rows(seed) for seed in range(2)]
        _, traces = bench.live(weight, shown[:1])
        given = {
            "weight": weight,
            "traces": traces,
            "coefficients": coefficients,
            "first": shown[0],
            "second": shown[1],
        }
        before = copied(given)
        bench.live(weight, shown, traces=traces, coefficients=coefficients)
        assert_equal(given, before)

    def test_the_answer_depends_on_the_arguments_alone(self, bench: SynapseBench) -> None:
        """The same answer twice, with another presentation in between and no random number."""
        shown = [bench.rows(seed) for seed in range(2)]
        with global_chance_untouched():
            first = bench.after(shown)
            bench.after([bench.rows(7)])
            assert_equal(bench.after(shown), first)

    def test_calls_no_autograd(self, bench: SynapseBench) -> None:
        """It runs in inference mode, with the same result."""
        shown = [bench.rows(seed) for seed in range(2)]
        wanted = bench.after(shown)
        with without_autograd():
            found = bench.after(shown)
        assert_equal(found, wanted)

    def test_vmap_equals_a_loop(self, bench: SynapseBench) -> None:
        """Many episodes at once, each with weights and signals of its own."""
        each = [[bench.rows(10 * e + t) for t in range(2)] for e in range(3)]
        weights = [bench.weight(e) for e in range(3)]
        traces = [bench.bound.init(w) for w in weights]
        loop = [
            bench.live(w, shown, traces=kept)
            for w, shown, kept in zip(weights, each, traces, strict=True)
        ]
        stacked = [{n: torch.stack([e[t][n] for e in each]) for n in each[0][0]} for t in range(2)]
        begun = {n: torch.stack([t[n] for t in traces]) for n in traces[0]}
        found, after = vmap(lambda w, shown, kept: bench.live(w, shown, traces=kept))(
            torch.stack(weights), stacked, begun
        )
        for e, (weight, kept) in enumerate(loop):
            assert_close({"weight": found[e]}, {"weight": weight}, 1e-12)
            assert_close({n: t[e] for n, t in after.items()}, kept, 1e-12)

    def test_padding_leaves_no_trace(self, bench: SynapseBench) -> None:
        """Rows of weight 0 change nothing, be it some of them or all; weights of 1 are as none."""
        shown = [bench.rows(seed) for seed in range(2)]
        ones = torch.ones_like(shown[0]["pre"][:, :1])
        plain = bench.after(shown)
        assert_close(bench.after([r | {"weight": ones} for r in shown]), plain, 1e-12)
        padded = []
        for rows in shown:
            longer = {n: torch.cat([v, 100 * v[:SITES] + 3]) for n, v in rows.items()}
            padded.append(longer | {"weight": torch.cat([ones, 0 * ones[:SITES]])})
        assert_close(bench.after(padded), plain, 1e-12)
        empty = {n: 100 * v for n, v in bench.rows(5).items()} | {"weight": 0 * ones}
        assert_equal(bench.after([*shown, empty]), plain)

    def test_the_order_of_examples_does_not_matter(self, bench: SynapseBench) -> None:
        """What is shown together has no order."""
        order = torch.arange(EXAMPLES * SITES).reshape(EXAMPLES, SITES).roll(1, 0).flatten()
        shown = [bench.rows(seed) for seed in range(2)]
        mixed = [{n: v[order.to(v.device)] for n, v in rows.items()} for rows in shown]
        assert_close(bench.after(mixed), bench.after(shown), 1e-12)

    # --- how the outer loop sees it -------------------------------------------------------------

    def test_gradients_equal_finite_differences(self, bench: SynapseBench) -> None:
        """Of weights and traces after two presentations, with respect to the coefficients, the
        first weights and all signals.
        """
        coefficients = bench.bound.coefficients()
        shown = [bench.rows(seed) for seed in range(2)]
        given = {"weight": bench.weight(), "coefficients": coefficients}
        inputs = leaves(given | {str(t): rows for t, rows in enumerate(shown)})
        count = len(coefficients)

        def live(*values: Tensor) -> tuple[Tensor, ...]:
            weight, *rest = values
            own = dict(zip(coefficients, rest[:count], strict=True))
            signals = iter(rest[count:])
            rows = [{name: next(signals) for name in rows} for rows in shown]
            after, traces = bench.live(weight, rows, coefficients=own)
            return after, *traces.values()

        tensors = [t.detach().clone().requires_grad_() for t in inputs.values()]
        assert torch.autograd.gradcheck(live, tensors, fast_mode=True, eps=1e-6, atol=1e-6)

    def test_all_ways_through_the_loop_give_one_gradient(self, loop: LearnerBench) -> None:
        """Episodes at once or one by one, checkpointed or not."""
        assert_one_gradient_on_all_ways(loop)

    @pytest.mark.parametrize("classes", [True, False])
    def test_meta_gradient_equals_central_differences(
        self, loop: LearnerBench, classes: bool
    ) -> None:
        """Through four presentations to all layers of a network."""
        assert_slope(loop, classes)
