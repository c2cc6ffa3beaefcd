"""The pool of terms: against scalar loops, the hand-run model, autograd, central differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    LocalSignals,
    SquaredError,
    SynapseGroup,
    Unrolled,
)
from metaplastic.credit import FeedbackAlignment, SignSymmetry
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.rules import Coefficient, Pool
from metaplastic.rules.coefficient import Granularity
from metaplastic.signals import Presentation, Reduction, Teacher
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    heard,
    meta_gradient,
    mlp,
    normal,
    presentation,
    raw,
    seeded,
    shake,
    show,
    slope_error,
    unit_direction,
)

NAMES = tuple(f"F{r}" for r in range(10))
BETA = 10.0
N_OUT, N_IN = 3, 4
GROUP = SynapseGroup("layer0_weight", N_OUT, N_IN)
Matrix = list[list[float]]


def softplus_chain(*sizes: int, seed: int = 0) -> nn.Sequential:
    """Softplus units of slope 10, linear logits, no biases."""
    chain = mlp(*sizes, activation=nn.Softplus, bias=False, seed=seed)
    for module in chain:
        if isinstance(module, nn.Softplus):
            module.beta = BETA
    return chain


def published(pool: Pool, credit=FeedbackAlignment, sizes=(4, 6, 5, 3), **options) -> Learner:
    """The layout of the published model: errors down to the inputs, softmax as last activity."""
    network = softplus_chain(*sizes)
    return Learner(network, credit(input_beta=BETA, linked=True), pool, **options).double()


def signals(rows: int, seed: int = 0, *, weight: list[float] | None = None) -> LocalSignals:
    widths = {"pre": N_IN, "post": N_OUT, "teaching": N_OUT, "gain": N_OUT, "pre_teaching": N_IN}
    made = {n: normal(rows, w, seed=10 * seed + i) for i, (n, w) in enumerate(widths.items())}
    column = None if weight is None else torch.tensor(weight, dtype=torch.float64)[:, None]
    return LocalSignals(**made, weight=column)


def by_hand(name: str, w: Matrix, x: list[float], y: list[float], e: list[float], b: list[float]):
    """One term for one row, entry by entry."""
    outs, ins = range(len(w)), range(len(w[0]))
    feedback = sum(y[k] * w[k][j] * b[j] for k in outs for j in ins)  # y^T W b
    drive = sum(x[j] * w[k][j] * e[k] for k in outs for j in ins)  # x^T W^T e
    entry = {
        "F0": lambda k, j: -e[k] * x[j],
        "F1": lambda k, j: -y[k] * b[j],
        "F2": lambda k, j: -e[k] * b[j],
        "F3": lambda k, j: -w[k][j],
        "F4": lambda k, j: -b[j],
        "F5": lambda k, j: -e[k] * sum(y) * x[j],
        "F6": lambda k, j: -y[k] * feedback * b[j],
        "F7": lambda k, j: -e[k] * feedback * x[j],
        "F8": lambda k, j: -y[k] * drive * b[j],
        "F9": lambda k, j: y[k] * x[j] - y[k] * sum(y[i] * w[i][j] for i in outs),
    }[name]
    return torch.tensor([[entry(k, j) for j in ins] for k in outs], dtype=torch.float64)


def mean_by_hand(name: str, w: Tensor, seen: LocalSignals, divisor: float) -> Tensor:
    total = torch.zeros_like(w)
    for n in range(len(seen.pre)):
        share = 1.0 if seen.weight is None else float(seen.weight[n])
        e = [-t * g for t, g in zip(seen.teaching[n].tolist(), seen.gain[n].tolist(), strict=True)]
        b = [-t for t in seen.pre_teaching[n].tolist()]
        x, y = seen.pre[n].tolist(), seen.post[n].tolist()
        total += share * by_hand(name, w.tolist(), x, y, e, b)
    return total / divisor


def change(pool: Pool, w: Tensor, seen: LocalSignals) -> Tensor:
    with torch.no_grad():
        return pool.update(w, seen, {}, pool.coefficients())[0]


# --- the terms ---


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_b23_terms_have_weight_shape_and_are_linear_in_theta(name, rows):
    w, seen = normal(N_OUT, N_IN, seed=99), signals(rows, 1)
    wanted = mean_by_hand(name, w, seen, rows)
    assert bool(wanted.any())
    for theta in (1.0, -2.5, 0.0):
        found = change(Pool({name: theta}).double().bind(GROUP), w, seen)
        assert found.shape == w.shape
        assert float((found - theta * wanted).abs().max()) < 1e-13 * float(wanted.abs().max())


@pytest.mark.parametrize("granularity", ["network", "layer", "neuron", "synapse"])
def test_the_pool_is_the_sum_of_its_terms(granularity: Granularity):
    """Each theta a number of its own for every synapse, neuron or layer."""
    w, seen = normal(N_OUT, N_IN, seed=99), signals(3, 2)
    pool = Pool(granularity=granularity).double().bind(GROUP)
    wanted = torch.zeros_like(w)
    shape = {"neuron": (N_OUT, 1), "synapse": (N_OUT, N_IN)}.get(granularity, (1, 1))
    for r, name in enumerate(NAMES):
        theta = pool.get_parameter(f"{name}.raw")
        assert theta.shape == shape
        theta.data = normal(*shape, seed=200 + r)
        wanted += theta.data * mean_by_hand(name, w, seen, 3)
    assert deviation(change(pool, w, seen), wanted) < 1e-13


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("reduction", "divisor"), [("examples", 2), ("positions", 2), ("sum", 1)])
def test_padding_rows_leave_no_trace(name, reduction: Reduction, divisor):
    w = normal(N_OUT, N_IN, seed=99)
    pool = Pool({name: 1.0}, reduction=reduction).double().bind(GROUP)
    seen = signals(3, 3, weight=[1.0, 0.0, 1.0])
    found = change(pool, w, seen)
    assert deviation(found, mean_by_hand(name, w, seen, divisor)) < 1e-13
    alone = LocalSignals(
        **{
            field: getattr(seen, field)[[0, 2]]
            for field in ("pre", "post", "teaching", "gain", "pre_teaching")
        }
    )
    assert deviation(found, change(pool, w, alone)) < 1e-13
    nothing = signals(2, 4, weight=[0.0, 0.0])
    assert not bool(change(pool, w, nothing).any())


@pytest.mark.parametrize("name", NAMES)
def test_sites_of_a_convolution_add_up_within_an_example(name):
    w, six = normal(N_OUT, N_IN, seed=99), replace(signals(6, 5), sites=3)
    for reduction, divisor in (("examples", 2), ("positions", 6), ("sum", 1)):
        pool = Pool({name: 1.0}, reduction=reduction).double().bind(GROUP)
        assert deviation(change(pool, w, six), mean_by_hand(name, w, six, divisor)) < 1e-13


# --- the credit that it is made for ---


def test_b21_softplus_slope_from_activity():
    """The slope at v is 1 - exp(-beta softplus(v)); ``input_beta`` puts it at inputs."""
    potential = 0.5 * normal(7, 4, seed=3)
    activity = F.softplus(potential, beta=BETA, threshold=500.0)
    slope = 1 - (-BETA * activity).exp()
    assert float((slope - torch.sigmoid(BETA * potential)).abs().max()) < 1e-14
    learner = published(Pool())
    shown = presentation(learner, activity, torch.arange(7) % 3)
    first = heard(learner, shown)["layer0_weight"]
    plain = Learner(softplus_chain(4, 6, 5, 3), FeedbackAlignment(linked=True), Pool()).double()
    without = heard(plain, shown)["layer0_weight"]
    assert first.pre_teaching is not None
    assert without.pre_teaching is not None
    wanted = without.pre_teaching * torch.sigmoid(BETA * potential)
    assert deviation(first.pre_teaching, wanted) < 1e-14
    assert torch.equal(first.error, without.error)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("linked", [False, True])
def test_b22_pool_f0_with_backprop_is_sgd(batch, linked):
    chain = softplus_chain(4, 6, 5, 3)
    x, y = normal(batch, 4).abs(), torch.arange(batch) % 3
    gradients = torch.autograd.grad(F.cross_entropy(chain(x), y), list(chain.parameters()))
    wanted = {
        f"layer{i}_weight": p.detach() - 0.02 * g
        for i, (p, g) in enumerate(zip(chain.parameters(), gradients, strict=True))
    }
    pool = Pool({"F0": 0.02})
    learner = Learner(chain, Backprop(input_beta=BETA, linked=linked), pool).double()
    assert_close(show(learner, x[None], y[None])["weights"], wanted, 1e-10)
    step = {n: w - learner.start()["weights"][n] for n, w in wanted.items()}
    shown = presentation(learner, x, y)
    assert_close(learner.field(learner.start(), shown), step, 1e-10)


def test_b26_backprop_reties_feedback_after_each_step():
    """What comes down at the next presentation goes through the weights as they then are."""
    learner = published(Pool({"F0": 0.3, "F9": 0.1}), credit=Backprop)
    assert learner.credit.groups() == {}
    x, y = normal(1, 4).abs(), torch.tensor([1])
    first, shown = learner.start(), presentation(learner, x, y)
    second = learner.step(first, shown)
    for state in (first, second):
        seen = heard(learner, shown, state)
        for layer in (1, 2):
            above = seen[f"layer{layer}_weight"]
            assert above.gain is not None
            wanted = (above.error * above.gain) @ state["weights"][f"layer{layer}_weight"]
            teaching = seen[f"layer{layer - 1}_weight"].teaching
            assert teaching is not None
            assert deviation(teaching, wanted) < 1e-13
    before, after = (s["weights"]["layer2_weight"] for s in (first, second))
    assert deviation(after, before) > 1e-2
    fixed = published(Pool({"F0": 0.3, "F9": 0.1}))
    kept = fixed.step(fixed.start(), shown)["weights"]["layer2_feedback"]
    assert torch.equal(kept, fixed.start()["weights"]["layer2_feedback"])


def test_the_published_model_by_hand():
    """Two presentations of one example through the whole learner, number by number."""
    thetas = {n: v for n, v in zip(NAMES, normal(10, seed=8).mul(0.02).tolist(), strict=True)}
    learner = published(Pool(thetas), sizes=(4, 5, 3))
    weights = {n: w.detach() for n, w in learner.start()["weights"].items()}
    w = [weights["layer0_weight"], weights["layer1_weight"]]
    feedback = [weights["layer0_feedback"], weights["layer1_feedback"]]
    xs, ys = normal(2, 1, 4, seed=5).abs(), torch.tensor([[0], [2]])
    for x, y in zip(xs[:, 0], ys[:, 0], strict=True):
        hidden = F.softplus(w[0] @ x, beta=BETA, threshold=500.0)
        activity = [x, hidden, (w[1] @ hidden).softmax(0)]
        errors = [torch.zeros(0)] * 3
        errors[2] = activity[2] - F.one_hot(y, 3)
        for layer in (1, 0):
            slope = 1 - (-BETA * activity[layer]).exp()
            errors[layer] = (errors[layer + 1] @ feedback[layer]) * slope
        for layer in (0, 1):
            seen = (activity[layer], activity[layer + 1], errors[layer + 1], errors[layer])
            rows = [v.tolist() for v in seen]
            terms = [theta * by_hand(n, w[layer].tolist(), *rows) for n, theta in thetas.items()]
            w[layer] = w[layer] + torch.stack(terms).sum(0)
    found = show(learner, xs, ys)["weights"]
    assert_close(
        {n: found[n] for n in ("layer0_weight", "layer1_weight")},
        {"layer0_weight": w[0], "layer1_weight": w[1]},
        1e-11,
    )


def test_the_pool_takes_biases_and_convolutions():
    """A bias has no presynaptic error: of the terms that read it nothing is left there."""
    chain = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.Softplus(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    network = LayeredNetwork(chain.double(), input_shape=(2, 4, 4))
    x, y = normal(2, 2, 4, 4), torch.tensor([0, 2])
    for name in NAMES:
        learner = Learner(network, SignSymmetry(), {"*": Pool({name: 1.0})}).double()
        found = learner.field(learner.start(2), presentation(learner, x, y))
        for group, moved in found.items():
            assert bool(moved.any()) != (
                group.endswith("bias") and name in ("F1", "F2", "F4", "F6", "F7", "F8")
            ), (name, group)
    delta = Learner(network, SignSymmetry(), {"*": Delta(1.0)}).double()
    sgd = Learner(network, SignSymmetry(), {"*": Pool({"F0": 1.0})}).double()
    shown = presentation(delta, x, y)
    assert_close(sgd.field(sgd.start(2), shown), delta.field(delta.start(2), shown), 1e-13)


# --- the outer loop ---


def five_steps(seed: int = 0) -> Episodes:
    """One example at a time, inputs as softplus units would have them."""
    drawn = classification(2, 5, 1, 4, 3, seed=seed)
    return Episodes(drawn.support_x.abs(), drawn.support_y, drawn.query_x.abs(), drawn.query_y)


@pytest.mark.parametrize("credit", [FeedbackAlignment, Backprop])
@pytest.mark.parametrize("name", NAMES)
def test_b24_theta_gradient_against_central_differences(name, credit):
    """Of each theta alone, all ten being away from 0."""
    thetas = dict(zip(NAMES, normal(10, seed=9).mul(0.02).tolist(), strict=True))
    learner = published(Pool(thetas), credit=credit)
    episodes = five_steps()
    gradient = meta_gradient(learner, episodes)
    parameter = next(n for n, _ in learner.named_parameters() if n.endswith(f"{name}.raw"))
    direction = {parameter: torch.ones(1, 1, dtype=torch.float64)}
    assert slope_error(learner, episodes, direction, gradient) < 1e-5


@pytest.mark.parametrize("granularity", ["network", "neuron", "synapse"])
@pytest.mark.parametrize("origin", ["learned", "resampled"])
def test_whole_meta_gradient_against_central_differences(granularity: Granularity, origin):
    thetas = dict.fromkeys(NAMES, 0.01)
    credit = FeedbackAlignment(origin, input_beta=BETA, linked=True)
    pool = Pool(thetas, granularity=granularity)
    learner = Learner(softplus_chain(4, 6, 3), credit, pool).double()
    shake(learner, 3, plasticity=0.01)
    episodes = five_steps(4)
    gradient = meta_gradient(learner, episodes, generator=seeded(2))
    for i, pattern in enumerate(("network", "rules", "credit")[: 2 + (origin == "learned")]):
        direction = unit_direction(learner, 20 + i, pattern)
        assert slope_error(learner, episodes, direction, gradient, seed=2) < 1e-6, pattern
    for method in (Unrolled(batching="loop"), Unrolled(checkpoint_every=2)):
        assert_close(meta_gradient(learner, episodes, method, seeded(2)), gradient, 1e-11)


def test_b25_theta_gradient_flows_through_weights():
    """At theta_9 = 0 the Oja term moves nothing, and its gradient says that it should."""
    learner = published(Pool())
    gradient = meta_gradient(learner, five_steps())
    theta = {n.rsplit(".", 2)[1]: g for n, g in gradient.items() if n.startswith("rules")}
    assert theta.keys() == set(NAMES)
    assert raw(learner, "layer0_weight", "F9").item() == 0.0
    assert all(float(g.abs()) > 1e-6 for g in theta.values())


def test_one_theta_serves_all_layers():
    learner = published(Pool())
    rules = [n for n, _ in learner.named_parameters() if n.startswith("rules")]
    assert len(rules) == 10
    assert raw(learner, "layer0_weight", "F2") is raw(learner, "layer2_weight", "F2")
    each = published(Pool(granularity="layer"))
    assert len([n for n, _ in each.named_parameters() if n.startswith("rules")]) == 30


# --- the penalty ---


def test_b27_l1_slope_at_zero_is_zero():
    """l1 sum |theta|, whose gradient is l1 sign(theta) and 0 at 0."""
    thetas = {"F0": 0.3, "F2": -0.2, "F9": 0.0}
    learner = published(Pool(thetas, l1=0.7))
    penalty = learner.penalty()
    assert penalty.shape == ()
    assert abs(penalty.item() - 0.7 * 0.5) < 1e-14  # each shared number once
    penalty.backward()
    slopes = {n: float(raw(learner, "layer1_weight", n).grad) for n in thetas}
    assert slopes == {"F0": 0.7, "F2": -0.7, "F9": 0.0}


def test_the_penalty_of_a_coefficient():
    coefficient = Coefficient(0.5, granularity="synapse", bound="tanh", l1=2.0)
    bound = coefficient.double().bind(GROUP)
    assert abs(bound.penalty().item() - 2.0 * 0.5 * N_OUT * N_IN) < 1e-12
    bound.penalty().backward()
    assert bound.raw.grad is not None  # through the map: 1 - tanh^2
    assert deviation(bound.raw.grad, torch.full((N_OUT, N_IN), 2.0 * 0.75).double()) < 1e-12
    assert Coefficient(0.5).penalty().item() == 0.0


def test_the_penalty_of_a_learner_counts_every_layer():
    learner = published(Pool({"F0": 0.3, "F9": -0.1}, granularity="layer", l1=0.5))
    assert abs(learner.penalty().item() - 3 * 0.5 * 0.4) < 1e-14
    none = Learner(mlp(4, 3), Backprop(), Delta(0.1, learned=True), SquaredError()).double()
    assert none.penalty().item() == 0.0
    assert not none.penalty().requires_grad


# --- errors and defaults ---


def test_all_ten_take_part_by_default():
    pool = Pool()
    assert {n: v.item() for n, v in pool.coefficients().items()} == {
        n: 1e-3 if n == "F0" else 0.0 for n in NAMES
    }
    assert set(Pool({"F2": 0.1, "F9": 0.0}).coefficients()) == {"F2", "F9"}
    assert (pool.scope, pool.needs) == ("group", {"teaching", "gain", "pre_teaching"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": {"F10": 1.0, "F0": 0.1}}, "got F10"),
        ({"terms": {}}, "got none"),
        ({"reduction": "mean"}, "reduction must be one of"),
        ({"granularity": "unit"}, "granularity must be one of"),
        ({"l1": -0.1}, "l1 .* got -0.1"),
        ({"l1": float("inf")}, "l1 .* got inf"),
        ({"l1": float("nan")}, "l1 .* got nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Pool(**options)


def test_the_pool_needs_a_credit_that_goes_from_layer_to_layer():
    with pytest.raises(CompatibilityError, match="pre_teaching"):
        Learner(mlp(4, 6, 3), DirectFeedback(), Pool())


def test_the_arguments_are_left_as_they_were():
    w, seen = normal(N_OUT, N_IN, seed=99), signals(3, 6, weight=[1.0, 0.0, 1.0])
    kept = {f: getattr(seen, f).clone() for f in ("pre", "post", "teaching", "pre_teaching")}
    pool, before = Pool(dict.fromkeys(NAMES, 0.1)).double().bind(GROUP), w.clone()
    change(pool, w, seen)
    assert torch.equal(w, before)
    assert all(torch.equal(getattr(seen, f), v) for f, v in kept.items())


def test_a_teaching_signal_may_be_a_target():
    """Read as target - post, as every rule reads it."""
    w, seen = normal(N_OUT, N_IN, seed=99), signals(2, 7)
    assert seen.teaching is not None
    target = LocalSignals(
        seen.pre, seen.post, seen.teaching + seen.post, "target", seen.gain, seen.pre_teaching
    )
    pool = Pool(dict.fromkeys(NAMES, 0.1)).double().bind(GROUP)
    assert deviation(change(pool, w, target), change(pool, w, seen)) < 1e-13
    learner = published(Pool({"F2": 0.1}))
    teacher = Teacher(learner.objective, learner.encode(torch.tensor([1]), torch.Size([1])))
    shown = Presentation(normal(1, 4).abs(), teacher)
    assert learner.field(learner.start(), shown).keys() == learner.plastic
