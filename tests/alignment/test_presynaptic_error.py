"""The error at the presynaptic units, against autograd, and who is sent it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import Backprop, Delta, LayeredNetwork, Learner
from metaplastic.credit import FeedbackAlignment, SignSymmetry
from metaplastic.rules import Pool
from tests.alignment.parts import WAYS, batch, conv, dense, make, shown_to, tied
from tests.helpers import assert_close, deviation, heard, mlp, normal


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
