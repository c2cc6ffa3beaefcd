"""Networks at rest for the papers on them, and how they are trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metaplastic.credit import Backprop, EquilibriumControl
from metaplastic.learner import Learner
from metaplastic.networks import (
    EquilibriumNetwork,
    LayeredNetwork,
    equilibrium_block,
    equilibrium_chain,
    equilibrium_rnn,
)
from metaplastic.rules import Delta
from metaplastic.rules.base import PlasticityRule
from studies.reproduce.base import Setup, Trainee
from studies.reproduce.phase import FEEDBACK, WEIGHTS, Phase
from studies.reproduce.probes import gradient_angle
from studies.reproduce.probes_rest import (
    control_size,
    feedback_share,
    rest_angle,
    sweeps,
    twin_angle,
)
from studies.reproduce.training import Probe

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": Adam, "sgd": SGD}
PROBES: Mapping[str, Mapping[str, Probe]] = {
    "recurrent-backprop": {},
    "inversion": {"control_size": control_size},
    "kolen-pollack": {"control_size": control_size, "twin_angle": twin_angle},
    "linear": {"control_size": control_size, "row_space_share": feedback_share},
    "energy": {"control_size": control_size},
}
"""By psi, beside the angle to the gradient and the number of sweeps."""


# --- networks ---


def dense(setup: Setup) -> nn.Sequential:
    """Linear layers of the option ``hidden`` with tanh between them."""
    widths = [math.prod(setup.shape), *setup.options["hidden"], setup.classes]
    modules: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        modules += [nn.Linear(n_in, n_out), nn.Tanh()]
    return drawn(nn.Sequential(*modules[:-1]), setup.generator("initial"))


def convolutional(setup: Setup) -> nn.Sequential:
    """Three convolutions of the option ``channels`` and two hidden layers of ``hidden``, ReLU."""
    first, second, third = setup.options["channels"]
    convolutions = nn.Sequential(
        nn.Conv2d(setup.shape[0], first, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(first, second, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(second, third, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    width = convolutions(torch.zeros(1, *setup.shape)).shape[1]
    hidden = setup.options["hidden"]
    chain = nn.Sequential(
        *convolutions,
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, setup.classes),
    )
    return drawn(chain, setup.generator("initial"))


def drawn(chain: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """PyTorch's own first weights and biases, uniform of variance 1 / (3 n_in)."""
    for module in chain:
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.bias is not None
            limit = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.weight, -limit, limit, generator=generator)
            nn.init.uniform_(module.bias, -limit, limit, generator=generator)
    return chain


CHAINS: dict[str, Callable[[Setup], nn.Sequential]] = {"dense": dense, "conv": convolutional}


def network(setup: Setup) -> EquilibriumNetwork:
    """Of the option ``network``: a chain (``"dense"``, ``"conv"``), ``"rnn"`` or ``"block"``."""
    options = setup.options
    kind, solver = options["network"], options["free"]
    if kind in CHAINS:
        trunk = nn.Flatten() if kind == "dense" else None
        return equilibrium_chain(
            CHAINS[kind](setup), input_shape=setup.shape, trunk=trunk, solver=solver
        )
    generator = setup.generator("initial")
    if kind == "rnn":
        return equilibrium_rnn(
            setup.shape, options["hidden"], setup.classes, solver=solver, generator=generator
        )
    made = equilibrium_block(
        setup.shape, setup.classes, **options["sizes"], solver=solver, generator=generator
    )
    for module in made.units.modules():
        if isinstance(module, nn.GroupNorm):
            module.requires_grad_(False)  # no synapses, so nothing local teaches them
    return made


# --- training ---


def backprop(setup: Setup) -> Trainee:
    """Gradient descent in a chain, by an ordinary forward and backward pass."""
    modules = CHAINS[setup.options["network"]](setup)
    flat = nn.Sequential(nn.Flatten(), *modules) if setup.options["network"] == "dense" else modules
    learner = Learner(
        LayeredNetwork(flat, input_shape=setup.shape),
        Backprop(),
        {"role:weight": Delta(1.0), "role:bias": Delta(1.0)},
    )
    return trained(setup, learner, {"gradient_angle": gradient_angle})


def at_rest(setup: Setup) -> Trainee:
    """Of the option ``psi``, see EquilibriumControl."""
    options, psi = setup.options, setup.options["psi"]
    feedback = options.get("feedback", {})
    credit = EquilibriumControl(
        psi,
        **options["controller"],
        solver=options["solver"],
        start="inversion" if psi == "energy" else "free",
        weights="learned" if feedback else "fixed",
        scale=feedback.get("scale", 1.0),
        feedback_learning="noise-phase" if psi == "linear" else "none",
        noise=feedback.get("noise"),
    )
    # The controllers of a batch together hold its mean loss down, each with 1 / B of the strength,
    # and the weights follow the sum of what their examples ask for: under weak control that is
    # integral B / leak times the gradient of the mean loss. Recurrent backpropagation has no
    # strength: its mean is the gradient.
    by_gradient = psi == "recurrent-backprop"
    # Linear feedback does not know the slope of the units that it ends on.
    rule = Delta(1.0, derivative=psi == "linear", reduction="examples" if by_gradient else "sum")
    rules: dict[str, PlasticityRule | None] = dict.fromkeys(WEIGHTS, rule)
    if psi == "linear":
        rules[FEEDBACK[0]] = Delta(1.0, derivative=False)
    learner = Learner(network(setup), credit, rules, generator=setup.generator("feedback"))
    if "norm" in feedback:
        for value in learner.credit.parameters():
            value.data *= feedback["norm"] / value.data.norm()
    return trained(setup, learner, {"gradient_angle": rest_angle, "sweeps": sweeps, **PROBES[psi]})


def trained(setup: Setup, learner: Learner, probes: Mapping[str, Probe]) -> Trainee:
    """By the option ``optimizer``, at rates that fall along a cosine over all batches to the share
    ``floor``, with the gradients of network and feedback each bounded by ``clip``. Linear feedback
    learns along with the weights; with Kolen-Pollack feedback all matrices that control goes
    through, and their biases, lose the share ``shrink`` at every step, whatever the rate.
    """
    options, feedback = setup.options, setup.options.get("feedback", {})
    groups: list[dict[str, Any]] = [{"params": list(learner.network.parameters())}]
    only: Sequence[str] = WEIGHTS
    if matrices := list(learner.credit.parameters()):
        groups.append({"params": matrices, **feedback.get("rates", {})})
    if "rates" in feedback:
        only = (*WEIGHTS, *FEEDBACK)
    optimizer = OPTIMIZERS[options["optimizer"]](
        groups, lr=options["lr"], weight_decay=options["decay"]
    )
    if "shrink" in feedback:
        shrinking(optimizer, controlled(learner), feedback["shrink"])
    sizes = setup.sizes
    last, floor = sizes.epochs * (sizes.images // sizes.batch), options["floor"]

    def share(step: int) -> float:
        return floor + (1 - floor) * (1 + math.cos(math.pi * step / last)) / 2

    phase = Phase(
        only,
        optimizer,
        clip=options["clip"],
        scheduler=LambdaLR(optimizer, share),
        stepped="batch",
        clipped="group",
    )
    return Trainee(learner, [phase], probes=probes)


def controlled(learner: Learner) -> list[nn.Parameter]:
    """What stands behind the control: feedback, and weights and biases between units."""
    found = list(learner.credit.parameters())
    owner = learner.network
    assert isinstance(owner, EquilibriumNetwork)
    names = [f"{way}_{kind}" for way in owner.carriers for kind in ("weight", "bias")]
    own = [owner.parameter(name) for name in names if name in owner.groups()]
    return [*found, *(p for p in own if isinstance(p, nn.Parameter))]


def shrinking(optimizer: Optimizer, parameters: Iterable[nn.Parameter], share: float) -> None:
    """Parameters lose a share after every step of an optimiser."""
    kept = list(parameters)

    def shrink(*_: Any) -> None:
        for parameter in kept:
            parameter.data *= 1 - share

    optimizer.register_step_post_hook(shrink)
