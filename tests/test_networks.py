"""Layered networks: forward and hand-written backward against torch, convolutions as synapses."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    Delta,
    DirectFeedback,
    Hebb,
    LayeredNetwork,
    Learner,
    LocalSignals,
    Oja,
    PlasticityRule,
    SquaredError,
    Unrolled,
)
from metaplastic.errors import (
    ConfigurationError,
    MetaplasticError,
    ShapeError,
    UnsupportedLayerError,
)
from metaplastic.signals import State
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    final_weights,
    meta_gradient,
    mlp,
    normal,
    presentation,
    seeded,
    shake,
    show,
    slope_error,
    unit_direction,
)

WAYS = 3


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 with random Parameters and running statistics."""
    module.double()
    for i, parameter in enumerate(module.parameters()):
        parameter.data = 0.4 * normal(*parameter.shape, seed=1000 * seed + i)
        if parameter.dim() == 1:
            parameter.data += 0.5
    for i, (name, buffer) in enumerate(module.named_buffers()):
        if buffer.is_floating_point():
            noise = normal(*buffer.shape, seed=1000 * seed + 500 + i)
            buffer.copy_(noise.exp() if name.endswith("var") else noise)
    return module


def dense(*between: nn.Module) -> Callable[[], nn.Sequential]:
    chain = nn.Sequential(nn.Linear(4, 6), *between, nn.Linear(6, WAYS))
    return lambda: copy.deepcopy(chain)


def conv(
    *between: nn.Module, units: int, first: nn.Module | None = None
) -> Callable[[], nn.Sequential]:
    first = first or nn.Conv2d(2, 4, 3, padding=1)
    chain = nn.Sequential(first, *between, nn.Flatten(), nn.Linear(units, WAYS))
    return lambda: copy.deepcopy(chain)


# Name: (chain, shape of one example, batch-norm policy).
CASES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], str | None]] = {
    "identity": (dense(), (4,), None),
    "ReLU": (dense(nn.ReLU()), (4,), None),
    "ReLU in place": (dense(nn.ReLU(inplace=True)), (4,), None),
    "LeakyReLU": (dense(nn.LeakyReLU(0.1)), (4,), None),
    "Tanh": (dense(nn.Tanh()), (4,), None),
    "Sigmoid": (dense(nn.Sigmoid()), (4,), None),
    "Softplus": (dense(nn.Softplus(beta=2.0)), (4,), None),
    "Softplus beyond its threshold": (dense(nn.Softplus(beta=2.0, threshold=0.5)), (4,), None),
    "ELU": (dense(nn.ELU(alpha=0.7)), (4,), None),
    "SiLU": (dense(nn.SiLU()), (4,), None),
    "two activations": (dense(nn.Tanh(), nn.SiLU(), nn.ReLU(inplace=True)), (4,), None),
    "activation at the output": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, WAYS), nn.Sigmoid()),
        (4,),
        None,
    ),
    "no biases": (
        lambda: nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, WAYS, bias=False)
        ),
        (4,),
        None,
    ),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.LayerNorm(6))),
            nn.Sequential(nn.Linear(6, WAYS)),
        ),
        (4,),
        None,
    ),
    "LayerNorm": (dense(nn.LayerNorm(6), nn.Tanh()), (4,), None),
    "LayerNorm without bias": (dense(nn.Tanh(), nn.LayerNorm(6, bias=False)), (4,), None),
    "LayerNorm, fixed": (dense(nn.LayerNorm(6, elementwise_affine=False)), (4,), None),
    "GroupNorm of vectors": (dense(nn.GroupNorm(2, 6), nn.Tanh()), (4,), None),
    "BatchNorm1d, running": (dense(nn.BatchNorm1d(6), nn.Tanh()), (4,), "running"),
    "BatchNorm1d, batch": (dense(nn.BatchNorm1d(6), nn.Tanh()), (4,), "batch"),
    "conv": (conv(nn.Tanh(), units=80), (2, 4, 5), None),
    "conv without bias": (
        conv(nn.Tanh(), units=80, first=nn.Conv2d(2, 4, 3, padding=1, bias=False)),
        (2, 4, 5),
        None,
    ),
    "conv, stride": (
        conv(nn.Tanh(), units=4 * 2 * 3, first=nn.Conv2d(2, 4, 3, stride=2)),
        (2, 6, 7),
        None,
    ),
    "conv, padding and dilation": (
        conv(
            nn.Tanh(),
            units=4 * 5 * 2,
            first=nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3)),
        ),
        (2, 5, 4),
        None,
    ),
    "conv, all to one position": (
        conv(nn.Tanh(), units=4, first=nn.Conv2d(2, 4, (4, 5))),
        (2, 4, 5),
        None,
    ),
    "two convs": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(3, 4, 2, dilation=2),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(4, WAYS),
        ),
        (2, 5, 6),
        None,
    ),
    "AvgPool2d": (conv(nn.Tanh(), nn.AvgPool2d(2), units=4 * 2 * 2), (2, 4, 5), None),
    "AvgPool2d, overlap and padding": (
        conv(nn.Tanh(), nn.AvgPool2d(3, stride=2, padding=1), units=4 * 2 * 3),
        (2, 4, 5),
        None,
    ),
    "MaxPool2d": (conv(nn.Tanh(), nn.MaxPool2d(2), units=4 * 2 * 2), (2, 4, 5), None),
    "MaxPool2d, overlap, padding, ceil": (
        conv(nn.ReLU(), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), units=4 * 3 * 3),
        (2, 4, 5),
        None,
    ),
    "MaxPool2d, dilation": (
        conv(nn.Tanh(), nn.MaxPool2d(2, stride=1, dilation=2), units=4 * 2 * 3),
        (2, 4, 5),
        None,
    ),
    "AdaptiveAvgPool2d": (conv(nn.Tanh(), nn.AdaptiveAvgPool2d(1), units=4), (2, 4, 5), None),
    "GroupNorm": (conv(nn.GroupNorm(2, 4), nn.ReLU(), units=80), (2, 4, 5), None),
    "LayerNorm of maps": (conv(nn.Tanh(), nn.LayerNorm([4, 4, 5]), units=80), (2, 4, 5), None),
    "BatchNorm2d, running": (conv(nn.BatchNorm2d(4), nn.ReLU(), units=80), (2, 4, 5), "running"),
    "BatchNorm2d, batch": (conv(nn.BatchNorm2d(4), nn.ReLU(), units=80), (2, 4, 5), "batch"),
    "BatchNorm2d, no affine": (
        conv(nn.BatchNorm2d(4, affine=False), nn.ReLU(), units=80),
        (2, 4, 5),
        "running",
    ),
    "transforms in front": (
        lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, WAYS)),
        (2, 3),
        None,
    ),
    "many": (
        conv(
            nn.GroupNorm(1, 4),
            nn.ELU(),
            nn.MaxPool2d(2, 1, padding=1),
            nn.Conv2d(4, 2, 2),
            nn.SiLU(),
            nn.AvgPool2d(2, 1),
            units=2 * 3 * 4,
        ),
        (2, 4, 5),
        None,
    ),
}


def built(name: str, **options) -> tuple[LayeredNetwork, nn.Sequential, tuple[int, ...]]:
    """A network, the chain inside it with its norms in the declared mode, the input's shape."""
    make, shape, policy = CASES[name]
    chain = randomised(make())
    assert isinstance(chain, nn.Sequential)
    chain.train(policy == "batch")
    return LayeredNetwork(chain, input_shape=shape, batch_norm=policy, **options), chain, shape


@pytest.mark.parametrize("name", CASES)
def test_run_equals_the_users_sequential(name):
    network, chain, shape = built(name)
    statistics = {n: b.clone() for n, b in chain.named_buffers()}
    for size in (2, 5):
        x = normal(size, *shape)
        before = x.clone()
        output, activities = network.run(network.features(x), network.weights())
        assert torch.equal(x, before)
        assert len(activities) == len(network.layers)
        assert all(torch.equal(b, statistics[n]) for n, b in chain.named_buffers())
        assert deviation(output, chain(x)) < 1e-12
        for n, b in chain.named_buffers():
            b.copy_(statistics[n])


def test_batch_norm_on_running_statistics_takes_one_example():
    network, chain, shape = built("BatchNorm2d, running")
    x = normal(1, *shape)
    assert deviation(network(network.features(x), network.weights()), chain(x)) < 1e-12


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_backprop_and_delta_are_one_step_of_autograd_sgd(name, size):
    """The errors sent down by hand give the gradient of every weight and bias."""
    network, chain, shape = built(name)
    size += 3 * name.endswith("batch")  # statistics need rows
    learner = Learner(network, Backprop(), {"*": Delta(0.25)})
    x, y = normal(size, *shape), torch.randint(WAYS, (size,), generator=seeded(1))
    state = show(learner, x[None], y[None])
    F.cross_entropy(chain(x), y).backward()
    begin = network.weights()
    slopes = {n: network.parameter(n).grad for n in begin}
    wanted = {n: -0.25 * g.reshape(begin[n].shape) for n, g in slopes.items() if g is not None}
    assert_close({n: state["weights"][n] - w for n, w in begin.items()}, wanted, 1e-11)


@pytest.mark.parametrize("name", CASES)
def test_episodes_at_once_equal_one_after_another_on_every_network(name):
    network, _, shape = built(name)
    learner = Learner(network, Backprop(), {"*": Delta(0.25)})
    episodes = classification(3, 2, 4, shape, WAYS)
    at_once = meta_gradient(learner, episodes, Unrolled(batching="vmap"))
    looped = meta_gradient(learner, episodes, Unrolled(batching="loop"))
    assert_close(at_once, looped, 1e-11)


@pytest.mark.parametrize(
    "name", ["GroupNorm", "BatchNorm2d, batch", "MaxPool2d, overlap, padding, ceil", "many"]
)
@pytest.mark.parametrize("credit", [Backprop(), DirectFeedback(rectify=True, bias=True)])
def test_meta_gradient_through_every_kind_of_network_equals_central_differences(name, credit):
    network, _, shape = built(name)
    learner = Learner(network, credit, {"*": Delta(0.25, learned=True)})
    shake(learner, 2, feedback=0.3)
    episodes = classification(2, 3, 3, shape, WAYS)
    gradient = meta_gradient(learner, episodes)
    for pattern in ("", r"^network\.body\.1\."):
        direction = unit_direction(learner, 3, pattern)
        if direction:
            assert slope_error(learner, episodes, direction, gradient) < 1e-6, pattern


def test_first_order_takes_norms_for_constants_in_the_updates_too():
    """Only what the norm does to the queries is left, as when autograd's slopes are detached."""
    network, chain, shape = built("LayerNorm")
    learner = Learner(network, Backprop(), {"*": Delta(0.25)})
    episodes = classification(1, 2, 2, shape, WAYS)
    found = meta_gradient(learner, episodes, Unrolled(first_order=True))
    after = {n: w[0].detach() for n, w in final_weights(learner, episodes).items()}
    norm = chain[1]
    assert isinstance(norm, nn.LayerNorm)
    loss = F.cross_entropy(learner.network(episodes.query_x[0], after), episodes.query_y[0])
    wanted = torch.autograd.grad(loss, [norm.weight, norm.bias])
    assert deviation(found["network.body.1.weight"], wanted[0]) < 1e-12
    assert deviation(found["network.body.1.bias"], wanted[1]) < 1e-12


def test_a_batch_norm_in_front_does_not_mix_episodes():
    """An episode's loss does not depend on the other episodes or on its own queries."""
    chain = randomised(
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, WAYS))
    )
    with pytest.raises(ConfigurationError, match="in front of the first synapses"):
        LayeredNetwork(chain, batch_norm="batch")
    network = LayeredNetwork(chain, batch_norm="running")
    learner = Learner(network, Backprop(), Delta(0.25)).double()
    episodes = classification(2, 3, 4, 4, WAYS)
    together, alone = (final_weights(learner, e) for e in (episodes, episodes[[0]]))
    assert_close({n: w[:1] for n, w in together.items()}, alone, 1e-12)
    x, y = episodes.support_x[0], episodes.support_y[0]
    stepped = show(learner, x, y)["weights"]
    assert_close({n: w[0] for n, w in alone.items()}, {n: stepped[n] for n in alone}, 1e-12)


# --- convolutions as synapses ---


def patches(x: Tensor, m: nn.Conv2d) -> tuple[list[tuple[int, int]], Tensor]:
    """Output positions and what each of their synapses sees, (B, positions, n_in), by loops."""
    assert not isinstance(m.padding, str)
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = m.kernel_size, m.stride, m.padding, m.dilation
    height = (x.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    places = [(i, j) for i in range(height) for j in range(width)]
    seen = torch.zeros(len(x), len(places), m.in_channels * kh * kw, dtype=x.dtype)
    for b in range(len(x)):
        for p, (i, j) in enumerate(places):
            n = 0
            for c in range(m.in_channels):
                for u in range(kh):
                    for v in range(kw):
                        row, column = i * sh - ph + u * dh, j * sw - pw + v * dw
                        if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                            seen[b, p, n] = x[b, c, row, column]
                        n += 1
    return places, seen


CONVS = {
    "plain": (nn.Conv2d(1, 2, 3), (1, 5, 4)),
    "padding": (nn.Conv2d(2, 3, 3, padding=1), (2, 3, 5)),
    "stride and dilation": (nn.Conv2d(2, 2, 2, stride=2, dilation=2, padding=(0, 1)), (2, 5, 7)),
    "one pixel": (nn.Conv2d(1, 2, 1), (1, 1, 1)),
}
CONV_RULES: dict[str, PlasticityRule] = {
    "oja": Oja(0.05, 0.3, bounded=False),
    "hebb, mean over positions": Hebb(0.3, 0.4, bounded=False, reduction="positions"),
    "oja, mean over examples": Oja(0.05, 0.3, bounded=False, reduction="examples"),
    "oja, bounded": Oja(0.3, 0.4),
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rule", CONV_RULES)
@pytest.mark.parametrize("name", CONVS)
def test_plastic_convolution_equals_a_loop_over_positions(name, rule, size):
    """Every unit at every position hears feedback of its own, and the positions' changes of the
    shared synapses are added or averaged.
    """
    layer, shape = CONVS[name]
    x, y = normal(size, *shape), torch.randint(WAYS, (size,), generator=seeded(1))
    places, seen = patches(x, layer)
    units = layer.out_channels * len(places)
    chain = randomised(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(units, WAYS)))
    network = LayeredNetwork(chain, input_shape=shape)
    credit = DirectFeedback("target", bias=True, rectify=True)
    learner = Learner(network, credit, {"position:first": CONV_RULES[rule]})
    shake(learner, 2, feedback=0.3)
    state = learner.start(size)
    weights = {n: w.detach() for n, w in state["weights"].items()}
    after = learner.step(state, presentation(learner, x, y))["weights"]

    bounded = rule.endswith("bounded")
    values = state["coefficients"]["layer0_weight"]
    p, mix = values["plasticity"].mean().item(), values["mix"].item()
    share = {"oja": 1.0, "oja, mean over examples": 1 / size}.get(rule, 1 / size / len(places))
    maps = (weights["layer0_feedback1"], weights["layer0_feedback1_bias"])
    sent: Tensor = (F.one_hot(y, WAYS).double() @ maps[0].mT + maps[1].mT).relu()
    for o in range(layer.out_channels):
        hebb = torch.zeros(seen.shape[-1], dtype=torch.float64)
        drive = energy = 0.0
        for b in range(size):
            for k, (i, j) in enumerate(places):
                assert (i, j) == divmod(k, max(1, places[-1][1] + 1))
                post = weights["layer0_weight"][o] @ seen[b, k] + weights["layer0_bias"][o, 0]
                teaching = sent[b, o * len(places) + k]
                z = float(mix * teaching + (1 - mix) * post.clamp(min=0))
                hebb += share * z * seen[b, k]
                drive += share * z
                energy += share * z * z
        decay = 0.0 if rule.startswith("hebb") else energy
        scale = p / (1 + energy) if bounded else p
        w, c = weights["layer0_weight"][o], weights["layer0_bias"][o]
        assert deviation(after["layer0_weight"][o], w + scale * (hebb - decay * w)) < 1e-12
        assert deviation(after["layer0_bias"][o], c + scale * (drive - decay * c)) < 1e-12


def test_conv_synapses_see_their_patches_and_units_their_maps():
    layer, shape = nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 0)), (2, 5, 6)
    units = 3 * 3 * 4
    chain = randomised(nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(units, WAYS)))
    network = LayeredNetwork(chain, input_shape=shape)
    group = network.groups()["layer0_weight"]
    assert (group.n_out, group.n_in, group.sites) == (3, 12, 12)
    x = normal(3, *shape)
    places, seen = patches(x, layer)
    _, (activity, _) = network.run(x, network.weights())
    assert torch.equal(activity.pre, seen.flatten(0, 1))
    maps = layer(x).tanh()
    post = torch.stack([maps[b, :, i, j] for b in range(3) for i, j in places])
    assert deviation(activity.post, post) < 1e-13
    assert deviation(activity.path[0], maps) < 1e-13


def test_padding_an_example_counts_at_every_position():
    """The weight of an example goes to all of its rows."""
    network, _, shape = built("conv")
    learner = Learner(network, DirectFeedback(), Oja(0.3)).double()
    heard: dict[str, LocalSignals] = {}

    class Listener:
        @property
        def needs(self) -> dict[str, frozenset[str]]:
            return {n: frozenset({"teaching"}) for n in learner.plastic}

        def __call__(
            self, state: State, signals: dict[str, LocalSignals], share: float = 1.0
        ) -> State:
            heard.update(signals)
            return state

    shown = presentation(learner, normal(2, *shape), torch.tensor([0, 1]))
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    shown = type(shown)(shown.x, shown.teacher, weight)
    learner.credit.present(network, learner.start(2), shown, Listener())
    sites = network.groups()["layer0_weight"].sites
    assert heard["layer0_weight"].weight.flatten().tolist() == [1.0] * sites + [0.0] * sites
    assert heard["layer1_weight"].weight.flatten().tolist() == [1.0, 0.0]


# --- the trunk ---


class Counting(nn.Module):
    """A trunk with dropout and batch norm that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh())
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        (Unrolled(batching="vmap"), 1),
        (Unrolled(batching="vmap", checkpoint_every=2), 1),
        (Unrolled(batching="loop"), 3),
    ],
)
def test_trunk_runs_once_for_its_episodes_in_eval_mode_and_is_meta_learned(method, calls):
    trunk = randomised(Counting())
    assert isinstance(trunk, Counting)
    network = LayeredNetwork(mlp(4, 5, WAYS), trunk=trunk, input_shape=(3,))
    learner = Learner(network, DirectFeedback(), Oja(0.3)).double()
    learner.train()
    assert learner.training
    assert not any(m.training for m in trunk.modules())
    statistics = trunk.get_buffer("body.1.running_mean").clone()
    episodes = classification(3, 5, 2, 3, WAYS)
    trunk.calls = 0
    gradient = meta_gradient(learner, episodes, method)
    assert trunk.calls == calls
    assert torch.equal(trunk.get_buffer("body.1.running_mean"), statistics)
    direction = unit_direction(learner, 0, r"^network\.trunk")
    assert len(direction) == 4
    assert slope_error(learner, episodes, direction, gradient) < 1e-7


def test_trunk_may_be_any_module_that_gives_what_the_chain_takes():
    trunk = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    network = LayeredNetwork(mlp(8, WAYS), trunk=trunk, input_shape=(1, 6, 6)).double()
    x = normal(2, 1, 6, 6)
    output = network(network.features(x), network.weights())
    assert deviation(output, network.body(trunk(x))) < 1e-13


# --- what is refused ---


def image(*modules: nn.Module, shape: tuple[int, ...] = (1, 4, 4), **options) -> LayeredNetwork:
    return LayeredNetwork(nn.Sequential(*modules), input_shape=shape, **options)


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        (nn.Dropout(0.5), "Dropout.*generator"),
        (nn.PReLU(), "PReLU.*trunk"),
        (nn.GELU(), "GELU.*trunk"),
        (nn.AdaptiveAvgPool2d(2), "AdaptiveAvgPool2d.*trunk"),
        (nn.AvgPool2d(2, ceil_mode=True), "AvgPool2d.*trunk"),
        (nn.Flatten(0), "Flatten.*trunk"),
        (nn.LSTM(4, 4), "LSTM.*trunk"),
    ],
)
def test_unsupported_layers_are_named_with_advice(module, advice):
    with pytest.raises(UnsupportedLayerError, match=f"(?s){advice}.*Supported there: .*ReLU"):
        LayeredNetwork(nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 3)))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(2, 4, 3),
        nn.Conv1d(2, 4, 3),
    ],
)
def test_unsupported_convolutions_are_named(layer):
    with pytest.raises(UnsupportedLayerError, match=type(layer).__name__):
        image(layer, nn.Flatten(), nn.Linear(4, 3), shape=(2, 4, 4))


def test_the_chain_ends_in_linear_synapses():
    for last in (nn.LayerNorm(3), nn.Softmax(dim=-1)):
        with pytest.raises(UnsupportedLayerError, match=type(last).__name__):
            LayeredNetwork(nn.Sequential(nn.Linear(4, 3), last))
    with pytest.raises(UnsupportedLayerError, match=r"Conv2d.*|end in a Linear"):
        image(nn.Conv2d(1, 3, 4))
    with pytest.raises(UnsupportedLayerError, match="no Linear"):
        LayeredNetwork(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("chain", "named"),
    [
        ([nn.Linear(4, 5), nn.ReLU(), nn.Linear(6, 3)], r"layer 1, Linear.*\(6,\).*\(5,\)"),
        ([nn.Conv2d(1, 2, 3), nn.Linear(2, 3)], r"layer 1, Linear.*Flatten"),
        ([nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)], r"layer 0, Conv2d.*\(1, 4, 4\)"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(9, 3)], r"layer 1, Linear.*\(8,\)"),
        ([nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2, 3)], r"layer 0, Conv2d.*\(1, 4, 4\)"),
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(2, 3)], "MaxPool2d"),
        ([nn.Linear(4, 5), nn.LayerNorm(7), nn.Linear(5, 3)], r"LayerNorm.*\(5,\)"),
        (
            [nn.Linear(4, 5), nn.LayerNorm(7, elementwise_affine=False), nn.Linear(5, 3)],
            r"LayerNorm.*\(5,\)",
        ),
        ([nn.Linear(4, 6), nn.GroupNorm(2, 4), nn.Linear(6, 3)], r"GroupNorm.*\(6,\)"),
        ([nn.Linear(4, 6), nn.BatchNorm1d(1), nn.Linear(6, 3)], r"BatchNorm1d.*\(6,\)"),
    ],
)
def test_sizes_that_do_not_fit_name_the_layer(chain, named):
    shape = (1, 4, 4) if isinstance(chain[0], nn.Conv2d) else (4,)
    with pytest.raises(ShapeError, match=f"(?s){named}"):
        image(*chain, shape=shape, batch_norm="running")


def test_convolutions_need_the_shape_of_an_example():
    with pytest.raises(ConfigurationError, match="input_shape"):
        LayeredNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)))


@pytest.mark.parametrize("policy", [None, "both"])
def test_batch_norm_needs_a_declared_policy(policy):
    with pytest.raises(ConfigurationError, match="BatchNorm1d needs a declared policy"):
        LayeredNetwork(mlp(4, 3).insert(0, nn.BatchNorm1d(4)), batch_norm=policy)
    with pytest.raises(ConfigurationError, match="track_running_stats"):
        LayeredNetwork(
            mlp(4, 3).insert(0, nn.BatchNorm1d(4, track_running_stats=False)), batch_norm="running"
        )


def test_batch_statistics_of_one_row_are_an_error():
    """They are the row itself: every output would be the norm's bias."""
    network, _, shape = built("BatchNorm1d, batch")
    learner = Learner(network, Backprop(), Delta(0.1), SquaredError())
    with pytest.raises(MetaplasticError, match=r"two rows|running"):
        learner.clone().adapt(normal(1, *shape), normal(1, WAYS))


@pytest.mark.parametrize("bad", [(3, 5), (3, 1, 4), (4,)])
def test_examples_of_the_wrong_shape_are_an_error(bad):
    for network in (LayeredNetwork(mlp(4, 3)), LayeredNetwork(mlp(4, 3), input_shape=(4,))):
        with pytest.raises(ShapeError, match=r"\(4,\)"):
            network.features(normal(*bad))


def test_building_leaves_the_users_chain_as_it_is():
    chain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    network = LayeredNetwork(chain)
    assert network.body is chain
    assert chain[1].inplace
    assert network.parameter("layer0_weight") is chain[0].weight
    assert chain.training
