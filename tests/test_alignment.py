"""Errors sent down layer by layer or directly: against autograd, each other, and known limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    CreditAssignment,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    Oja,
    PlasticityRule,
    Presentation,
    SquaredError,
    Unrolled,
)
from metaplastic.credit import (
    DirectRandomTarget,
    FeedbackAlignment,
    KolenPollack,
    SignSymmetry,
    WeightMirror,
)
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.inner_loop import Rollout, draw
from metaplastic.networks.layer import Layer
from metaplastic.rules import Coefficient, Pool
from metaplastic.signals import State, Teacher
from tests.helpers import (
    Hear,
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

WAYS = 3
SHAPES = {"mlp": (5,), "conv": (2, 5, 4)}
MIRROR = Delta(0.5, derivative=False, decay=0.1)
CREDITS: dict[str, Callable[[], CreditAssignment]] = {
    "backprop": Backprop,
    "alignment": FeedbackAlignment,
    "alignment, learned": lambda: FeedbackAlignment("learned"),
    "alignment, resampled": lambda: FeedbackAlignment("resampled", scale=0.7),
    "Kolen-Pollack": KolenPollack,
    "Kolen-Pollack, learned": lambda: KolenPollack("learned"),
    "mirror": lambda: WeightMirror(sigma=1.0),
    "mirror, learned": lambda: WeightMirror("learned", sigma=0.5),
    "signs": SignSymmetry,
    "signs, fixed": lambda: SignSymmetry("fixed"),
    "signs, learned": lambda: SignSymmetry("learned", scale=0.5),
    "signs, resampled": lambda: SignSymmetry("resampled"),
    "signs, presentation": lambda: SignSymmetry("presentation"),
    "direct": lambda: DirectFeedback(weights="fixed"),
    "random target": DirectRandomTarget,
    "random target, learned": lambda: DirectRandomTarget("learned"),
    "random target, resampled": lambda: DirectRandomTarget("resampled"),
}
every_credit = pytest.mark.parametrize("credit", CREDITS)
both_networks = pytest.mark.parametrize("network", SHAPES)


def dense(activation: type[nn.Module] = nn.Tanh) -> LayeredNetwork:
    return LayeredNetwork(mlp(5, 7, 6, 4, WAYS, activation=activation))


def conv(activation: type[nn.Module] = nn.Tanh) -> LayeredNetwork:
    chain = nn.Sequential(
        nn.Conv2d(2, 3, 2, padding=1),
        activation(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2),
        activation(),
        nn.Flatten(),
        nn.Linear(8, 6),
        activation(),
        nn.Linear(6, WAYS),
    ).double()
    for i, parameter in enumerate(chain.parameters()):
        parameter.data = 0.4 * normal(*parameter.shape, seed=50 + i)
    return LayeredNetwork(chain, input_shape=SHAPES["conv"])


NETWORKS = {"mlp": dense, "conv": conv}


def make(
    credit: CreditAssignment,
    network: LayeredNetwork | nn.Sequential,
    rule: PlasticityRule | None = None,
    **options,
) -> Learner:
    """A classifier all of whose synapses are plastic; feedback that is taught learns too."""
    rules = {"role:feedback": MIRROR} if isinstance(credit, WeightMirror) else {}
    rules["*"] = rule or Delta(0.3)
    return Learner(network, credit, rules, **options).double()


def batch(network: str, count: int = 3) -> tuple[Tensor, Tensor]:
    return normal(count, *SHAPES[network], seed=7), torch.arange(count) % WAYS


def shown_to(learner: Learner, x: Tensor, y: Tensor) -> Presentation:
    """What ``adapt(x, y)`` shows, with the noise that the credit wants."""
    noise = learner.credit.noise(learner.network, (1, 1, len(x)), seeded(3))
    noise = None if noise is None else noise[0, 0].double()
    return replace(presentation(learner, x, y), noise=noise)


def tied(learner: Learner) -> State:
    """The state at the beginning, the feedback equal to the forward weights."""
    state = learner.start(3)
    copied = {
        name: state["weights"][name.replace("feedback", "weight")]
        for name in learner.credit.groups()
    }
    assert copied
    return {**state, "weights": state["weights"] | copied}


def by_autograd(network: LayeredNetwork, x: Tensor, y: Tensor, rate: float) -> dict[str, Tensor]:
    """-rate times the gradient of the mean cross-entropy, by torch's own modules and autograd."""
    parameters = {name: network.parameter(name) for name in network.groups()}
    loss = F.cross_entropy(network.body(x), y)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return {name: -rate * g.reshape(len(g), -1) for name, g in zip(parameters, found, strict=True)}


# --- equality with backpropagation and with each other ---


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Softplus, nn.SiLU, nn.Identity])
@both_networks
def test_b01_feedback_alignment_with_forward_weights_is_backprop(network, activation):
    chain = NETWORKS[network](activation)
    x, y = batch(network)
    aligned, exact = make(FeedbackAlignment(), chain), make(Backprop(), chain)
    shown = shown_to(exact, x, y)
    found = aligned.field(tied(aligned), shown)
    wanted = exact.field(exact.start(3), shown)
    assert found.keys() == wanted.keys() == chain.groups().keys()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert_close(found, by_autograd(chain, x, y, 0.3), 1e-10)
    random = aligned.field(aligned.start(3), shown)
    assert deviation(random["layer0_weight"], wanted["layer0_weight"]) > 0.1


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_b02_direct_feedback_with_second_matrix_is_backprop(activation):
    chain = LayeredNetwork(mlp(5, 7, WAYS, activation=activation))
    x, y = batch("mlp")
    direct, exact = make(DirectFeedback(weights="fixed"), chain), make(Backprop(), chain)
    state, shown = direct.start(3), shown_to(exact, x, y)
    weights = state["weights"]
    second = {"layer0_feedback1": weights["layer1_weight"].mT}
    found = direct.field({**state, "weights": weights | second}, shown)
    assert_close(found, exact.field(exact.start(3), shown), 1e-14)
    assert_close(found, by_autograd(chain, x, y, 0.3), 1e-10)


@every_credit
@both_networks
def test_b03_output_layer_update_is_the_same_for_all(network, credit):
    chain = NETWORKS[network]()
    x, y = batch(network)
    exact, other = make(Backprop(), chain), make(CREDITS[credit](), chain)
    found = other.field(other.start(3, seeded()), shown_to(other, x, y))
    wanted = exact.field(exact.start(3), shown_to(exact, x, y))
    for name in ("layer3_weight", "layer3_bias"):
        assert torch.equal(found[name], wanted[name])
    if credit != "backprop":
        assert deviation(found["layer0_weight"], wanted["layer0_weight"]) > 0.1


def test_b04_last_hidden_layer_fa_equals_dfa():
    chain = dense()
    x, y = batch("mlp")
    aligned = make(FeedbackAlignment(), chain)
    direct = make(DirectFeedback(weights="fixed"), chain)
    state, shown = direct.start(3), shown_to(direct, x, y)
    same = {"layer2_feedback1": aligned.start(3)["weights"]["layer3_feedback"].mT}
    found = direct.field({**state, "weights": state["weights"] | same}, shown)
    wanted = aligned.field(aligned.start(3), shown)
    for name in ("layer2_weight", "layer2_bias"):
        assert deviation(found[name], wanted[name]) < 1e-14
    assert deviation(found["layer1_weight"], wanted["layer1_weight"]) > 0.1


@pytest.mark.parametrize(
    ("credit", "degrees"),
    [
        (SignSymmetry(), 37.1),
        (SignSymmetry("fixed"), 50.5),
        (SignSymmetry("presentation"), 50.5),
        (FeedbackAlignment(), 90.0),
        (DirectFeedback(weights="fixed"), 90.0),
    ],
    ids=lambda v: str(v) if isinstance(v, float) else type(v).__name__,
)
def test_b05_angles_at_random_weights(credit, degrees):
    """Between the error that arrives below a 64 x 128 matrix and the one by backpropagation:
    arccos(sqrt(2 / pi)), arccos(2 / pi) and a right angle.
    """
    chain = LayeredNetwork(mlp(8, 128, 64, activation=nn.Identity, bias=False))
    x, y = torch.zeros(400, 8).double(), normal(400, 64, seed=1)  # the output is 0, the error y
    arrived = []
    for each in (credit, Backprop()):
        learner = make(each, chain, objective=SquaredError())
        teaching = heard(learner, shown_to(learner, x, y))["layer0_weight"].teaching
        assert teaching is not None
        arrived.append(teaching.detach())
    cosine = F.cosine_similarity(*arrived, dim=1).mean()
    assert abs(float(cosine.arccos().rad2deg()) - degrees) < 2.0


def test_b06_linear_regression_learns_and_aligns():
    """A linear teacher, 30-20-10: the forward weights come to agree with fixed feedback."""
    torch_linear = mlp(30, 20, 10, activation=nn.Identity, bias=False)
    for i, parameter in enumerate(torch_linear.parameters()):
        parameter.data = 0.02 * torch.rand(parameter.shape, generator=seeded(i)).double() - 0.01
    learner = Learner(
        torch_linear, FeedbackAlignment(), Delta(1.0, reduction="sum"), SquaredError()
    ).double()
    feedback = learner.credit.get_buffer("layer1_feedback")
    feedback.copy_(torch.rand(feedback.shape, generator=seeded(2)) - 0.5)
    teacher = normal(30, 10, seed=3) / 30**0.5
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.005)

    def angle() -> float:
        error = normal(200, 10, seed=4)
        second = learner.network.weights()["layer1_weight"].detach()
        cosine = F.cosine_similarity(error @ feedback, error @ second, dim=1).mean()
        return float(cosine.arccos().rad2deg())

    before = angle()
    for step in range(600):
        x = normal(10, 30, seed=100 + step)
        learner.assign_grads(x, x @ teacher)
        optimiser.step()
    x = normal(200, 30, seed=5)
    assert (learner(x) - x @ teacher).square().mean().item() < 1e-3 * float(
        teacher.square().sum(0).mean()
    )
    assert before > 60
    assert angle() < 45


def test_b07_direct_feedback_moves_zero_weights():
    """Where every gradient but that of the output's bias is 0."""
    x, y = batch("mlp")
    moved = {}
    for credit in (DirectFeedback(weights="fixed"), Backprop()):
        chain = mlp(5, 7, WAYS, bias=False)
        for parameter in chain.parameters():
            parameter.data.zero_()
        learner = make(credit, chain)
        after = show(learner, x.expand(3, *x.shape), y.expand(3, *y.shape))
        moved[type(credit)] = [bool(after["weights"][n].any()) for n in sorted(learner.plastic)]
    assert moved == {DirectFeedback: [True, True], Backprop: [False, False]}


def test_a_convolution_over_the_whole_image_is_a_dense_layer():
    """A kernel as large as the image: the same change from the same feedback."""
    x, y = batch("conv")
    units = 7
    flat = nn.Sequential(nn.Flatten(), nn.Linear(40, units), nn.Tanh(), nn.Linear(units, WAYS))
    deep = nn.Sequential(
        nn.Conv2d(2, units, (5, 4)), nn.Tanh(), nn.Flatten(), nn.Linear(units, WAYS)
    )
    for one, other in zip(flat.parameters(), deep.parameters(), strict=True):
        other.data = one.data.reshape(other.shape)
    fields = [
        make(FeedbackAlignment(), LayeredNetwork(chain, input_shape=SHAPES["conv"]))
        for chain in (flat.double(), deep.double())
    ]
    one, other = (f.field(f.start(3), shown_to(f, x, y)) for f in fields)
    assert_close(one, other, 1e-13)


def test_feedback_that_no_one_reads_is_not_made():
    def names(rule) -> set[str]:
        return set(Learner(dense(), FeedbackAlignment(), rule).credit.groups())

    assert names(Delta()) == {"layer1_feedback", "layer2_feedback", "layer3_feedback"}
    assert names({"position:2": Delta()}) == {"layer3_feedback"}
    assert names({"position:last": Delta()}) == set()
    assert names({"position:2": Pool()}) == {"layer2_feedback", "layer3_feedback"}
    assert names({"name:layer1_bias": Delta()}) == {"layer2_feedback", "layer3_feedback"}
    assert names(None) == set()


def test_layers_below_the_lowest_plastic_one_change_nothing_above():
    chain, (x, y) = dense(), batch("mlp")
    whole = make(Backprop(), chain)
    upper = Learner(chain, Backprop(), {"position:2": Delta(0.3), "position:3": Delta(0.3)})
    wanted = whole.field(whole.start(3), shown_to(whole, x, y))
    found = upper.field(upper.start(3), shown_to(upper, x, y))
    assert set(found) == {n for n in wanted if n[:6] in ("layer2", "layer3")}
    assert all(torch.equal(found[n], wanted[n]) for n in found)


def test_layers_below_the_lowest_plastic_one_are_not_visited():
    visited = []

    class Counting(FeedbackAlignment):
        def matrix(self, layer: Layer, state: State, presentation: Presentation) -> Tensor:
            visited.append(layer.index)
            return super().matrix(layer, state, presentation)

    x, y = batch("mlp")
    for rule, wanted in ((Delta(), [3]), (Pool(), [3, 2])):
        learner = Learner(dense(), Counting(), {"position:2": rule}).double()
        learner.field(learner.start(3), shown_to(learner, x, y))
        assert visited == wanted
        visited.clear()


def test_random_targets_stand_in_for_the_error():
    """By hand: (B^T t) o f' times the input, which knows nothing of the output."""
    chain, (x, y) = dense(), batch("mlp")
    learner = make(DirectRandomTarget(), chain)
    state = learner.start(3)
    found = learner.field(state, shown_to(learner, x, y))
    first = state["weights"]["layer0_feedback1"]
    hidden = chain.body[:2](x)
    wanted = torch.zeros_like(found["layer0_weight"])
    for row, label in enumerate(y.tolist()):
        wanted = wanted + torch.outer(first[:, label] * (1 - hidden[row] ** 2), x[row]) / 3
    assert deviation(found["layer0_weight"], 0.3 * wanted) < 1e-13
    last = {"layer3_weight": -state["weights"]["layer3_weight"]}
    other = learner.field({**state, "weights": state["weights"] | last}, shown_to(learner, x, y))
    assert torch.equal(other["layer0_weight"], found["layer0_weight"])
    assert not torch.equal(other["layer3_weight"], found["layer3_weight"])


# --- feedback that learns ---


@both_networks
def test_b08_kolen_pollack_difference_decays(network):
    decay = 0.2
    learner = make(KolenPollack(), NETWORKS[network](), Delta(0.3, decay=decay))
    x, y = batch(network)
    state = learner.start(3)
    names = sorted(learner.credit.groups())
    assert names == ["layer1_feedback", "layer2_feedback", "layer3_feedback"]

    def difference(state: State) -> dict[str, Tensor]:
        weights = state["weights"]
        return {n: weights[n] - weights[n.replace("feedback", "weight")] for n in names}

    first = difference(state)
    for step in range(1, 6):
        before, state = state, show(learner, x[None], y[None], state)
        assert all(deviation(state["weights"][n], before["weights"][n]) > 1e-3 for n in names)
        shrunk = {n: d * (1 - decay) ** step for n, d in first.items()}
        assert_close(difference(state), shrunk, 1e-12)


def test_kolen_pollack_shares_rule_and_coefficients():
    rule = Delta(
        Coefficient(0.3, granularity="synapse", bound="exp"),
        decay=Coefficient(0.1, bound="sigmoid"),
    )
    learner = make(KolenPollack("learned"), dense(), rule)
    names = [f"layer{i}_{role}" for i in range(4) for role in ("weight", "bias")]
    assert len({id(raw(learner, name, "decay")) for name in names}) == 8
    for layer in ("layer1", "layer2", "layer3"):
        assert learner.rules[f"{layer}_feedback"] is learner.rules[f"{layer}_weight"]
        assert learner.patterns[f"{layer}_feedback"] == "*"
    listed = [p for group in learner.param_groups() for p in group["params"]]
    assert len(listed) == len(set(map(id, listed))) == len(list(learner.parameters()))
    # One number moves both: their gradients add up.
    shake(learner, 1)
    episodes = classification(2, 3, 2, 5, WAYS)
    gradient = meta_gradient(learner, episodes)
    direction = unit_direction(learner, 4, "layer1_(weight|feedback).*decay")
    assert list(direction) == ["rules.layer1_weight.decay.raw"]
    assert slope_error(learner, episodes, direction, gradient) < 1e-6


def test_kolen_pollack_without_plastic_forward_weights_keeps_its_own():
    rules = {"name:layer2_weight": None, "role:weight": Delta(0.3)}
    learner = Learner(dense(), KolenPollack(), rules).double()
    assert "layer2_feedback" in learner.credit.groups()
    assert learner.plastic == {
        "layer0_weight", "layer1_weight", "layer3_weight", "layer1_feedback", "layer3_feedback"
    }  # fmt: skip
    x, y = batch("mlp")
    before, after = learner.start(3), show(learner, x[None], y[None])
    assert torch.equal(before["weights"]["layer2_feedback"], after["weights"]["layer2_feedback"])


@pytest.mark.parametrize(("activation", "share"), [(nn.Identity, 1.0), (nn.ReLU, 0.5)])
@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_weight_mirror_follows_the_forward_weights_on_average(activation, share, layer):
    """The mean of rate <y xi^T> is rate c sigma^2 W for each of a convolution's positions."""
    sigma, rate, count = 0.3, 0.7, 20_000
    if layer == "dense":
        chain = LayeredNetwork(
            nn.Sequential(
                nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), activation(), nn.Linear(5, WAYS)
            ).double()
        )
        shape = (4,)
    else:
        body = nn.Sequential(
            nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 3, 2), activation(), nn.Flatten(),
            nn.Linear(12, WAYS),
        )  # fmt: skip
        shape = (1, 3, 3)
        chain = LayeredNetwork(body.double(), input_shape=shape)
    rules = {
        "role:weight": Delta(0.1),
        "role:feedback": Delta(rate, derivative=False, reduction="positions"),
    }
    learner = Learner(chain, WeightMirror(sigma=sigma), rules).double()
    shown = shown_to(learner, torch.zeros(count, *shape).double(), torch.zeros(count).long())
    assert shown.noise is not None
    assert abs(float(shown.noise.std()) / sigma - 1) < 0.02
    field = learner.field(learner.start(count), shown)
    wanted = rate * share * sigma**2 * chain.weights()["layer1_weight"].detach()
    found = field["layer1_feedback"].detach()
    assert found.shape == wanted.shape
    assert float(F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)) > 0.99
    scale = float((found * wanted).sum() / wanted.square().sum())
    assert abs(scale - 1) < 0.05


def test_weight_mirror_decays_and_is_scored_by_a_scalar_loop():
    """One presentation, number by number; a padded example leaves no trace."""
    learner = make(WeightMirror(sigma=0.5), dense(nn.ReLU))
    x, y = batch("mlp")
    weight = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    shown = replace(shown_to(learner, x, y), weight=weight)
    state = learner.start(3)
    after = learner.step(state, shown)["weights"]
    assert shown.noise is not None
    assert shown.noise.shape == (3, 7 + 6 + 4)
    begin = 0
    for layer, width in ((1, 7), (2, 6), (3, 4)):
        xi = shown.noise[:, begin : begin + width].tolist()
        begin += width
        w = state["weights"][f"layer{layer}_weight"].tolist()
        b = state["weights"][f"layer{layer}_feedback"]
        wanted = b.detach().clone()
        for k in range(b.shape[0]):
            for j in range(width):
                seen = 0.0
                for row in (0, 2):
                    response = sum(a * n for a, n in zip(w[k], xi[row], strict=True))
                    seen += (response if layer == 3 else max(response, 0.0)) * xi[row][j] / 2
                wanted[k, j] += 0.5 * seen - 0.1 * b[k, j]
        assert deviation(after[f"layer{layer}_feedback"], wanted) < 1e-12


@both_networks
def test_weight_mirror_has_a_phase_of_its_own(network):
    """First the feedback alone learns, from noise; then the error comes down through it."""
    learner, (x, y) = make(WeightMirror(), NETWORKS[network]()), batch(network)
    shown, hear, state = shown_to(learner, x, y), Hear(learner), learner.start(3)
    after = learner.credit.present(learner.network, state, shown, hear)
    mirrored, taught = hear.calls
    assert set(mirrored) == {"layer1_feedback", "layer2_feedback", "layer3_feedback"}
    assert set(taught) == learner.network.groups().keys()
    aligned = make(FeedbackAlignment(), learner.network)
    own = {n: after["weights"][n] for n in mirrored}
    start = aligned.start(3)
    wanted = aligned.step({**start, "weights": start["weights"] | own}, shown)
    for name in taught:
        assert torch.equal(after["weights"][name], wanted["weights"][name])
    assert mirrored["layer1_feedback"].sites == learner.groups()["layer1_weight"].sites


def test_weight_mirror_aligns():
    learner = Learner(
        mlp(5, 30, 20, WAYS, bias=False),
        WeightMirror(sigma=1.0),
        {"role:weight": Delta(0.0), "role:feedback": Delta(0.1, derivative=False, decay=0.1)},
    ).double()
    state = learner.start(30)
    name = "layer1_weight"
    for step in range(150):
        noise = learner.credit.noise(learner.network, (1, 1, 30), seeded(step))
        assert noise is not None
        shown = presentation(learner, normal(30, 5), torch.arange(30) % WAYS)
        with torch.no_grad():
            state = learner.step(state, replace(shown, noise=noise[0, 0].double()))
    weight, feedback = state["weights"][name], state["weights"]["layer1_feedback"]
    assert torch.equal(weight, learner.start()["weights"][name])
    assert float(F.cosine_similarity(weight.flatten(), feedback.flatten(), dim=0)) > 0.9


# --- the error at the presynaptic units ---


def windows(image: Tensor, module: nn.Conv2d) -> Tensor:
    """Every patch that a convolution sees, one row each: (B, C, H, W) -> (N, n_in)."""
    (height, width), stride = module.kernel_size, module.stride
    assert not isinstance(module.padding, str)
    padded = F.pad(image, (module.padding[1],) * 2 + (module.padding[0],) * 2)
    rows = []
    for example in padded:
        for r in range(0, padded.shape[2] - height + 1, stride[0]):
            for c in range(0, padded.shape[3] - width + 1, stride[1]):
                rows.append(example[:, r : r + height, c : c + width].flatten())
    return torch.stack(rows)


def errors_below(
    chain: nn.Sequential, x: Tensor, y: Tensor, at: dict[int, int | None]
) -> dict[int, Tensor]:
    """Minus the gradient of the summed cross-entropy with respect to what the modules ``at`` put
    out (None: the input), as module ``layer`` sees it.
    """
    x = x.clone().requires_grad_()
    outputs = [x]
    for module in chain:
        outputs.append(module(outputs[-1]))
    loss = F.cross_entropy(outputs[-1], y, reduction="sum")
    found = {}
    for layer, place in at.items():
        (g,) = torch.autograd.grad(
            loss, outputs[0 if place is None else place + 1], retain_graph=True
        )
        module = chain[layer]
        found[layer] = -(windows(g, module) if isinstance(module, nn.Conv2d) else g.flatten(1))
    return found


CHAINS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[int, int | None]]] = {
    # The module in front of which the error stands: where it is taken. Index of each in the chain.
    "nothing between": (dense, (5,), {0: None, 2: 0, 4: 2, 6: 4}),
    "flatten": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2, stride=(2, 1), padding=(1, 0)),
            nn.Tanh(),
            nn.Conv2d(3, 4, 2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(4 * 4 * 4, WAYS),
        ),
        (2, 5, 4),
        {0: None, 2: 0, 5: 2},
    ),
    "pooling": (conv, (2, 5, 4), {0: None, 3: 2, 6: 3, 8: 6}),
    "norm": (
        lambda: nn.Sequential(
            nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, WAYS)
        ),
        (5,),
        {0: None, 3: 2, 4: 3},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("input_beta", [None, 2.0])
def test_the_error_at_the_presynaptic_potentials_is_the_gradient_there(name, input_beta):
    """Under B = W. Units repeat in overlapping patches, pooled units and inputs have slope 1, or
    1 - exp(-beta x) for inputs.
    """
    build, shape, at = CHAINS[name]
    network = build().double()
    if isinstance(network, nn.Sequential):
        network = LayeredNetwork(network, input_shape=shape)
    assert isinstance(network, LayeredNetwork)
    x, y = normal(3, *shape).abs(), torch.arange(3) % WAYS
    wanted = errors_below(network.body, x, y, at)
    if input_beta is not None:
        (input_error,) = errors_below_input(network, x, y)
        slope = 1 - (-input_beta * x).exp()
        first = network.body[0]
        wanted[0] = (
            windows(input_error * slope, first)
            if isinstance(first, nn.Conv2d)
            else input_error * slope
        )
    exact = make(Backprop(input_beta=input_beta), network, Pool())
    aligned = make(FeedbackAlignment(input_beta=input_beta), network, Pool())
    shown = shown_to(exact, x, y)
    for learner, state in ((exact, exact.start(3)), (aligned, tied(aligned))):
        signals = heard(learner, shown, state)
        found = {
            i: signals[f"layer{layer}_weight"].pre_teaching for layer, i in enumerate(sorted(at))
        }
        assert all(found[i] is not None for i in at)
        assert_close(found, wanted, 1e-12)  # type: ignore[arg-type]
        for group, seen in signals.items():
            if group.endswith("bias"):
                assert seen.pre_teaching is not None
                assert torch.equal(seen.pre_teaching, torch.zeros_like(seen.pre))


def errors_below_input(network: LayeredNetwork, x: Tensor, y: Tensor) -> tuple[Tensor]:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(network.body(x), y, reduction="sum"), x)
    return (-g,)


def test_presynaptic_error_is_what_their_own_synapses_get():
    learner, (x, y) = make(FeedbackAlignment(), dense(), Pool()), batch("mlp")
    signals = heard(learner, shown_to(learner, x, y))
    for layer in (1, 2, 3):
        below = signals[f"layer{layer - 1}_weight"]
        assert below.gain is not None
        found = signals[f"layer{layer}_weight"].pre_teaching
        assert found is not None
        assert torch.equal(found, below.error * below.gain)
    fed = learner.start()["weights"]["layer0_feedback"]
    first = signals["layer0_weight"]
    assert first.gain is not None
    assert first.pre_teaching is not None
    assert deviation(first.pre_teaching, (first.error * first.gain) @ fed) < 1e-14


def test_presynaptic_error_is_sent_only_where_it_is_read():
    rules = {"position:1": Pool(), "*": Delta()}
    learner, (x, y) = Learner(dense(), FeedbackAlignment(), rules).double(), batch("mlp")
    signals = heard(learner, shown_to(learner, x, y))
    sent = {name for name, seen in signals.items() if seen.pre_teaching is not None}
    assert sent == {"layer1_weight", "layer1_bias"}


@pytest.mark.parametrize("end", [nn.Identity(), nn.Sigmoid()], ids=["logits", "sigmoid"])
@pytest.mark.parametrize("credit", [Backprop, FeedbackAlignment, SignSymmetry])
def test_linked_puts_the_softmax_in_the_place_of_the_last_activity(credit, end):
    chain, (x, y) = nn.Sequential(*mlp(5, 7, WAYS), end), batch("mlp")
    plain = make(credit(), LayeredNetwork(chain), Pool())
    linked = make(credit(linked=True), LayeredNetwork(chain), Pool())
    before, after = (heard(i, shown_to(i, x, y)) for i in (plain, linked))
    for name, seen in before.items():
        wanted = chain(x).softmax(-1) if name.startswith("layer1") else seen.post
        assert torch.equal(after[name].post, wanted)
        for field in ("pre", "teaching", "gain", "pre_teaching"):
            assert torch.equal(getattr(after[name], field), getattr(seen, field)), (name, field)


# --- through the outer loop ---


def episodes_for(network: str, seed: int = 0) -> Episodes:
    return classification(3, 4, 2, SHAPES[network], WAYS, seed=seed)


@every_credit
@both_networks
def test_meta_gradient_against_central_differences(network, credit):
    learner = make(CREDITS[credit](), NETWORKS[network](), Delta(0.3, learned=True))
    shake(learner, 2, control=0.2, feedback=0.1)
    episodes = episodes_for(network)
    gradient = meta_gradient(learner, episodes, generator=seeded(5))
    patterns = ["network", r"rate\.raw"]
    if learner.credit.learned:
        patterns.append("credit")
        assert all(bool(gradient[f"credit.{n}"].any()) for n in learner.credit.groups())
    for i, pattern in enumerate(patterns):
        direction = unit_direction(learner, 10 + i, pattern)
        assert direction
        assert slope_error(learner, episodes, direction, gradient, seed=5) < 1e-6, pattern


@every_credit
@both_networks
def test_batching_and_checkpoints_change_nothing(network, credit):
    learner = make(CREDITS[credit](), NETWORKS[network](), Delta(0.3, learned=True))
    episodes = episodes_for(network, 3)
    wanted = meta_gradient(learner, episodes, Unrolled(batching="vmap"), seeded(6))
    for method in (Unrolled(batching="loop"), Unrolled(checkpoint_every=2)):
        assert_close(meta_gradient(learner, episodes, method, seeded(6)), wanted, 1e-11)


@every_credit
def test_nothing_that_is_given_changes(credit):
    learner, (x, y) = make(CREDITS[credit](), dense()), batch("mlp")
    shown = shown_to(learner, x, y)
    state = learner.start(3, seeded())
    before = {n: w.clone() for n, w in state["weights"].items()}
    noise = None if shown.noise is None else shown.noise.clone()
    learner.step(state, shown)
    assert all(torch.equal(state["weights"][n], w) for n, w in before.items())
    assert torch.equal(shown.x, x)
    assert noise is None or torch.equal(shown.noise, noise)


@pytest.mark.parametrize("credit", [c for c in CREDITS if "resampled" in c])
def test_resampled_feedback_differs_between_episodes(credit):
    learner, episodes = make(CREDITS[credit](), dense()), episodes_for("mlp")
    names = set(learner.credit.groups())
    assert learner.resampled == names
    assert not names & {n.removeprefix("credit.") for n, _ in learner.named_parameters()}
    drawn = draw(learner, episodes, seeded(8))
    rollout = Rollout(learner, episodes, drawn)
    for name in names:
        weights = rollout.moving["weights"][name]
        assert torch.equal(weights, drawn.weights[name])
        assert not torch.equal(weights[0], weights[1])
    again = draw(learner, episodes, seeded(8)).weights
    assert all(torch.equal(again[n], drawn.weights[n]) for n in names)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_feedback_is_drawn_as_forward_weights_are(scale):
    chain = LayeredNetwork(mlp(60, 80, 90))
    weights = make(FeedbackAlignment(scale=scale), chain).credit.weights()
    assert weights.keys() == {"layer1_feedback"}
    drawn = weights["layer1_feedback"]
    assert drawn.shape == (90, 80)
    assert abs(float(drawn.std()) / (scale * (2 / 80) ** 0.5) - 1) < 0.05


# --- binding ---


@every_credit
def test_a_bound_credit_keeps_its_weights_where_they_fit(credit):
    first = make(CREDITS[credit](), dense(), generator=seeded(1))
    own = {n: w.detach().clone() for n, w in first.credit.weights().items()}
    again = make(first.credit, dense(), generator=seeded(2))
    kept = again.credit.weights()
    assert kept.keys() == own.keys()
    assert all(torch.equal(kept[n], own[n]) for n in own)
    given = {w.data_ptr() for w in first.credit.weights().values()}
    assert not given & {w.data_ptr() for w in kept.values()}

    narrow = make(first.credit, mlp(5, 7, 6, 5, WAYS), generator=seeded(2))
    fresh = make(CREDITS[credit](), mlp(5, 7, 6, 5, WAYS), generator=seeded(2))
    wanted = fresh.credit.weights()
    for name, weight in narrow.credit.weights().items():
        fits = name in own and own[name].shape == wanted[name].shape
        assert torch.equal(weight, own[name] if fits else wanted[name]), name
    short = make(first.credit, mlp(5, 7, WAYS), generator=seeded(2))
    assert short.credit.groups().keys() == short.credit.weights().keys()
    buffers = [n for n, _ in short.credit.named_buffers()]
    parameters = [n for n, _ in short.credit.named_parameters()]
    assert set(buffers + parameters) == short.credit.groups().keys()
    assert {n: w.shape for n, w in own.items()} == {
        n: w.shape for n, w in first.credit.weights().items()
    }


def test_a_learned_rate_and_learned_feedback_have_roles():
    learner = make(FeedbackAlignment("learned"), dense(), Delta(0.3, learned=True))
    roles = {g["name"]: len(g["params"]) for g in learner.param_groups()}
    assert roles == {"initial": 8, "feedback": 3, "control": 8}
    assert not list(make(FeedbackAlignment(), dense()).credit.parameters())


# --- errors ---

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "origin": (lambda: FeedbackAlignment("random"), "weights must be one of"),  # type: ignore[arg-type]
    "Kolen-Pollack origin": (lambda: KolenPollack("drawn"), "weights must be one of"),  # type: ignore[arg-type]
    "random target origin": (lambda: DirectRandomTarget("no"), "weights must be one of"),  # type: ignore[arg-type]
    "magnitudes": (lambda: SignSymmetry("half"), "magnitudes must be one of"),  # type: ignore[arg-type]
    "sigma": (lambda: WeightMirror(sigma=0.0), "sigma .* got 0"),
    "sigma not a number": (lambda: WeightMirror(sigma=float("nan")), "sigma .* got nan"),
    "decay": (lambda: Delta(decay=1.5), r"\[0.0, 1.0\], got 1.5"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_options_out_of_range(wrong):
    build, message = WRONG[wrong]
    with pytest.raises(ConfigurationError, match=message):
        build()


@pytest.mark.parametrize("credit", [WeightMirror(), SignSymmetry("presentation")], ids=repr)
def test_presentations_without_noise_are_an_error(credit):
    learner, (x, y) = make(credit, dense()), batch("mlp")
    with pytest.raises(ConfigurationError, match="generator"):
        Unrolled().gradient(learner, episodes_for("mlp"))
    with pytest.raises(ConfigurationError, match="noise"):
        learner.clone().adapt(x, y)


def test_resampled_feedback_without_a_generator_is_an_error():
    learner = make(FeedbackAlignment("resampled"), dense())
    with pytest.raises(ConfigurationError, match="generator"):
        Unrolled().gradient(learner, episodes_for("mlp"))


def test_a_loss_alone_holds_no_target_to_project():
    learner, (x, y) = make(DirectRandomTarget(), dense()), batch("mlp")
    clone = learner.clone()
    with pytest.raises(CompatibilityError, match="target"):
        clone.adapt(F.cross_entropy(clone(x), y))


def test_a_rule_that_reads_what_is_not_sent():
    with pytest.raises(CompatibilityError, match=r"pre_teaching.*DirectFeedback"):
        make(DirectFeedback(), dense(), Pool())
    with pytest.raises(ConfigurationError, match="role:feedback"):
        Learner(dense(), FeedbackAlignment(), {"role:weight": Oja(), "role:feedback": Delta()})


def test_decay_pulls_weights_to_zero():
    """The change is rate <e x^T> - decay W, for a learned decay too."""
    chain, (x, y) = dense(), batch("mlp")
    plain = make(Backprop(), chain)
    teacher = Teacher(CrossEntropy(), plain.encode(y, x.shape[:1]))
    fields = {}
    for decay in (0.0, 0.2, Coefficient(0.2, bound="sigmoid")):
        learner = make(Backprop(), chain, Delta(0.3, decay=decay))
        fields[str(decay)[:3]] = learner.field(learner.start(3), Presentation(x, teacher))
    bare, fixed, learned = fields.values()
    weights = chain.weights()
    for name, change in bare.items():
        assert deviation(fixed[name], change - 0.2 * weights[name]) < 1e-14
        assert deviation(learned[name], fixed[name]) < 1e-14


def test_optimisers_follow_feedback_that_is_learned():
    """Twins get the same ``.grad``; fixed feedback is nothing that an optimiser could move."""
    x, y = batch("mlp")
    learner = make(KolenPollack("learned"), dense())
    learner.assign_grads(x, y)
    for name in learner.credit.groups():
        forward = learner.network.parameter(name.replace("feedback", "weight"))
        feedback = learner.credit.get_parameter(name)
        assert forward.grad is not None
        assert feedback.grad is not None
        assert torch.equal(feedback.grad, forward.grad)
    with pytest.raises(ConfigurationError, match=r"layer1_feedback .* weights='learned'"):
        make(KolenPollack(), dense()).assign_grads(x, y)
