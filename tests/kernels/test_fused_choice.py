"""When the fused engine is chosen, and what it says where it cannot run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from metaplastic import (
    Backprop,
    Consolidated,
    CrossEntropy,
    Delta,
    DirectFeedback,
    DirectRandomTarget,
    Learner,
    Oja,
    Unrolled,
)
from metaplastic.errors import CompatibilityError, KernelsWarning
from metaplastic.kernels import dispatch, explain
from tests.helpers import classification, mlp
from tests.kernels.fused import WAYS, learner, own_error

pytest.importorskip("numba", reason="the fused engine on a CPU is compiled by Numba")

REFUSED: dict[str, tuple[Callable[[], Learner], str]] = {
    "another credit": (
        lambda: learner(Oja(0.1, 0.9), DirectRandomTarget()),
        "DirectRandomTarget waits",
    ),
    "deep feedback of errors": (
        lambda: own_error(Oja(0.1), DirectFeedback("error", depth=2, width=3)),
        "one linear layer",
    ),
    "errors that are constants": (
        lambda: own_error(Oja(0.1), DirectFeedback("error", detach_error=True)),
        "for a constant",
    ),
    "errors through a frozen layer": (
        lambda: Learner(
            mlp(5, 4, 4, WAYS), Backprop(), {"name:layer0_weight": Delta(0.1), "*": None}
        ),
        "above the lowest plastic one",
    ),
    "errors through a norm": (
        lambda: Learner(
            nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, WAYS)),
            Backprop(),
            {"role:weight": Delta(0.1)},
        ),
        "between the plastic layers",
    ),
    "another rule": (lambda: learner(Consolidated(Oja(0.1, 0.9))), "Consolidated behind Tanh"),
    "a decay": (lambda: learner(Delta(0.1, decay=0.1)), "Delta without decay"),
    "another activation": (lambda: learner(Oja(0.1), activation=nn.SiLU), "Oja behind SiLU"),
    "plastic biases": (
        lambda: Learner(mlp(5, 4, WAYS), DirectFeedback("target"), {"*": Oja(0.1)}),
        "layer0_bias is plastic",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_run_is_plain_or_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    made = make()
    choice = explain(made)
    assert choice.engine == "plain"
    assert reason in str(choice)
    with pytest.raises(CompatibilityError, match=reason):
        explain(made, "fused")


def test_first_order_is_plain() -> None:
    made, shown = learner(Oja(0.1, 0.9)), classification(1, 3, 1, 5, WAYS)
    assert explain(made, first_order=True).engine == "plain"
    with pytest.raises(CompatibilityError, match="constants"):
        Unrolled(engine="fused", first_order=True).gradient(made, shown)


def test_without_the_compiler_a_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    made = learner(Oja(0.1, 0.9))
    with pytest.warns(KernelsWarning, match="pip install numba"):
        assert explain(made).engine == "plain"
    with pytest.raises(CompatibilityError, match="numba is not installed"):
        explain(made, "fused")


def test_meta_training_takes_the_fused_engine_where_it_can() -> None:
    made = learner(Oja(0.1, 0.9), objective=CrossEntropy())
    assert str(explain(made)).startswith("fused: every neuron goes through")
    assert "step by step" in str(explain(own_error(Delta(0.1), Backprop())))
    assert Unrolled().engine == "auto"
