"""Higher's inner-loop context, run by local plasticity."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    Oja,
    PlasticityRule,
    SquaredError,
    Unrolled,
)
from metaplastic.adapters.higher import PlasticOptimizer
from metaplastic.credit.alignment import KolenPollack, WeightMirror
from metaplastic.errors import CompatibilityError, ConfigurationError, DivergenceError
from metaplastic.signals import GivenError, LocalSignals, Presentation
from tests.helpers import (
    assert_close,
    classification,
    gradients,
    meta_gradient,
    mlp,
    normal,
    regression,
    seeded,
    shake,
)

TOLERANCE = 1e-10
FLP = {"role:bias": None, "position:last": Oja(0.05, mix=1.0), "*": Oja(0.05)}
METHODS = {
    "FLP": (DirectFeedback(bias=True), FLP),
    "feedback x delta": (DirectFeedback(), {"*": Delta(0.1, learned=True)}),
    "backprop x delta": (Backprop(), Delta(0.1, learned=True)),
}


class Eligibility(PlasticityRule):
    """A rule with a trace: a running mean of pre x error."""

    needs = frozenset({"teaching"})

    def init(self, weight):
        return {"e": torch.zeros_like(weight)}

    def update(self, weight, signals: LocalSignals, traces, coefficients):
        e = 0.5 * traces["e"] + signals.correlate(signals.error, signals.pre, "examples")
        return 0.1 * e, {"e": e}


def squared(output: Tensor, y: Tensor) -> Tensor:
    """The loss whose error is y - output in each example, as a mean over the examples."""
    return 0.5 * (output - y).square().sum(-1).mean()


def learner_for(method: str, regress: bool = False, **options) -> Learner:
    credit, rule = METHODS[method]
    objective = SquaredError() if regress else CrossEntropy()
    return shaken(Learner(mlp(4, 6, 5, 3), credit, rule, objective, **options))


def shaken(learner: Learner) -> Learner:
    return shake(learner, plasticity=0.05, mixing=0.3, control=0.1, feedback=0.3)


def body_of(learner: Learner) -> nn.Sequential:
    """The user's own module."""
    assert isinstance(learner.network, LayeredNetwork)
    return learner.network.body


def episode(regress: bool = False, batch: int = 3, presentations: int = 6, seed: int = 0):
    make = regression if regress else classification
    return make(1, presentations, batch, 4, 3, seed=seed)


def stream(episodes: Episodes) -> list[tuple[Tensor, Tensor]]:
    return list(zip(episodes.support_x[0], episodes.support_y[0], strict=True))


def inner_loop(
    learner: Learner,
    episodes: Episodes,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    *,
    model: nn.Module | None = None,
    generator: torch.Generator | None = None,
    copy: bool = False,
    track: bool = True,
    shown_target: bool = False,
):
    """The loop of higher's documentation: the functional model and its optimiser, after it."""
    optimizer = PlasticOptimizer(learner, generator=generator)
    options = {"copy_initial_weights": copy, "track_higher_grads": track}
    with higher.innerloop_ctx(model or learner, optimizer, **options) as (fmodel, diffopt):
        for x, y in stream(episodes):
            more = {"target": y} if shown_target else {}
            diffopt.step(criterion(fmodel(x), y), **more)
    return fmodel, diffopt


def query(fmodel: Callable[[Tensor], Tensor], episodes: Episodes, regress: bool = False) -> Tensor:
    loss = F.mse_loss if regress else F.cross_entropy
    return loss(fmodel(episodes.query_x[0]), episodes.query_y[0])


def values(learner: Learner) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in learner.state_dict().items()}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("regress", [False, True], ids=["classes", "numbers"])
@pytest.mark.parametrize("method", METHODS)
def test_the_meta_gradient_is_that_of_unrolled(method, regress, batch):
    learner, episodes = learner_for(method, regress), episode(regress, batch)
    wanted = meta_gradient(learner, episodes, Unrolled())
    before = values(learner)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, squared if regress else F.cross_entropy)
    query(fmodel, episodes, regress).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)
    after = learner.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("method", METHODS)
def test_the_users_own_module_may_be_the_model(method):
    learner, episodes = learner_for(method), episode()
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    body = body_of(learner)
    fmodel, _ = inner_loop(learner, episodes, model=body)
    assert isinstance(fmodel, nn.Sequential)
    assert len(fmodel.fast_params) == len(list(body.parameters()))
    query(fmodel, episodes).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)


def cnn() -> LayeredNetwork:
    trunk = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh())
    chain = nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3)
    )
    return LayeredNetwork(chain, trunk=trunk, input_shape=(1, 4, 4))


@pytest.mark.parametrize("copy", [False, True])
def test_trunk_norm_and_convolution_are_meta_trained_too(copy):
    learner = shaken(Learner(cnn(), DirectFeedback(), {"*": Delta(0.05, learned=True)}))
    episodes = classification(1, 5, 2, (1, 4, 4), 3)
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, copy=copy)
    start = fmodel.init_fast_params
    query(fmodel, episodes).backward(inputs=list(start) if copy else None)
    if copy:
        assert all(p.grad is None for p in learner.parameters())
        found = {n: p.grad for (n, _), p in zip(learner.named_parameters(), start, strict=True)}
    else:
        found = gradients(learner)
    assert_close(found, wanted, TOLERANCE)


@pytest.mark.parametrize(
    ("credit", "rule"),
    [
        (KolenPollack("learned"), {"*": Delta(0.1, learned=True, decay=0.01)}),
        (DirectFeedback(), Eligibility()),
    ],
    ids=["plastic feedback", "trace"],
)
def test_what_a_step_keeps_goes_on_to_the_next(credit, rule):
    learner, episodes = shaken(Learner(mlp(4, 6, 3), credit, rule)), episode()
    wanted = meta_gradient(learner, episodes)
    for model in (learner, body_of(learner)):
        learner.zero_grad()
        fmodel, _ = inner_loop(learner, episodes, model=model)
        query(fmodel, episodes).backward()
        assert_close(gradients(learner), wanted, TOLERANCE)


def test_plastic_feedback_is_among_the_fast_weights():
    learner = shaken(Learner(mlp(4, 6, 3), KolenPollack("learned"), Delta(0.1)))
    fmodel, _ = inner_loop(learner, episode())
    at = [name for name, _ in learner.named_parameters()].index("credit.layer1_feedback")
    moved, start = fmodel.fast_params[at], fmodel.init_fast_params[at]
    forward = [name for name, _ in learner.named_parameters()].index("network.body.2.weight")
    change = fmodel.fast_params[forward] - fmodel.init_fast_params[forward]
    torch.testing.assert_close(moved - start, change)
    assert float(change.detach().abs().max()) > 0.01


class Sized(DirectFeedback):
    """A credit whose state has a row for each example."""

    def start(self, network, weights, batch):
        return {"rows": torch.zeros(batch, 1)}

    def present(self, network, state, presentation, learn):
        assert len(state["credit"]["rows"]) == len(presentation.x)
        return super().present(network, state, presentation, learn)


def test_a_look_at_the_queries_is_no_presentation():
    learner, episodes = shaken(Learner(mlp(4, 6, 5, 3), Sized(), FLP)), episode()
    wanted = query(inner_loop(learner, episodes)[0], episodes)
    optimizer = PlasticOptimizer(learner)
    with higher.innerloop_ctx(learner, optimizer) as (fmodel, diffopt):
        for x, y in stream(episodes):
            fmodel(episodes.query_x[0])
            loss = F.cross_entropy(fmodel(x), y)
            with torch.no_grad():
                fmodel(episodes.query_x[0])
            diffopt.step(loss)
    torch.testing.assert_close(query(fmodel, episodes), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("signal", ["error", "target"])
def test_a_target_may_be_shown_beside_the_loss(signal):
    rule = {"role:bias": None, "position:last": Oja(0.05, mix=1.0), "*": Oja(0.05)}
    learner = shaken(Learner(mlp(4, 6, 3), DirectFeedback(signal), rule))
    episodes = episode()
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, shown_target=True)
    query(fmodel, episodes).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)


def test_higher_documented_loop_runs_and_the_query_loss_falls():
    """As in higher's README: an outer optimiser over the model, one inner loop for each task."""
    g = seeded()
    learner = Learner(mlp(8, 16, 3, activation=nn.ReLU).float(), *METHODS["FLP"])
    inner = PlasticOptimizer(learner)
    outer = torch.optim.Adam(learner.parameters(), 1e-2)
    criterion, history = nn.CrossEntropyLoss(), []
    for _ in range(60):
        outer.zero_grad()
        for _ in range(2):
            centres = torch.randn(3, 8, generator=g)
            y = torch.arange(3).repeat(3)
            xs = centres[y] + 0.3 * torch.randn(9, 8, generator=g)
            xq = centres[y] + 0.3 * torch.randn(9, 8, generator=g)
            with higher.innerloop_ctx(learner, inner, copy_initial_weights=False) as context:
                fnet, diffopt = context
                for x, label in zip(xs, y, strict=True):
                    diffopt.step(criterion(fnet(x[None]), label[None]))
                loss = criterion(fnet(xq), y)
                loss.backward()
                history.append(float(loss.detach()))
        outer.step()
    assert sum(history[-20:]) < 0.6 * sum(history[:20])


def test_copied_weights_leave_the_learner_alone():
    learner, episodes = learner_for("FLP"), episode()
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, copy=True)
    found = torch.autograd.grad(query(fmodel, episodes), fmodel.init_fast_params)
    names = [name for name, _ in learner.named_parameters()]
    assert_close(dict(zip(names, found, strict=True)), wanted, TOLERANCE)
    assert all(p.grad is None for p in learner.parameters())


def test_copied_weights_of_the_body_keep_feedback_and_plasticity_learned():
    learner, episodes = learner_for("FLP"), episode()
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    body = body_of(learner)
    fmodel, _ = inner_loop(learner, episodes, model=body, copy=True)
    query(fmodel, episodes).backward()
    assert all(p.grad is None for p in body.parameters())
    rest = {n: p.grad for n, p in learner.named_parameters() if not n.startswith("network")}
    assert_close(rest, {name: wanted[name] for name in rest}, TOLERANCE)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("whole", [True, False], ids=["learner", "body"])
def test_without_tracking_the_values_are_the_same_and_there_is_no_graph(copy, whole):
    learner, episodes = learner_for("FLP"), episode()
    model = learner if whole else body_of(learner)
    tracked, _ = inner_loop(learner, episodes, model=model)
    plain, _ = inner_loop(learner, episodes, model=model, copy=copy, track=False)
    for p, q in zip(plain.fast_params, tracked.fast_params, strict=True):
        assert torch.equal(p, q)
        assert p.is_leaf
        assert p.requires_grad
    loss = query(plain, episodes)
    torch.testing.assert_close(loss, query(tracked, episodes))
    loss.backward()
    assert all(p.grad is None for p in learner.parameters())


def test_gradients_of_two_episodes_add_up():
    learner = learner_for("FLP")
    first, second = episode(seed=0), episode(seed=50)
    one, other = meta_gradient(learner, first), meta_gradient(learner, second)
    learner.zero_grad()
    for episodes in (first, second):
        query(inner_loop(learner, episodes)[0], episodes).backward()
    assert_close(gradients(learner), {n: one[n] + other[n] for n in one}, TOLERANCE)


def test_fast_weights_given_by_hand_are_the_ones_used():
    """Higher's ``params=``: the forward pass and the step start from them."""
    learner, episodes = learner_for("backprop x delta"), episode()
    (x, y), *_ = stream(episodes)
    with higher.innerloop_ctx(learner, PlasticOptimizer(learner)) as (fmodel, diffopt):
        start = list(fmodel.fast_params)
        first = diffopt.step(F.cross_entropy(fmodel(x), y))
        again = diffopt.step(F.cross_entropy(fmodel(x, params=start), y))
        output = fmodel(x, params=first)
        further = list(diffopt.step(F.cross_entropy(output, y), params=start))
    for a, b, s in zip(first, again, start, strict=True):
        assert torch.equal(a, b)
        assert a is s or not torch.equal(a, s)
    assert all(a is s for a, s in zip(fmodel.init_fast_params, start, strict=True))
    # The weights at the start, moved by the error that the loss reads at the later output.
    error = F.one_hot(y, 3) - output.softmax(-1)
    shown = Presentation(x, GivenError(learner.objective, error))
    wanted = learner.step(learner.start(len(x)), shown)["weights"]
    names = [name for name, _ in learner.named_parameters()]
    for layer, position in enumerate((0, 2, 4)):
        moved = further[names.index(f"network.body.{position}.weight")]
        torch.testing.assert_close(moved, wanted[f"layer{layer}_weight"], rtol=1e-12, atol=0)


def test_resampled_weights_are_drawn_once_in_every_episode():
    learner = shaken(
        Learner(mlp(4, 6, 3), DirectFeedback(weights="resampled"), FLP, initial="resampled")
    )
    episodes = episode()
    wanted = meta_gradient(learner, episodes, generator=seeded(5))
    learner.zero_grad()
    generator = seeded(5)
    fmodel, _ = inner_loop(learner, episodes, generator=generator)
    loss = query(fmodel, episodes)
    loss.backward()
    assert_close(gradients(learner), wanted, TOLERANCE)
    other, _ = inner_loop(learner, episodes, generator=generator)
    assert not torch.equal(query(other, episodes), loss)


def test_noise_is_drawn_from_the_generator_and_asked_for():
    rule = {"role:feedback": Delta(0.1, decay=0.1, derivative=False), "*": Delta(0.1)}
    learner = shaken(Learner(mlp(4, 6, 3), WeightMirror("learned"), rule))
    episodes = episode(presentations=1, batch=2)
    # One presentation: its noise is the episode's, in the generator's order.
    wanted = meta_gradient(learner, episodes, generator=seeded(3))
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, generator=seeded(3))
    query(fmodel, episodes).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)
    with pytest.raises(ConfigurationError, match="draws noise"):
        inner_loop(learner, episodes)


def test_an_episode_is_freed_with_its_last_name():
    learner, episodes = learner_for("FLP"), episode()
    gc.disable()
    try:
        fmodel, diffopt = inner_loop(learner, episodes)
        watched = weakref.ref(fmodel)
        weight = weakref.ref(fmodel.fast_params[0])
        del fmodel, diffopt
        assert watched() is None
        assert weight() is None
    finally:
        gc.enable()


def test_without_tracking_the_past_is_freed_at_once():
    """No fast weights outlive the step that moves them, with a trace of them or not."""
    learner = shaken(Learner(mlp(4, 6, 3), DirectFeedback(), Eligibility()))
    options = {"track_higher_grads": False}
    gc.disable()
    try:
        with higher.innerloop_ctx(learner, PlasticOptimizer(learner), **options) as pair:
            fmodel, diffopt = pair
            past = []
            for x, y in stream(episode()):
                diffopt.step(F.cross_entropy(fmodel(x), y))
                past.append(weakref.ref(fmodel.fast_params[0]))
            assert [fast() is None for fast in past] == [True] * (len(past) - 1) + [False]
    finally:
        gc.enable()


def test_autograd_never_enters_the_hidden_layers():
    """No backward pass of the network's: a step takes the slope at the output alone."""
    learner, episodes = learner_for("FLP"), episode()
    (x, y), *_ = stream(episodes)
    with higher.innerloop_ctx(learner, PlasticOptimizer(learner)) as (fmodel, diffopt):
        for weight in list(fmodel.parameters()):
            weight.register_hook(lambda _: pytest.fail("a gradient reached a weight"))
        output = fmodel(x)
        diffopt.step(F.cross_entropy(output, y))


def one_step(learner: Learner, loss: Callable, model: nn.Module | None = None, **options) -> None:
    x = normal(2, 4)
    optimizer = PlasticOptimizer(learner)
    with higher.innerloop_ctx(model or learner, optimizer) as (fmodel, diffopt):
        diffopt.step(loss(fmodel, x), **options)


Y = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda fmodel, x: torch.ones((), requires_grad=True), "after no forward pass"),
        (lambda fmodel, x: fmodel(x), "scalar loss"),
        (lambda fmodel, x: F.cross_entropy(fmodel(x), Y).detach(), "requires_grad=False"),
        (lambda fmodel, x: fmodel.fast_params[0].sum() + 0 * fmodel(x).detach().sum(), "depend"),
        (lambda fmodel, x: (F.cross_entropy(fmodel(x), Y), fmodel(x))[0], "last fmodel"),
    ],
    ids=["no forward", "no scalar", "no graph", "another loss", "an earlier output"],
)
def test_a_loss_that_is_none_of_the_last_output_is_refused(loss, words):
    with pytest.raises(ConfigurationError, match=words):
        one_step(learner_for("FLP"), loss)


def cross_entropy(fmodel, x):
    return F.cross_entropy(fmodel(x), Y)


def test_a_second_step_needs_a_second_forward_pass():
    learner = learner_for("FLP")
    with higher.innerloop_ctx(learner, PlasticOptimizer(learner)) as (fmodel, diffopt):
        loss = cross_entropy(fmodel, normal(2, 4))
        diffopt.step(loss)
        with pytest.raises(ConfigurationError, match="after no forward pass"):
            diffopt.step(loss)


def test_target_feedback_asks_for_the_target():
    learner = Learner(mlp(4, 6, 3), DirectFeedback("target"), FLP)
    with pytest.raises(CompatibilityError, match=r"diffopt\.step\(loss, target=y\)"):
        one_step(learner, cross_entropy)


@pytest.mark.parametrize("name", ["override", "grad_callback", "momentum"])
def test_what_has_no_meaning_is_refused(name):
    with pytest.raises(ConfigurationError, match=name):
        one_step(learner_for("FLP"), cross_entropy, **{name: {"lr": [0.1]}})


def test_override_of_the_context_is_refused():
    learner = learner_for("FLP")
    with (
        pytest.raises(ConfigurationError, match="override"),
        higher.innerloop_ctx(learner, PlasticOptimizer(learner), override={"lr": [0.1]}),
    ):
        pass


def other_models() -> dict[str, Callable[[Learner], nn.Module]]:
    return {
        "another learner": lambda learner: learner_for("FLP"),
        "another module": lambda learner: mlp(4, 6, 5, 3),
        "a part": lambda learner: body_of(learner)[:3],
        "something around it": lambda learner: nn.Sequential(body_of(learner), nn.Tanh()),
        "the network": lambda learner: learner.network,
        "a clone": lambda learner: learner.clone(),
    }


@pytest.mark.parametrize("which", other_models())
def test_a_model_that_the_optimiser_was_not_made_for_is_refused(which):
    learner = learner_for("FLP")
    with pytest.raises(ConfigurationError, match="made for"):
        one_step(learner, cross_entropy, model=other_models()[which](learner))


def test_the_body_behind_a_trunk_is_no_model():
    learner = shaken(Learner(cnn(), DirectFeedback(), Delta(0.05)))
    with pytest.raises(ConfigurationError, match="no trunk"):
        one_step(learner, cross_entropy, model=body_of(learner))


def test_a_model_alone_is_not_enough():
    learner = learner_for("FLP")
    with pytest.raises(ConfigurationError, match="NoneType"):
        higher.get_diff_optim(PlasticOptimizer(learner), learner.parameters())


@pytest.mark.parametrize("wrong", [mlp(4, 3), [], None])
def test_the_optimiser_takes_a_learner(wrong):
    with pytest.raises(ConfigurationError, match="takes a Learner"):
        PlasticOptimizer(wrong)
    with pytest.raises(ConfigurationError, match="takes a Learner"):
        PlasticOptimizer(learner_for("FLP").clone())


def test_the_optimiser_does_not_step_by_itself():
    with pytest.raises(ConfigurationError, match=r"innerloop_ctx.*assign_grads"):
        PlasticOptimizer(learner_for("FLP")).step()


def test_divergence_is_an_error_that_changes_nothing():
    learner = Learner(mlp(4, 6, 3), Backprop(), Delta(1.0))
    with higher.innerloop_ctx(learner, PlasticOptimizer(learner)) as (fmodel, diffopt):
        before = fmodel.fast_params
        loss = cross_entropy(fmodel, normal(2, 4)) * float("inf")
        with pytest.raises(DivergenceError, match="after step 0 diverged in layer0_weight"):
            diffopt.step(loss)
        assert fmodel.fast_params is before


def test_objective_scale_batch_reads_the_loss_as_it_is():
    episodes = episode()
    learner = shaken(
        Learner(mlp(4, 6, 3), Backprop(), Delta(0.1, reduction="sum"), CrossEntropy("batch"))
    )
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes)
    query(fmodel, episodes).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)


def test_subclasses_are_registered_too():
    class Renamed(PlasticOptimizer):
        pass

    learner = learner_for("FLP")
    with higher.innerloop_ctx(learner, Renamed(learner)) as (_, diffopt):
        assert isinstance(diffopt, higher.optim.DifferentiableOptimizer)


ADAPTER = "from metaplastic.adapters.higher import PlasticOptimizer\n"


def test_the_adapter_imports_higher_only_when_it_is_used():
    code = "import sys\n" + ADAPTER + "sys.exit('higher' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_higher_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(ConfigurationError, match="pip install higher"):
        PlasticOptimizer(learner_for("FLP"))
