"""The compiled engine gives the weights and the meta-gradient of the plain one."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    Oja,
    Pool,
    SquaredError,
    Unrolled,
    WeightMirror,
    evaluate,
    memory_estimate,
)
from metaplastic.errors import CompatibilityError
from metaplastic.inner_loop import Rollout, draw
from metaplastic.kernels import compiled, explain
from tests.helpers import assert_close, classification, mlp, normal, regression, seeded, shake

WAYS = 3
PLAIN, COMPILED = Unrolled(engine="plain"), Unrolled(engine="compiled")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def direct() -> Learner:
    network = LayeredNetwork(mlp(5, 6, 4, WAYS))
    made = Learner(network, DirectFeedback("target"), {"role:weight": Oja(0.1, 0.9)})
    return shake(made, plasticity=0.3, mixing=0.2, feedback=0.2)


def upper_layers() -> Learner:
    """Online-aware meta-learning: trunk and lowest layer stay as they are within an episode."""
    trunk = nn.Linear(5, 6).double()
    trunk.weight.data, trunk.bias.data = normal(6, 5, seed=1), normal(6, seed=2)
    network = LayeredNetwork(mlp(6, 5, 4, WAYS), trunk=trunk, input_shape=(5,))
    rules = {"name:layer0_*": None, "*": Delta(0.1, learned=True)}
    return shake(Learner(network, Backprop(), rules), plasticity=0.2)


def convolution() -> Learner:
    chain = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4), nn.LayerNorm(4), nn.Tanh(),
        nn.Linear(4, WAYS),
    ).double()  # fmt: skip
    for i, p in enumerate(chain.parameters()):
        p.data = 0.5 * normal(*p.shape, seed=i)
    network = LayeredNetwork(chain, input_shape=(1, 3, 3))
    return Learner(network, DirectFeedback("error"), {"role:weight": Oja(0.05, 0.9)})


def pool() -> Learner:
    """Initial weights need no gradient, those after a presentation do."""
    rules = {"role:weight": Pool({"F0": 0.05, "F6": 0.02, "F7": 0.03})}
    return Learner(mlp(5, 6, WAYS), Backprop(), rules, SquaredError(), initial="fixed")


def mirror() -> Learner:
    """Feedback that is drawn anew, learns from noise, and has a rule of its own."""
    rules = {"role:feedback": Delta(0.02, derivative=False, decay=0.1), "role:weight": Delta(0.1)}
    return Learner(mlp(5, 6, 4, WAYS), WeightMirror("resampled", sigma=0.3), rules)


LEARNERS: dict[str, Callable[[], Learner]] = {
    f.__name__: f for f in (direct, upper_layers, convolution, pool, mirror)
}


def shown_to(learner: Learner, episodes: int, presentations: int, batch: int = 2) -> Episodes:
    if isinstance(learner.objective, SquaredError):
        return regression(episodes, presentations, batch, 5, WAYS)
    shape = getattr(learner.network, "input_shape", None) or (5,)
    return classification(episodes, presentations, batch, shape, WAYS)


def gradient(learner: Learner, episodes: Episodes, method: Unrolled) -> dict[str, Tensor]:
    learner.zero_grad(set_to_none=True)
    outcome = method.gradient(learner, episodes, generator=seeded(1))
    assert not outcome.diverged
    found = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
    assert len(found) == len(list(learner.parameters()))
    return {"loss": outcome.loss, **found}


def assert_same(learner: Learner, episodes: Episodes, method: Unrolled = COMPILED) -> None:
    """To 1e-10 in every gradient, with nothing given mutated."""
    given = [t for t in vars(episodes).values() if t is not None]
    before = [t.clone() for t in [*given, *learner.state_dict().values()]]
    wanted = gradient(learner, episodes, replace(method, engine="plain"))
    assert any(bool(value.any()) for name, value in wanted.items() if name != "loss")
    assert_close(gradient(learner, episodes, method), wanted, 1e-10)
    for old, new in zip(before, [*given, *learner.state_dict().values()], strict=True):
        assert torch.equal(old, new)


class Counted:
    """A backend that compiles nothing, and counts what it is given."""

    def __init__(self) -> None:
        from torch._dynamo.backends.common import aot_autograd

        self.forward = self.backward = 0
        self._both = aot_autograd(fw_compiler=self._forward, bw_compiler=self._backward)

    def backend(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.forward += 1
        return self._both(graph, inputs)

    def _forward(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    def _backward(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.backward += 1
        return make_boxed_func(graph.forward)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as always and run by PyTorch's own operations."""
    monkeypatch.setattr(compiled, "Compiled", partial(compiled.Compiled, backend="eager"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    found = Counted()
    backend = found.backend
    monkeypatch.setattr(compiled, "Compiled", partial(compiled.Compiled, backend=backend))
    return found


# --- the same ---


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("episodes", [1, 3])
@pytest.mark.parametrize("name", LEARNERS)
def test_every_kind_of_learner(name: str, episodes: int) -> None:
    learner = LEARNERS[name]()
    for presentations in (1, 7):
        assert_same(learner, shown_to(learner, episodes, presentations))


@pytest.mark.parametrize("episodes", [1, 3])
def test_what_takes_part_of_the_stream_at_a_time(episodes: int, counted: Counted) -> None:
    learner = direct()
    shown = shown_to(learner, episodes, 7)
    for method in (
        replace(COMPILED, checkpoint_every=3),
        replace(COMPILED, truncate=4),
        replace(COMPILED, truncate=4, checkpoint_every=2),
    ):
        assert_same(learner, shown, method)
    evaluate(learner, shown, engine="compiled")
    assert (counted.forward, counted.backward) == (2, 1)  # one of them has no way back


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", ["direct", "convolution"])
def test_first_order(name: str) -> None:
    learner = LEARNERS[name]()
    assert_same(learner, shown_to(learner, 2, 4), replace(COMPILED, first_order=True))


@pytest.mark.usefixtures("traced")
def test_padding() -> None:
    weight = torch.ones(2, 5, 3)
    weight[0, 1, 2] = weight[1, 3] = 0
    learner = direct()
    assert_same(learner, replace(shown_to(learner, 2, 5, 3), support_weight=weight))


@pytest.mark.usefixtures("traced")
def test_one_by_one_and_under_a_budget() -> None:
    learner = direct()
    shown = shown_to(learner, 2, 20)
    assert_same(learner, shown, replace(COMPILED, batching="loop"))
    plan = memory_estimate(learner, shown, replace(COMPILED, batching="loop"))
    assert plan.engine == "compiled"
    assert plan.parts == memory_estimate(learner, shown, replace(PLAIN, batching="loop")).parts
    budget = replace(COMPILED, memory=plan.bytes // 2)
    assert memory_estimate(learner, shown, budget).checkpoint_every is not None
    assert_same(learner, shown, budget)


@pytest.mark.usefixtures("traced")
def test_evaluation_between_tasks_and_weights_after_the_stream() -> None:
    learner = direct()
    tasks = torch.arange(3).repeat_interleave(2).expand(3, 6)
    shown = classification(3, 6, 2, 5, WAYS, queries=6)
    shown = replace(shown, support_task=tasks, query_task=tasks)
    wanted, found = (evaluate(learner, shown, engine=e) for e in ("plain", "compiled"))
    names = ("loss", "task_loss", "forgetting")
    scores = [{n: getattr(e, n) for n in names} for e in (found, wanted)]
    assert_close(scores[0], scores[1], 1e-12)
    wanted, found = (
        Rollout(learner, shown, draw(learner, shown, None), engine=e) for e in ("plain", "compiled")
    )
    with torch.no_grad():
        for rollout in (wanted, found):
            rollout.advance(0, 6)
    assert_close(found.moving["weights"], wanted.moving["weights"], 1e-12)


@pytest.mark.usefixtures("traced")
def test_an_episode_that_diverges_is_left_out() -> None:
    rule = Oja(0.01, 0.5, bounded=False)
    learner = Learner(mlp(5, 6, WAYS, activation=nn.ReLU), DirectFeedback("target"), rule)
    shown = shown_to(learner, 3, 10)
    shown.support_x[1] *= 1e6
    found, wanted = (method.gradient(learner, shown) for method in (COMPILED, PLAIN))
    assert [d.episode for d in found.diverged] == [d.episode for d in wanted.diverged] == [1]
    assert_close({"loss": found.loss}, {"loss": wanted.loss}, 1e-10)


@needs_compiler
def test_by_a_compiler() -> None:
    learner = Learner(mlp(5, 4, WAYS), DirectFeedback("error"), {"role:weight": Oja(0.1, 0.9)})
    shown = shown_to(learner, 2, 5)
    assert_same(learner, shown)
    assert_same(learner, shown, replace(COMPILED, checkpoint_every=2))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("episodes", [1, 3])
@pytest.mark.parametrize("name", LEARNERS)
def test_every_kind_of_learner_by_a_compiler(name: str, episodes: int) -> None:
    learner = LEARNERS[name]()
    for presentations in (1, 7):
        assert_same(learner, shown_to(learner, episodes, presentations))
    assert_same(learner, shown_to(learner, episodes, 7), replace(COMPILED, checkpoint_every=3))
    assert len(compiled.compiled(learner, compiled.compiled).functions) == 1
    assert kept(learner, episodes, COMPILED) <= kept(learner, episodes, PLAIN)


def kept(learner: Learner, episodes: int, method: Unrolled) -> int:
    """Bytes that autograd keeps of a stream, beside the learner."""
    found: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    shown = shown_to(learner, episodes, 7)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rollout = Rollout(learner, shown, draw(learner, shown, seeded()), engine=method.engine)
        rollout.advance(0, 7)
    own = {p.untyped_storage().data_ptr() for p in learner.parameters()}
    return sum(size for where, (size, _) in found.items() if where not in own)


@pytest.mark.gpu
@pytest.mark.parametrize("every", [None, 3])
def test_on_a_gpu(every: int | None) -> None:
    learner = convolution().to("cuda")
    shown = shown_to(learner, 3, 7)
    for _ in range(3):  # CUDA graphs are made at the second
        assert_same(learner, shown, replace(COMPILED, checkpoint_every=every))
    wanted, found = (evaluate(learner, shown, engine=e) for e in ("plain", "compiled"))
    assert_close({"loss": found.loss}, {"loss": wanted.loss}, 1e-10)


# --- once ---


def test_meta_steps_compile_once_for_every_number_of_episodes(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = convolution()
    sizes = [learner.network.weights()[name].nbytes for name in learner.plastic]
    monkeypatch.setattr("metaplastic.inner_loop.CACHE_BYTES", 2 * sum(sizes))
    outer = torch.optim.SGD(learner.parameters(), lr=0.01)
    for step in range(5):  # two episodes, two and one; streams of other lengths are the same
        outer.zero_grad()
        COMPILED.gradient(learner, shown_to(learner, 5, 3 + step % 2))
        outer.step()
    assert (counted.forward, counted.backward) == (2, 2)
    assert_same(learner, shown_to(learner, 5, 4))
    assert (counted.forward, counted.backward) == (2, 2)
    for _ in range(2):
        evaluate(learner, shown_to(learner, 5, 4), engine="compiled")
    assert (counted.forward, counted.backward) == (4, 2)


def test_more_learners_than_torch_compile_keeps_of_one_function(counted: Counted) -> None:
    shown = None
    for width in range(2, 12):
        learner = Learner(mlp(2, width), Backprop(), Delta(0.1))
        shown = classification(1, 1, 1, 2, width)
        COMPILED.gradient(learner, shown)
    assert (counted.forward, counted.backward) == (10, 10)


def test_what_was_compiled_goes_with_the_learner(counted: Counted) -> None:
    learner = direct()
    COMPILED.gradient(learner, shown_to(learner, 2, 3))
    kept = compiled.compiled(learner, compiled.compiled)
    gone, own = weakref.ref(learner), weakref.ref(kept)
    assert len(kept.functions) == counted.forward == 1
    del learner, kept
    gc.collect()
    assert gone() is own() is None


# --- the choice ---


def test_it_is_taken_by_name_alone() -> None:
    for made in (direct(), pool()):
        assert explain(made).engine != "compiled"
        for first_order in (True, False):
            choice = explain(made, "compiled", first_order=first_order)
            assert (choice.engine, choice.kernels) == ("compiled", None)
    assert str(choice) == "compiled: asked for."


def test_without_a_compiler_a_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch._inductor.config as settings

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    learner = direct()
    with (
        settings.patch({"cpp.cxx": (None, str(tmp_path / "g++")), "force_disable_caches": True}),
        pytest.raises(
            CompatibilityError, match=r"C\+\+ compiler.*install one.*CXX.*'plain'"
        ) as told,
    ):
        COMPILED.gradient(learner, shown_to(learner, 1, 2))
    assert told.value.__cause__ is not None
    assert "\n" not in str(told.value)


def test_a_failure_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(graph: Any, inputs: Any) -> Any:
        raise ValueError("no such loops")

    monkeypatch.setattr(compiled, "Compiled", partial(compiled.Compiled, backend=failing))
    learner = direct()
    with pytest.raises(CompatibilityError, match=r"no such loops.*engine='auto' or 'plain'"):
        COMPILED.gradient(learner, shown_to(learner, 1, 2))
    monkeypatch.setattr(Oja, "update", lambda *given: torch._dynamo.graph_break())
    with pytest.raises(CompatibilityError, match="Explanation"):
        evaluate(learner, shown_to(learner, 1, 2), engine="compiled")
