"""The learner: which rule each group follows, learn2learn's face, and its meta-parameters."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metaplastic import (
    Backprop,
    CreditAssignment,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Hebb,
    LayeredNetwork,
    Learner,
    Network,
    Oja,
    PlasticityRule,
    Presentation,
    SquaredError,
    Unrolled,
)
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.inner_loop import Rollout, draw
from metaplastic.rules import Coefficient
from metaplastic.signals import Learn, LocalSignals, State, SynapseGroup
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    meta_gradient,
    mlp,
    normal,
    presentation,
    raw,
    regression,
    seeded,
    shake,
    show,
)


def classifier(rule=None, credit: CreditAssignment | None = None, **options) -> Learner:
    """Tanh layers 4-6-5-3 in float64, every Parameter at random."""
    rule = Oja(0.1) if rule is None else rule
    learner = Learner(mlp(4, 6, 5, 3), credit or DirectFeedback("error"), rule, **options)
    return shake(learner, 1, plasticity=0.2, mixing=0.2, feedback=0.2)


def batch(size: int = 3) -> tuple[Tensor, Tensor]:
    return normal(size, 4, seed=7), torch.randint(3, (size,), generator=seeded(8))


# --- rules by pattern ---


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ({"*": "a"}, {f"layer{i}_{k}": "a" for i in range(3) for k in ("weight", "bias")}),
        ({"role:weight": "a"}, {f"layer{i}_weight": "a" for i in range(3)}),
        ({"position:last": "a"}, {"layer2_weight": "a", "layer2_bias": "a"}),
        ({"position:-1": "a"}, {"layer2_weight": "a", "layer2_bias": "a"}),
        ({"position:first": "a"}, {"layer0_weight": "a", "layer0_bias": "a"}),
        ({"position:1": "a"}, {"layer1_weight": "a", "layer1_bias": "a"}),
        ({"name:layer[01]_w*": "a"}, {"layer0_weight": "a", "layer1_weight": "a"}),
        (
            {"role:bias": None, "position:last": "b", "*": "a"},
            {"layer0_weight": "a", "layer1_weight": "a", "layer2_weight": "b"},
        ),
        ({"*": "a", "position:last": "b"}, dict.fromkeys(["layer0_weight"], "a")),
        (
            {"name:layer1_*": None, "role:weight": "b"},
            {"layer0_weight": "b", "layer2_weight": "b"},
        ),
    ],
)
def test_first_matching_pattern_wins(patterns, wanted):
    rules = {"a": Oja(0.1), "b": Hebb(0.1), None: None}
    learner = Learner(mlp(4, 6, 5, 3), DirectFeedback(), {p: rules[k] for p, k in patterns.items()})
    found = {n: "b" if not r.decays else "a" for n, r in learner.rules.items()}
    assert {n: found[n] for n in wanted} == wanted
    assert learner.plastic == found.keys()
    if "*" not in patterns:
        assert found == wanted


def test_a_rule_alone_means_the_weights_and_none_means_nothing():
    assert Learner(mlp(4, 5, 3), DirectFeedback(), Oja()).plastic == {
        "layer0_weight",
        "layer1_weight",
    }
    learner = Learner(mlp(4, 5, 3), Backprop(), None).double()
    x, y = normal(2, 4), torch.tensor([0, 2])
    fast = learner.clone()
    fast.adapt(x, y)
    assert torch.equal(fast(x), learner(x))


@pytest.mark.parametrize(
    "pattern", ["role:feedback", "name:conv*", "position:3", "position:7", "position:-4"]
)
def test_a_pattern_without_a_match_is_an_error(pattern):
    with pytest.raises(ConfigurationError, match="matches no synapse group"):
        Learner(mlp(4, 6, 5, 3), DirectFeedback(), {pattern: Oja(), "*": Hebb()})


@pytest.mark.parametrize("pattern", ["last", "position:top", "rule:weight", ""])
def test_a_malformed_pattern_is_an_error(pattern):
    with pytest.raises(ConfigurationError, match="a rule pattern is"):
        Learner(mlp(4, 6, 5, 3), DirectFeedback(), {pattern: Oja()})


def test_groups_do_not_share_coefficients_unless_they_are_of_the_network():
    own = Learner(mlp(4, 6, 3), DirectFeedback(), Oja(0.1, granularity="synapse"))
    assert raw(own, "layer0_weight", "plasticity").shape == (6, 4)
    assert raw(own, "layer1_weight", "plasticity").shape == (3, 6)
    one = Learner(mlp(4, 6, 3), DirectFeedback(), Oja(0.1, granularity="network"))
    assert one.rules["layer0_weight"].plasticity is one.rules["layer1_weight"].plasticity
    assert one.rules["layer0_weight"].mix is not one.rules["layer1_weight"].mix


@pytest.mark.parametrize("granularity", ["synapse", "network"])
def test_the_users_rule_and_credit_are_templates(granularity):
    rule, credit = Oja(0.1, granularity=granularity), DirectFeedback()
    before = copy.deepcopy(rule.state_dict())
    learner = shake(Learner(mlp(4, 6, 3), credit, rule), plasticity=1.0)
    assert all(torch.equal(v, before[n]) for n, v in rule.state_dict().items())
    assert list(credit.parameters()) == []
    assert all(v.dtype == before[n].dtype for n, v in rule.state_dict().items())
    assert learner.credit is not credit
    other = Learner(mlp(4, 6, 3), credit, rule)
    assert {id(p) for p in other.rules.parameters()}.isdisjoint(
        id(p) for p in learner.rules.parameters()
    )


# --- meta-parameters ---


def test_every_parameter_is_in_one_group_of_its_role():
    rules = {"position:last": Delta(0.1, learned=True), "role:weight": Oja(0.1)}
    network = LayeredNetwork(
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)),
        trunk=nn.Linear(2, 4),
    )
    learner = Learner(network, DirectFeedback(bias=True), rules)
    names = {id(p): n for n, p in learner.named_parameters()}
    groups = learner.param_groups(lr=0.5, feedback=0.25, mixing=0.125)
    found = {g["name"]: {names[id(p)] for p in g["params"]} for g in groups}
    assert found == {
        "initial": {n for n in names.values() if n.startswith("network")},
        "feedback": {"credit.layer0_feedback1", "credit.layer0_feedback1_bias"},
        "plasticity": {"rules.layer0_weight.plasticity.raw"},
        "mixing": {"rules.layer0_weight.mix.raw"},
        "control": {"rules.layer1_weight.rate.raw", "rules.layer1_bias.rate.raw"},
    }
    assert sum(len(g["params"]) for g in groups) == len(names)
    assert {g["name"]: g["lr"] for g in groups} == {
        "initial": 0.5,
        "feedback": 0.25,
        "plasticity": 0.5,
        "mixing": 0.125,
        "control": 0.5,
    }
    with pytest.raises(ConfigurationError, match="roles are"):
        learner.param_groups(feedbacks=0.1)


@pytest.mark.parametrize("initial", ["fixed", "resampled"])
def test_what_is_not_trained_is_a_buffer(initial):
    network = mlp(4, 6, 3)
    network[0].weight.requires_grad_(False)
    learner = Learner(network, DirectFeedback(weights="fixed"), Delta(0.1), initial=initial)
    assert list(learner.parameters()) == []
    assert learner.param_groups() == []
    assert {n for n, _ in learner.named_buffers()} >= {
        "network.body.0.weight",
        "network.body.2.bias",
        "credit.layer0_feedback1",
        "rules.layer0_weight.rate.raw",
    }
    learner.double()
    assert learner.network.weights()["layer0_weight"].dtype == torch.float64


def test_a_learner_has_its_networks_precision():
    """Feedback and coefficients too, so that it runs as it was built."""
    learner = Learner(mlp(4, 6, 3), DirectFeedback(bias=True), {"*": Oja(0.1)})
    assert {p.dtype for p in learner.parameters()} == {torch.float64}
    learner.clone().adapt(*batch())


def test_a_frozen_layer_gets_no_gradient_and_the_others_do():
    network = mlp(4, 6, 3)
    network[0].weight.requires_grad_(False)
    learner = shake(Learner(network, DirectFeedback(), Oja(0.1)), feedback=0.1)
    gradient = meta_gradient(learner, classification(2, 3, 2, 4, 3))
    assert "network.body.0.weight" not in gradient
    assert {"network.body.0.bias", "network.body.2.weight"} <= gradient.keys()


def test_a_parameter_frozen_after_building_is_left_alone():
    learner = classifier()
    frozen = learner.network.parameter("layer0_weight").requires_grad_(False)
    outcome = Unrolled().gradient(learner, classification(2, 3, 2, 4, 3))
    assert outcome.kept == (0, 1)
    assert frozen.grad is None
    assert learner.network.parameter("layer1_weight").grad is not None


# --- weights drawn in every episode ---


def test_resampled_weights_are_drawn_per_episode_from_the_generator():
    credit = DirectFeedback("target", weights="resampled")
    learner = Learner(mlp(4, 6, 3), credit, Oja(0.1), initial="resampled").double()
    episodes = classification(3, 2, 2, 4, 3)
    first, again = draw(learner, episodes, seeded(1)), draw(learner, episodes, seeded(1))
    other = draw(learner, episodes, seeded(2))
    assert first.weights.keys() == set(learner.groups())
    for name, weights in first.weights.items():
        assert torch.equal(weights, again.weights[name])
        if not name.endswith("bias"):
            assert not torch.equal(weights, other.weights[name])
            assert not torch.equal(weights[0], weights[1])
            assert 0.3 < float(weights.var()) * weights.shape[-1] / 2 < 3  # He: 2 / n_in
    begun = Rollout(learner, episodes, first).moving["weights"]
    assert all(torch.equal(begun[n], first.weights[n]) for n in first.weights)
    initial = [p for n, p in learner.named_parameters() if n.startswith(("network", "credit"))]
    assert initial == []


def test_resampled_episodes_do_not_depend_on_how_they_are_batched():
    credit = DirectFeedback("target", weights="resampled")
    learner = Learner(mlp(4, 6, 3), credit, Oja(0.1), initial="resampled")
    shake(learner, plasticity=0.3)
    episodes = classification(3, 4, 2, 4, 3)
    found = [
        meta_gradient(learner, episodes, Unrolled(batching=b, checkpoint_every=k), seeded(1))
        for b, k in (("vmap", None), ("loop", None), ("vmap", 2))
    ]
    assert_close(found[1], found[0], 1e-12)
    assert_close(found[2], found[0], 1e-12)
    other = meta_gradient(learner, episodes, generator=seeded(2))
    assert deviation(other["rules.layer0_weight.mix.raw"], found[0]["rules.layer0_weight.mix.raw"])


def test_resampled_weights_without_a_generator_are_an_error():
    learner = Learner(mlp(4, 3), DirectFeedback(), Oja(0.1), initial="resampled").double()
    for call in (
        learner.clone,
        lambda: learner(normal(2, 4)),
        lambda: Unrolled().gradient(learner, classification(1, 2, 2, 4, 3)),
    ):
        with pytest.raises(ConfigurationError, match="generator"):
            call()
    fast = learner.clone(generator=seeded(1))
    assert torch.equal(fast(normal(2, 4)), learner.clone(generator=seeded(1))(normal(2, 4)))


class Anchored(PlasticityRule):
    """Pulls the weights back to where they began."""

    def __init__(self) -> None:
        super().__init__()
        self.pull = Coefficient(0.5, learned=False)

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {"begin": weight}

    def update(self, weight, signals, traces, coefficients):
        drift = signals.correlate(signals.post, signals.pre, "sum")
        return drift + coefficients["pull"] * (traces["begin"] - weight), traces


def test_traces_begin_with_the_weights_of_their_own_episode():
    learner = Learner(mlp(4, 3), DirectFeedback(), Anchored(), initial="resampled").double()
    episodes = classification(2, 3, 2, 4, 3)
    draws = draw(learner, episodes, seeded(1))
    together = Rollout(learner, episodes, draws)
    assert torch.equal(
        together.moving["rule"]["layer0_weight"]["begin"], draws.weights["layer0_weight"]
    )


# --- learn2learn's face ---


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("scale", ["example", "batch"])
def test_adapt_to_examples_equals_adapt_to_their_loss(scale, size):
    """Both in the weights and in the gradient that reaches the Parameters."""
    learner = classifier({"*": Oja(0.1)}, objective=CrossEntropy(scale=scale))
    query, answer = normal(5, 4), torch.tensor([0, 1, 2, 0, 1])
    found = []
    for given in ("examples", "loss"):
        fast = learner.clone()
        for step in range(3):
            x, y = normal(size, 4, seed=step), torch.randint(3, (size,), generator=seeded(step))
            fast.adapt(x, y) if given == "examples" else fast.adapt(F.cross_entropy(fast(x), y))
        learner.zero_grad()
        F.cross_entropy(fast(query), answer).backward()
        found.append({n: p.grad.clone() for n, p in learner.named_parameters()})
    assert_close(found[1], found[0], 1e-11)


def test_adapt_to_half_the_summed_square_is_adapt_to_the_targets():
    """The convention of SquaredError: the error is y - output."""
    learner = classifier({"*": Oja(0.1)}, objective=SquaredError())
    x, y, query = normal(3, 4), normal(3, 3, seed=1), normal(5, 4, seed=2)
    one, two = learner.clone(), learner.clone()
    one.adapt(x, y)
    two.adapt(0.5 * (two(x) - y).square().sum(-1).mean())
    assert deviation(two(query), one(query)) < 1e-13


def test_clone_gives_the_meta_gradient_of_the_unrolled_loop():
    learner = classifier()
    episodes = classification(2, 4, 3, 4, 3)
    for first_order in (False, True):
        wanted = meta_gradient(learner, episodes, Unrolled(first_order=first_order))
        learner.zero_grad()
        for e in range(2):
            fast = learner.clone(first_order=first_order)
            for x, y in zip(episodes.support_x[e], episodes.support_y[e], strict=True):
                fast.adapt(x, y)
            loss = F.cross_entropy(fast(episodes.query_x[e]), episodes.query_y[e])
            (loss / 2).backward()
        assert_close({n: p.grad for n, p in learner.named_parameters()}, wanted, 1e-12)


def test_clone_shares_parameters_and_leaves_the_original_as_it_was():
    learner = classifier()
    x, y = batch()
    before = copy.deepcopy(learner.state_dict())
    output = learner(x)
    fast = learner.clone()
    assert [id(p) for p in fast.parameters()] == [id(p) for p in learner.parameters()]
    fast.adapt(x, y)
    deeper = fast.clone()
    halfway = fast(x)
    deeper.adapt(x, y)
    assert not torch.equal(halfway, output)
    assert not torch.equal(deeper(x), halfway)
    assert torch.equal(fast(x), halfway)
    assert torch.equal(learner(x), output)
    assert all(torch.equal(v, before[n]) for n, v in learner.state_dict().items())


def test_clone_has_fast_weights_of_its_own():
    """An optimiser step on the original does not reach a clone made before it."""
    learner = classifier()
    x, y = batch()
    fast, adapted = learner.clone(), learner.clone()
    adapted.adapt(x, y)
    before = fast(x).detach().clone(), adapted(x).detach().clone()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1.0)
    assert torch.equal(fast(x), before[0])
    assert torch.equal(adapted(x), before[1])


def test_step_changes_none_of_its_inputs():
    learner = classifier({"*": Oja(0.1)})
    x, y = batch()
    state = learner.start(3)
    shown = presentation(learner, x, y)
    given = [x, y, *(w for part in ("weights",) for w in state[part].values())]
    given += [v for values in state["coefficients"].values() for v in values.values()]
    copies = [t.detach().clone() for t in given]
    versions = [t._version for t in given]
    after = learner.step(state, shown)
    assert all(torch.equal(t, c) for t, c in zip(given, copies, strict=True))
    assert versions == [t._version for t in given]
    assert after.keys() == state.keys()
    assert after["weights"].keys() == state["weights"].keys()


def test_field_is_the_change_that_step_applies():
    learner = classifier({"*": Oja(0.1)})
    x, y = batch()
    state, shown = learner.start(3), presentation(learner, x, y)
    change, after = learner.field(state, shown), learner.step(state, shown)
    assert change.keys() == learner.plastic
    for name, delta in change.items():
        assert torch.equal(after["weights"][name], state["weights"][name] + delta)


def test_adapt_without_gradients_gives_the_same_weights():
    learner = classifier()
    x, y = batch()
    outputs = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            fast = learner.clone()
            fast.adapt(x, y)
            outputs.append(fast(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_learn2learns_arguments_are_accepted():
    learner = classifier()
    x, y = batch()
    fast = learner.clone(first_order=False, allow_unused=True, allow_nograd=True)
    fast.adapt(F.cross_entropy(fast(x), y), first_order=False, allow_unused=True)
    assert fast.module is learner.network


def test_adapt_needs_a_clone_and_a_loss_of_its_last_output():
    learner = classifier()
    x, y = batch()
    with pytest.raises(ConfigurationError, match="clone"):
        learner.adapt(x, y)
    fast = learner.clone()
    with pytest.raises(ConfigurationError, match="last output"):
        fast.adapt(torch.zeros((), requires_grad=True))
    with torch.no_grad():
        blind = F.cross_entropy(fast(x), y)
    with pytest.raises(ConfigurationError, match="gradients"):
        fast.adapt(blind)
    with pytest.raises(ConfigurationError, match="scalar"):
        fast.adapt(F.cross_entropy(fast(x), y, reduction="none"))
    loss = F.cross_entropy(fast(x), y)
    fast.adapt(loss)
    with pytest.raises(ConfigurationError, match="adapt once"):
        fast.adapt(loss)


def test_adapt_to_the_loss_of_another_learner_is_an_error():
    learner, x, y = classifier(), *batch()
    fast, other = learner.clone(), learner.clone()
    fast(x)
    with pytest.raises(ConfigurationError, match="last output"):
        fast.adapt(F.cross_entropy(other(x), y))


def test_adapt_to_a_loss_does_not_hold_the_target():
    learner = classifier(credit=DirectFeedback("target"))
    x, y = batch()
    fast = learner.clone()
    with pytest.raises(CompatibilityError, match="target"):
        fast.adapt(F.cross_entropy(fast(x), y))


# --- copies, files, functional calls ---


def copies_of(learner: Learner) -> dict[str, Learner]:
    stream = io.BytesIO()
    torch.save(learner, stream)
    stream.seek(0)
    return {
        "deepcopy": copy.deepcopy(learner),
        "pickle": pickle.loads(pickle.dumps(learner)),
        "torch.save": torch.load(stream, weights_only=False),
    }


@pytest.mark.parametrize("conv", [False, True])
def test_a_copy_learns_as_the_original_and_shares_nothing_with_it(conv):
    if conv:
        chain = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3)
        )
        network = LayeredNetwork(chain, input_shape=(1, 4, 4), trunk=nn.Identity())
        learner = Learner(network, DirectFeedback("target", bias=True), Oja(0.1)).double()
        episodes = classification(2, 3, 2, (1, 4, 4), 3)
    else:
        learner, episodes = classifier(), classification(2, 3, 2, 4, 3)
    wanted = meta_gradient(learner, episodes)
    for name, twin in copies_of(learner).items():
        own = {id(p) for p in learner.parameters()}
        assert own.isdisjoint(id(p) for p in twin.parameters()), name
        assert_close(meta_gradient(twin, episodes), wanted, 0.0)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert_close(meta_gradient(learner, episodes), wanted, 0.0)


def test_state_dict_carries_everything_over():
    learner, episodes = classifier(), classification(2, 3, 2, 4, 3)
    wanted = meta_gradient(learner, episodes)
    other = Learner(mlp(4, 6, 5, 3, seed=5), DirectFeedback(), Oja(0.3), generator=seeded(9))
    other.double().load_state_dict(learner.state_dict())
    assert_close(meta_gradient(other, episodes), wanted, 0.0)


def test_functional_call_uses_the_parameters_it_is_given():
    learner, other = classifier(), shake(classifier(), 3, initial=0.5)
    x, _ = batch()
    given = dict(other.named_parameters())
    assert torch.equal(functional_call(learner, given, (x,)), other(x))
    assert not torch.equal(learner(x), other(x))


def test_functional_call_reaches_feedback_and_coefficients():
    """What one presentation does is decided by the given Parameters alone."""

    class Once(nn.Module):
        def __init__(self, learner: Learner) -> None:
            super().__init__()
            self.learner = learner

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return show(self.learner, x[None], y[None])["weights"]["layer0_weight"]

    changed = shake(classifier(), 3, plasticity=0.3, mixing=0.3, feedback=0.4)
    one, other = Once(classifier()), Once(changed)
    x, y = batch()
    wanted = other(x, y)
    assert torch.equal(functional_call(one, dict(other.named_parameters()), (x, y)), wanted)
    for part in ("plasticity", "mix", "feedback"):
        given = {n: p for n, p in other.named_parameters() if part not in n}
        assert not torch.equal(functional_call(one, given, (x, y)), wanted), part


# --- noise ---


class NoisyBackprop(Backprop):
    """Backpropagation on inputs with noise, which the inner loop draws."""

    def noise(self, network: Network, lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return 0.3 * torch.randn(*lead, 4, generator=generator)

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert presentation.noise is not None
        noisy = Presentation(presentation.x + presentation.noise, presentation.teacher)
        return super().present(network, state, noisy, learn)


def test_noise_is_drawn_once_so_that_checkpoints_repeat_it():
    learner = classifier({"*": Delta(0.25)}, NoisyBackprop())
    episodes = classification(3, 6, 2, 4, 3)
    plain = meta_gradient(learner, episodes, generator=seeded(1))
    for method in (Unrolled(checkpoint_every=2), Unrolled(checkpoint_every=1, batching="vmap")):
        again = meta_gradient(learner, episodes, method, seeded(1))
        assert all(torch.equal(again[n], plain[n]) for n in plain)
    looped = meta_gradient(learner, episodes, Unrolled(batching="loop"), seeded(1))
    assert_close(looped, plain, 1e-12)
    other = meta_gradient(learner, episodes, generator=seeded(2))
    assert deviation(other["network.body.0.weight"], plain["network.body.0.weight"]) > 1e-3


def test_noise_is_part_of_what_is_shown():
    """The same as showing the noisy inputs to a learner without noise."""
    learner = classifier({"*": Delta(0.25)}, NoisyBackprop())
    calm = classifier({"*": Delta(0.25)}, Backprop())
    episodes = classification(2, 3, 2, 4, 3)
    draws = draw(learner, episodes, seeded(1))
    wanted = Unrolled().losses(learner, episodes, draws)[0]
    shown = copy.copy(episodes)
    object.__setattr__(shown, "support_x", episodes.support_x + draws.noise.double())
    found = Unrolled().losses(calm, shown, draw(calm, shown, None))[0]
    assert deviation(found, wanted) < 1e-13


def test_noise_without_a_generator_is_an_error():
    """Else every call would see the same noise."""
    learner = classifier({"*": Delta(0.25)}, NoisyBackprop())
    with pytest.raises(ConfigurationError, match="generator"):
        Unrolled().gradient(learner, classification(2, 3, 2, 4, 3))


# --- one or another combination ---


class Silent(PlasticityRule):
    """Asks for a signal that no credit of the tests sends."""

    needs = frozenset({"modulator"})

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: dict[str, Tensor],
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros_like(weight), traces


def test_a_rule_that_needs_what_the_credit_does_not_send_is_an_error():
    with pytest.raises(CompatibilityError, match=r"Silent on layer0_weight needs \['modulator'\]"):
        Learner(mlp(4, 3), DirectFeedback(), Silent())


def test_a_credit_that_cannot_run_through_the_network_is_an_error():
    class Field(Network):
        def forward(
            self, features: Tensor, weights: dict[str, Tensor], state: State | None = None
        ) -> Tensor:
            return features

        def parameter(self, group: str) -> Tensor:
            raise KeyError(group)

        def groups(self) -> dict[str, SynapseGroup]:
            return {}

        def weights(self) -> dict[str, Tensor]:
            return {}

        def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
            return {}

    with pytest.raises(CompatibilityError, match="runs through a LayeredNetwork, got a Field"):
        Learner(Field(), Backprop(), Delta())


def test_feedback_that_no_plastic_layer_reads_is_not_made():
    learner = Learner(mlp(4, 6, 5, 3), DirectFeedback(), {"name:layer1_weight": Oja()})
    assert learner.credit.weights().keys() == {"layer1_feedback1"}


def test_feedback_is_drawn_from_the_generator():
    def feedback(seed: int | None) -> Tensor:
        g = None if seed is None else seeded(seed)
        learner = Learner(mlp(4, 500, 3), DirectFeedback(scale=0.5), Oja(), generator=g)
        return learner.credit.weights()["layer0_feedback1"]

    assert torch.equal(feedback(1), feedback(1))
    assert torch.equal(feedback(None), feedback(0))
    assert not torch.equal(feedback(1), feedback(2))
    assert abs(float(feedback(1).detach().std()) - 0.5 * (2 / 3) ** 0.5) < 0.02


def test_episodes_are_taken_to_the_learners_precision():
    learner = classifier(objective=SquaredError()).float()
    episodes = regression(2, 3, 2, 4, 3)
    before = [episodes.support_x.clone(), episodes.query_y.clone()]
    outcome = Unrolled().gradient(learner, episodes)
    assert outcome.loss.dtype == torch.float32
    assert torch.equal(episodes.support_x, before[0])
    assert torch.equal(episodes.query_y, before[1])
