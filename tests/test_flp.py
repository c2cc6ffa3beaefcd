"""Feedback and local plasticity: whole learners, against the equations run by plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    CrossEntropy,
    Delta,
    DirectFeedback,
    Hebb,
    LayeredNetwork,
    Learner,
    LocalSignals,
    Oja,
    SquaredError,
    Unrolled,
)
from metaplastic.rules import Coefficient
from metaplastic.signals import State
from tests.helpers import (
    assert_close,
    deviation,
    final_weights,
    mlp,
    normal,
    presentation,
    regression,
    seeded,
    shake,
    show,
)

Matrix = list[list[float]]


def affine(x: list[float], weight: Matrix, bias: list[float]) -> list[float]:
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def relu(x: list[float]) -> list[float]:
    return [max(v, 0.0) for v in x]


class ByHand:
    """The published learners, and the bounded one, one number at a time.

    Reads the raw numbers of a Learner once and keeps weights of its own.
    """

    def __init__(self, learner: Learner, layers: int, depth: int, *, clamp: bool) -> None:
        numbers = {n: v.tolist() for n, v in learner.state_dict().items()}
        self.weights: list[Matrix] = [
            numbers[f"network.body.{2 * i}.weight"] for i in range(layers)
        ]
        self.biases = [numbers[f"network.body.{2 * i}.bias"] for i in range(layers)]
        self.plasticity = [numbers[f"rules.layer{i}_weight.plasticity.raw"] for i in range(layers)]
        self.mix = [numbers[f"rules.layer{i}_weight.mix.raw"][0][0] for i in range(layers)]
        names = [[f"credit.layer{i}_feedback{j + 1}" for j in range(depth)] for i in range(layers)]
        self.feedback = [
            [(numbers[n], [c for (c,) in numbers[f"{n}_bias"]]) for n in row if n in numbers]
            for row in names
        ]
        assert [len(maps) for maps in self.feedback] == [depth] * (layers - clamp) + [0] * clamp

    def step(
        self,
        xs: Matrix,
        top: Callable[[int, list[float]], list[float]],
        *,
        bounded: bool = False,
        hebbian: bool = False,
        multiplier: float = 1.0,
    ) -> None:
        """One presentation; ``top`` gives the output's signal of an example and its output."""
        last = len(self.weights) - 1
        pres: list[Matrix] = [[] for _ in self.weights]
        zs: list[Matrix] = [[] for _ in self.weights]
        for b, x in enumerate(xs):
            activity = [x]
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                potential = affine(activity[-1], weight, bias)
                activity.append(potential if i == last else relu(potential))
            signal = top(b, activity[-1])
            for i, maps in enumerate(self.feedback):
                r = signal
                for matrix, offset in maps:
                    r = relu(affine(r, matrix, offset))
                mix = self.mix[i]
                if not maps:
                    mix = 1.0
                elif bounded:
                    mix = 1 / (1 + math.exp(-mix))
                pres[i].append(activity[i])
                zs[i].append(
                    [mix * rk + (1 - mix) * xk for rk, xk in zip(r, activity[i + 1], strict=True)]
                )
        share = 1 / len(xs) if bounded else 1.0
        for i, weight in enumerate(self.weights):
            factor = multiplier if self.feedback[i] else 1.0
            for k, row in enumerate(weight):
                energy = share * sum(z[k] ** 2 for z in zs[i])
                for j, w in enumerate(row):
                    hebb = share * sum(z[k] * x[j] for z, x in zip(zs[i], pres[i], strict=True))
                    change = hebb if hebbian else hebb - energy * w
                    p = self.plasticity[i][k][j]
                    if bounded:
                        p, change = math.tanh(p), change / (1 + energy)
                    row[j] = w + factor * p * change


def compare(learner: Learner, hand: ByHand, xs: Tensor, ys: Tensor, signal, **options) -> None:
    """T presentations to both; every weight to 1e-12 after each, and every layer moved."""
    begin = state = learner.start(xs.shape[1])
    assert learner.plastic == {f"layer{i}_weight" for i in range(len(hand.weights))}
    for x, y in zip(xs, ys, strict=True):
        state = learner.step(state, presentation(learner, x, y))
        hand.step(x.tolist(), signal(y.tolist()), **options)
        for i, weight in enumerate(hand.weights):
            wanted = torch.tensor(weight, dtype=torch.float64)
            assert deviation(state["weights"][f"layer{i}_weight"], wanted) < 1e-12
    for name in learner.plastic:
        assert not torch.equal(state["weights"][name], begin["weights"][name]), name


def regression_error(ys: Matrix) -> Callable[[int, list[float]], list[float]]:
    return lambda b, out: [y - o for y, o in zip(ys[b], out, strict=True)]


def one_hot(ways: int) -> Callable[[list[int]], Callable[[int, list[float]], list[float]]]:
    return lambda ys: lambda b, out: [float(k == ys[b]) for k in range(ways)]


def softmax_error(ways: int) -> Callable[[list[int]], Callable[[int, list[float]], list[float]]]:
    """Minus the gradient, with respect to the outputs, of the mean cross-entropy of a batch."""

    def of_batch(ys: list[int]) -> Callable[[int, list[float]], list[float]]:
        def signal(b: int, out: list[float]) -> list[float]:
            total = sum(math.exp(o) for o in out)
            return [((k == ys[b]) - math.exp(o) / total) / len(ys) for k, o in enumerate(out)]

        return signal

    return of_batch


@pytest.mark.parametrize("hebbian", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_flp_P01_regression_learner_equals_loops_over_numbers(depth, batch, hebbian):
    """Error fed back to every layer, the output included; free P and mix; sums over the batch."""
    rule = (Hebb if hebbian else Oja)(0.0, bounded=False)
    credit = DirectFeedback(
        "error", depth=depth, width=5, rectify=True, bias=True, output="feedback"
    )
    learner = Learner(mlp(3, 5, 4, 2, activation=nn.ReLU), credit, rule, SquaredError())
    shake(learner, 3, plasticity=0.05, mixing=0.3, feedback=0.5)
    hand = ByHand(learner, 3, depth, clamp=False)
    xs, ys = normal(5, batch, 3, seed=1), normal(5, batch, 2, seed=2)
    compare(learner, hand, xs, ys, regression_error, hebbian=hebbian)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("signal", ["target", "error"])
def test_flp_P01_classifier_equals_loops_over_numbers(signal, batch, depth):
    """The output clamped to the signal, the hidden layers' step multiplied."""
    credit = DirectFeedback(signal, depth=depth, width=4, rectify=True, bias=True, output="clamp")
    rule = {
        "role:bias": None,
        "position:last": Oja(0.0, Coefficient(1.0, learned=False), bounded=False),
        "role:weight": Oja(0.0, bounded=False, multiplier=10),
    }
    learner = Learner(
        mlp(3, 5, 4, 3, activation=nn.ReLU), credit, rule, CrossEntropy(scale="batch")
    )
    shake(learner, 5, plasticity=0.02, mixing=0.3, feedback=0.5)
    hand = ByHand(learner, 3, depth, clamp=True)
    xs, ys = normal(5, batch, 3, seed=1), torch.randint(3, (5, batch), generator=seeded(2))
    top = (one_hot if signal == "target" else softmax_error)(3)
    compare(learner, hand, xs, ys, top, multiplier=10)


@pytest.mark.parametrize("batch", [1, 3])
def test_flp_P01_bounded_learner_equals_loops_over_numbers(batch):
    credit = DirectFeedback("error", rectify=True, bias=True)
    rule = {"role:bias": None, "position:last": Oja(0.0, 1.0), "*": Oja(0.0)}
    learner = Learner(mlp(3, 5, 4, 2, activation=nn.ReLU), credit, rule, SquaredError())
    shake(learner, 7, plasticity=0.8, mixing=0.5, feedback=0.5)
    hand = ByHand(learner, 3, 1, clamp=True)
    xs, ys = normal(5, batch, 3, seed=1), normal(5, batch, 2, seed=2)
    compare(learner, hand, xs, ys, regression_error, bounded=True)


def test_flp_P01_episodes_run_at_once_end_where_single_steps_do():
    credit = DirectFeedback("error", rectify=True, bias=True, output="feedback")
    learner = Learner(mlp(3, 5, 2), credit, Oja(0.0, bounded=False), SquaredError())
    shake(learner, 3, plasticity=0.05, mixing=0.3, feedback=0.5)
    episodes = regression(3, 5, 2, 3, 2)
    together = final_weights(learner, episodes)
    for e in range(3):
        alone = show(learner, episodes.support_x[e], episodes.support_y[e])["weights"]
        assert_close({n: w[e] for n, w in together.items()}, {n: alone[n] for n in together}, 1e-12)


# --- no autograd, no transport ---


@pytest.fixture
def no_autograd(monkeypatch):
    """Any backward pass raises."""

    def forbidden(*_, **__):
        raise AssertionError("an inner step ran a backward pass")

    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    monkeypatch.setattr(torch.autograd, "backward", forbidden)
    monkeypatch.setattr(Tensor, "backward", forbidden)


@pytest.mark.parametrize("signal", ["error", "target"])
@pytest.mark.parametrize("rule", [Oja(0.1), Hebb(0.1, bounded=False), Delta(0.125)])
@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_flp_P02_step_needs_no_autograd(network, rule, signal, no_autograd):
    if network == "dense":
        chain, xs = LayeredNetwork(mlp(3, 5, 2)), normal(4, 3, 3)
    else:
        conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
        chain, xs = LayeredNetwork(conv, input_shape=(1, 3, 4)), normal(4, 3, 1, 3, 4)
    learner = Learner(chain, DirectFeedback(signal), {"*": rule}, SquaredError()).double()
    ys = normal(4, 3, 2, seed=1)
    with_graph = show(learner, xs, ys)["weights"]
    with torch.inference_mode():
        without = show(learner, xs, ys)["weights"]
    assert without["layer0_weight"].is_inference()
    assert all(torch.equal(with_graph[n], without[n]) for n in with_graph)


def test_flp_P02_output_error_is_one_hot_minus_softmax():
    """Written by hand; minus the gradient of the cross-entropy, of each example or of the mean."""
    output, y = 3 * normal(5, 4), torch.tensor([3, 0, 0, 2, 1])
    free = output.clone().requires_grad_()
    losses = nn.functional.cross_entropy(free, y, reduction="none")
    for objective, loss, share in (
        (CrossEntropy(), losses.sum(), 1),
        (CrossEntropy(scale="batch"), losses.mean(), 5),
    ):
        error = objective.error(output, objective.encode(y, 4).double())
        (slope,) = torch.autograd.grad(loss, free, retain_graph=True)
        assert deviation(error, -slope) < 1e-12
        for row, wanted, label in zip(output.tolist(), error, y.tolist(), strict=True):
            total = sum(math.exp(o) for o in row)
            for k, o in enumerate(row):
                assert abs(float(wanted[k]) - ((k == label) - math.exp(o) / total) / share) < 1e-12


def test_flp_P05_overshooting_plasticity_is_reported():
    rule = Oja(Coefficient(1e12, learned=False), 0.0, bounded=False)
    learner = shake(Learner(mlp(5, 4, 2), DirectFeedback(), rule, SquaredError()))
    outcome = Unrolled().gradient(learner, regression(1, 40, 2, 5, 2))
    assert outcome.kept == ()
    assert [d.episode for d in outcome.diverged] == [0]


def prototypes(n_in: int, ways: int) -> Learner:
    """A clamped head alone: one layer whose teaching signal is the label."""
    rule = Oja(0.3, Coefficient(1.0, learned=False), bounded=False)
    return shake(Learner(mlp(n_in, ways), DirectFeedback("target"), rule))


def present_with_rates(
    learner: Learner, xs: Tensor, ys: Tensor, rates: list[float]
) -> tuple[State, list[Tensor]]:
    """One example at a time under plasticity ``rates[t]``; the state and the weights on the way."""
    state, path = learner.start(1), []
    for x, y, rate in zip(xs, ys, rates, strict=True):
        values = state["coefficients"]["layer0_weight"]
        values = values | {"plasticity": torch.full_like(values["plasticity"], rate)}
        state = {**state, "coefficients": {"layer0_weight": values}}
        state = learner.step(state, presentation(learner, x[None], y[None]))
        path.append(state["weights"]["layer0_weight"])
    return state, path


def test_flp_P06_clamped_head_keeps_a_running_mean_of_each_class():
    learner = prototypes(6, 3)
    xs, ys = normal(8, 6, seed=3), torch.tensor([1, 0, 1, 1, 0, 1, 2, 2])
    begin = learner.start()["weights"]["layer0_weight"].detach()
    rate = 0.3
    state, path = present_with_rates(learner, xs, ys, [rate] * 8)
    for before, after, y in zip([begin, *path], path, ys, strict=False):
        others = [k for k in range(3) if k != y]
        assert torch.equal(before[others], after[others])
        assert not torch.equal(before[y], after[y])
    for k in range(3):
        mine = xs[ys == k]
        n = len(mine)
        wanted = (1 - rate) ** n * begin[k]
        for i, x in enumerate(mine):
            wanted = wanted + rate * (1 - rate) ** (n - 1 - i) * x
        assert deviation(state["weights"]["layer0_weight"][k], wanted) < 1e-12


def test_flp_P06_rate_one_over_n_gives_the_exact_class_means():
    learner = prototypes(6, 3)
    xs, ys = normal(8, 6, seed=3), torch.tensor([1, 0, 1, 1, 0, 1, 2, 2])
    counts = [int((ys[: t + 1] == ys[t]).sum()) for t in range(8)]
    state, _ = present_with_rates(learner, xs, ys, [1 / n for n in counts])
    means = torch.stack([xs[ys == k].mean(0) for k in range(3)])
    assert deviation(state["weights"]["layer0_weight"], means) < 1e-12


def test_flp_P06_classes_do_not_interfere_in_the_head():
    learner = prototypes(6, 3)
    xs, ys = normal(9, 6, seed=3), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    order = [6, 7, 8, 0, 1, 2, 3, 4, 5]
    one = show(learner, xs[:, None], ys[:, None])
    two = show(learner, xs[order][:, None], ys[order][:, None])
    assert torch.equal(one["weights"]["layer0_weight"], two["weights"]["layer0_weight"])


class Listener:
    """A learn that keeps the signals and changes nothing."""

    def __init__(self, learner: Learner) -> None:
        self.needs = {name: frozenset({"teaching"}) for name in learner.plastic}
        self.heard: dict[str, LocalSignals] = {}

    def __call__(self, state: State, signals: dict[str, LocalSignals], share: float = 1.0) -> State:
        self.heard |= signals
        return state


def teaching(learner: Learner, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    listener = Listener(learner)
    shown = presentation(learner, x, y)
    learner.credit.present(learner.network, learner.start(len(x)), shown, listener)
    return {name: signals.teaching.detach() for name, signals in listener.heard.items()}


def test_flp_P07_target_feedback_depends_on_no_weight_of_the_network():
    credit = DirectFeedback("target", depth=2, width=5, rectify=True, bias=True)
    learner = shake(Learner(mlp(3, 6, 4, 3), credit, Oja(0.1)), feedback=0.2)
    x, y = normal(2, 3), torch.tensor([2, 0])
    before = teaching(learner, x, y)
    shake(learner, 1, initial=1.0)
    after = teaching(learner, 3 * x, y)
    assert before.keys() == {"layer0_weight", "layer1_weight", "layer2_weight"}
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_flp_P07_a_layer_hears_only_its_own_feedback_weights():
    credit = DirectFeedback("target", bias=True)
    learner = shake(Learner(mlp(3, 6, 4, 3), credit, Oja(0.1)), feedback=0.2)
    x, y = normal(2, 3), torch.tensor([2, 0])
    before = teaching(learner, x, y)
    with torch.no_grad():
        learner.credit.weights()["layer1_feedback1"].add_(1.0)
    after = teaching(learner, x, y)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"layer1_weight"}


def hebbian_sum(mix: float, family: type[Hebb] = Hebb) -> Learner:
    rule = family(Coefficient(0.1, learned=False), Coefficient(mix, learned=False), bounded=False)
    credit = DirectFeedback("target", output="clamp")
    return shake(Learner(mlp(6, 4, 3), credit, rule), feedback=0.5)


def test_flp_P12_order_matters_unless_nothing_interacts():
    """One example at a time, orthogonal inputs, target feedback alone: Hebb adds up in any order
    in the layer that sees the inputs; Oja's decay does not, and neither does own activity.
    """
    xs = torch.eye(6, dtype=torch.float64)[:, None]
    ys = torch.tensor([0, 1, 2, 0, 1, 2])[:, None]
    order = [3, 0, 5, 1, 4, 2]

    def gap(learner: Learner) -> float:
        one, two = show(learner, xs, ys), show(learner, xs[order], ys[order])
        return deviation(one["weights"]["layer0_weight"], two["weights"]["layer0_weight"])

    assert gap(hebbian_sum(1.0)) < 1e-12
    assert gap(hebbian_sum(1.0, Oja)) > 1e-3
    assert gap(hebbian_sum(0.5, Oja)) > 1e-3


def test_flp_P15_hebb_is_hebb_at_every_step():
    """Clamped to the label and shown the same example, it adds the same change T times; over one
    step it is linear in P.
    """
    learner = hebbian_sum(1.0)
    x, y = normal(1, 1, 6), torch.tensor([[1]])
    begin = learner.start()["weights"]["layer0_weight"]
    changes = []
    for count in (1, 2, 7):
        state = show(learner, x.expand(count, 1, 6), y.expand(count, 1))
        changes.append(state["weights"]["layer0_weight"] - begin)
    assert deviation(changes[1], 2 * changes[0]) < 1e-13
    assert deviation(changes[2], 7 * changes[0]) < 1e-13


@pytest.mark.parametrize("bounded", [False, True])
def test_flp_P18_hidden_units_have_no_order(bounded):
    """Permuting a layer's units, with their rows, feedback and outgoing columns, changes nothing,
    before and after learning.
    """
    credit = DirectFeedback("error", bias=True, rectify=True, output="feedback")
    learner = Learner(mlp(3, 6, 5, 2), credit, Oja(0.0, bounded=bounded), SquaredError())
    shake(learner, 2, plasticity=0.1, mixing=0.2, feedback=0.3)
    xs, ys, query = normal(6, 2, 3, seed=3), normal(6, 2, 2, seed=4), normal(4, 3, seed=5)
    order = torch.randperm(6, generator=seeded(6))
    moved = {
        "network.body.0.weight": 0,
        "network.body.0.bias": 0,
        "network.body.2.weight": 1,
        "credit.layer0_feedback1": 0,
        "credit.layer0_feedback1_bias": 0,
        "rules.layer0_weight.plasticity.raw": 0,
        "rules.layer1_weight.plasticity.raw": 1,
    }

    def answers() -> list[Tensor]:
        states = [learner.start(2), show(learner, xs, ys)]
        return [learner.network(query, state["weights"]).detach() for state in states]

    before = answers()
    parameters = dict(learner.named_parameters())
    for name, axis in moved.items():
        parameters[name].data = parameters[name].data.index_select(axis, order)
    for one, two in zip(before, answers(), strict=True):
        assert deviation(two, one) < 1e-10
    assert deviation(before[1], before[0]) > 1e-2


@pytest.mark.parametrize("rule", [Hebb(0.2, 0.5, bounded=False), Hebb(0.2, 0.5)])
def test_flp_P19_tasks_without_a_shared_unit_do_not_interfere(rule):
    """Exactly. It holds for Hebb, whose change is 0 where the presynaptic unit is silent; Oja's
    decay also reaches the silent synapses of an output neuron that learns.
    """
    network = mlp(4, 6, 2, activation=nn.ReLU, bias=False)
    with torch.no_grad():  # inputs 0, 1 reach units 0..2 alone, inputs 2, 3 units 3..5
        first = network.get_parameter("0.weight")
        first[:3, 2:] = 0.0
        first[3:, :2] = 0.0
    credit = DirectFeedback("error")
    learner = Learner(network, credit, {"position:last": rule}, SquaredError()).double()
    eye = torch.eye(4, dtype=torch.float64)
    before = learner(eye)
    state = show(learner, eye[:2].unsqueeze(0).expand(5, 2, 4), normal(5, 2, 2))
    after = learner.network(eye, state["weights"])
    assert torch.equal(before[2:], after[2:])
    assert not torch.equal(before[:2], after[:2])
