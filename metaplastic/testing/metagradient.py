"""What every meta-gradient must do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from metaplastic.credit import CreditAssignment, DirectFeedback
from metaplastic.episodes import Episodes
from metaplastic.learner import Learner
from metaplastic.metagradient import Divergence, MetaGradient, Unrolled
from metaplastic.networks import Network
from metaplastic.rules import Coefficient, Delta, Oja, PlasticityRule
from metaplastic.testing.loop import NOISE, LearnerBench, LearnerFixtures, gradient, grads
from metaplastic.testing.oracles import (
    assert_close,
    assert_equal,
    copied,
    global_chance_untouched,
    seeded,
    unlike,
)
from metaplastic.testing.parts import mlp

SIZES = [(1, 1, 1, 1), (1, 4, 3, 2), (5, 3, 1, 1)]
"""Episodes, presentations, examples and queries."""


@dataclass(frozen=True)
class MetaBench:
    """A meta-gradient, and the parts of its learners."""

    method: MetaGradient
    parts: LearnerBench
    classes: bool = True

    def learner(self) -> Learner:
        """See LearnerBench."""
        return self.parts.learner(classes=self.classes)

    def episodes(self, *sizes: int) -> Episodes:
        """See LearnerBench."""
        return self.parts.episodes(*sizes, classes=self.classes)

    def gradient(self, learner: Learner, shown: Episodes, seed: int = NOISE) -> dict[str, Tensor]:
        """What it adds to the empty ``.grad``."""
        return gradient(learner, shown, self.method, seed)

    def draws(self, learner: Learner, shown: Episodes) -> bool:
        """Whether chance enters its gradient."""
        one, two = (self.gradient(learner, shown, seed) for seed in (1, 2))
        return unlike(one, two, 1e-12) != {}


class MetaGradientContract(LearnerFixtures):
    """Subclass it with a fixture ``metagradient``, and with ``exact`` False where it does not
    compute the whole gradient. Learners are made of the fixtures ``network``, ``credit``, ``rule``,
    ``shape`` and ``batch``, with defaults.
    """

    @pytest.fixture
    def metagradient(self) -> MetaGradient:
        """The meta-gradient to be tested."""
        raise NotImplementedError("override the fixture `metagradient`")

    @pytest.fixture
    def exact(self) -> bool:
        """Whether it must equal ``Unrolled()``."""
        return True

    @pytest.fixture
    def network(self) -> Network:
        """A network with 3 outputs."""
        return mlp()

    @pytest.fixture
    def credit(self) -> CreditAssignment:
        """A credit with Parameters."""
        return DirectFeedback(bias=True)

    @pytest.fixture
    def rule(self) -> PlasticityRule | Mapping[str, PlasticityRule | None]:
        """A rule with Parameters, some of them under a penalty."""
        return Oja(Coefficient(0.02, granularity="neuron", bound="tanh", l1=0.01))

    @pytest.fixture
    def following(self) -> PlasticityRule:
        """A rule without bounds: it follows a target as far as it may be."""
        return Delta(0.1, learned=True)

    @pytest.fixture(params=[True, False], ids=["classes", "regression"])
    def meta(
        self, request: pytest.FixtureRequest, metagradient: MetaGradient, bench: LearnerBench
    ) -> MetaBench:
        """All of these."""
        return MetaBench(metagradient, bench, request.param)

    def test_adds_to_what_is_there(self, meta: MetaBench) -> None:
        """As ``backward`` does, to the ``.grad`` of every Parameter."""
        learner, shown = meta.learner(), meta.episodes()
        alone = meta.gradient(learner, shown)
        for p in learner.parameters():
            p.grad = torch.ones_like(p)
        meta.method.gradient(learner, shown, generator=seeded(NOISE))
        assert_close({n: g - 1 for n, g in grads(learner).items()}, alone, 1e-10)

    def test_never_steps(self, meta: MetaBench) -> None:
        """Parameters, buffers and episodes are bitwise as they were."""
        learner, shown = meta.learner(), meta.episodes()
        tensors = {f.name: getattr(shown, f.name) for f in fields(shown)}
        given = {
            "learner": dict(learner.state_dict()),
            "episodes": {n: t for n, t in tensors.items() if t is not None},
        }
        before = copied(given)
        identities = [id(p) for p in learner.parameters()]
        meta.gradient(learner, shown)
        assert_equal({**given, "learner": dict(learner.state_dict())}, before)
        assert [id(p) for p in learner.parameters()] == identities
        assert all(p.requires_grad for p in learner.parameters())

    def test_chance_comes_from_the_generator_alone(self, meta: MetaBench) -> None:
        """The same seed gives the same gradient; global random numbers are left alone."""
        learner, shown = meta.learner(), meta.episodes()
        with global_chance_untouched():
            first = meta.gradient(learner, shown)
            assert_close(meta.gradient(learner, shown), first, 1e-12)

    def test_its_outcome_says_how_the_learner_did(self, meta: MetaBench) -> None:
        """The scores of the unchanged learner on every episode, without a graph."""
        learner, shown = meta.learner(), meta.episodes()
        outcome = meta.method.gradient(learner, shown, generator=seeded(NOISE))
        wanted = meta.method.evaluate(learner, shown, generator=seeded(NOISE))
        assert outcome.kept == tuple(range(len(shown)))
        assert outcome.diverged == ()
        assert not outcome.loss.requires_grad
        assert_close({"loss": outcome.loss.cpu()}, {"loss": wanted.loss}, 1e-10)
        assert (outcome.accuracy is None) == (wanted.accuracy is None)
        if outcome.accuracy is not None and wanted.accuracy is not None:
            assert torch.equal(outcome.accuracy.cpu(), wanted.accuracy)

    def test_a_diverged_episode_is_left_out_and_reported(
        self, meta: MetaBench, following: PlasticityRule
    ) -> None:
        """Every gradient is finite, and where chance plays no part that of the others alone."""
        meta = replace(meta, parts=replace(meta.parts, rule=following), classes=False)
        learner, shown = meta.learner(), meta.episodes(3, 4)
        target = shown.support_y.clone()
        target[1] *= 1e200
        spoiled = replace(shown, support_y=target)
        learner.zero_grad(set_to_none=True)
        outcome = meta.method.gradient(learner, spoiled, generator=seeded(NOISE))
        found = grads(learner)
        assert outcome.kept == (0, 2)
        assert outcome.loss.shape == (2,)
        assert [d.episode for d in outcome.diverged] == [1]
        assert all(isinstance(d, Divergence) for d in outcome.diverged)
        if not meta.draws(learner, shown[[0, 2]]):
            assert_close(found, meta.gradient(learner, shown[[0, 2]]), 1e-10)

    def test_nothing_is_left_where_all_diverged(
        self, meta: MetaBench, following: PlasticityRule
    ) -> None:
        """No episode is kept, and every gradient is finite nevertheless."""
        meta = replace(meta, parts=replace(meta.parts, rule=following), classes=False)
        learner, shown = meta.learner(), meta.episodes(2, 4)
        spoiled = replace(shown, support_y=1e200 * shown.support_y)
        outcome = meta.method.gradient(learner, spoiled, generator=seeded(NOISE))
        assert outcome.kept == ()
        assert [d.episode for d in outcome.diverged] == [0, 1]
        grads(learner)

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_any_number_of_episodes_and_examples(
        self, meta: MetaBench, sizes: tuple[int, int, int, int]
    ) -> None:
        """One of each, and odd numbers."""
        count, presentations, batch, queries = sizes
        shown = meta.episodes(count, presentations, min(batch, meta.parts.batch), queries)
        found = meta.gradient(meta.learner(), shown)
        assert math.isfinite(sum(float(g.abs().sum()) for g in found.values()))

    def test_is_of_the_mean_over_episodes(self, meta: MetaBench) -> None:
        """The mean of the gradients of one episode each, where chance plays no part."""
        learner, shown = meta.learner(), meta.episodes(3)
        if meta.draws(learner, shown):
            pytest.skip("chance enters its gradient")
        each = [meta.gradient(learner, shown[[e]]) for e in range(3)]
        mean = {n: torch.stack([g[n] for g in each]).mean(0) for n in each[0]}
        assert_close(meta.gradient(learner, shown), mean, 1e-10)

    def test_equals_the_unrolled_gradient(self, meta: MetaBench, exact: bool) -> None:
        """If it is exact; it is not 0 in any case."""
        learner, shown = meta.learner(), meta.episodes()
        found = meta.gradient(learner, shown)
        assert any(bool(g.any()) for g in found.values())
        if exact:
            assert_close(found, gradient(learner, shown, Unrolled()), 1e-10)
