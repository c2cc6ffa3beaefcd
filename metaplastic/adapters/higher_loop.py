"""One episode of a PlasticOptimizer under higher's fast weights."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.objectives import Objective
from metaplastic.signals import GivenError, Presentation


def plastic_parameters(learner: Learner) -> dict[str, Tensor]:
    """The Parameters of the network's plastic groups, by name; buffers are left out."""
    groups = [name for name in learner.network.groups() if name in learner.plastic]
    found = {name: learner.network.parameter(name) for name in groups}
    return {name: p for name, p in found.items() if isinstance(p, nn.Parameter)}


class InnerLoop:
    """One episode under higher's fast weights.

    The functional module that higher makes is kept for its list of fast weights. What it computes
    is computed by a learner whose Parameters are these very tensors, so that the forward pass and
    the presentations see one network, with the graph that higher's settings ask for.
    """

    def __init__(
        self,
        learner: Learner,
        generator: torch.Generator | None,
        parameters: list[Tensor],
        fmodel: Any,
        device: torch.device | None,
        track: bool,
    ) -> None:
        _check_model(learner, parameters, fmodel)
        if not track:
            fmodel.update_params([p.detach().requires_grad_() for p in fmodel.fast_params])
        position = {id(p): i for i, p in enumerate(parameters)}
        weights = plastic_parameters(learner) | dict(learner.credit.named_parameters())
        self._position = {
            name: position[id(p)]
            for name, p in weights.items()
            if name in learner.plastic and id(p) in position
        }
        fast = dict(zip(position, fmodel.fast_params, strict=True))
        self._learner = _learner_of(learner, fast, device)
        self._generator, self._track = generator, track
        self._drawn = self._learner.draw(generator) if self._learner.resampled else None
        self._steps = 0
        # Weakly, as the module will hold this: an episode's graph goes when its last name goes.
        self._fmodel = weakref.ref(fmodel)
        fmodel.forward = self.forward

    def forward(self, x: Tensor, params: Iterable[Tensor] | None = None) -> Tensor:
        """Output (B, K) of x (B, *) under the fast weights, or under ``params``, which then become
        the fast weights."""
        fmodel: Any = self._fmodel()
        if params is not None:
            fmodel.update_params(list(params))
        self._take(fmodel.fast_params, x.shape[0])
        learner, seen = self._learner, self._learner._seen
        output = learner(x)
        if not torch.is_grad_enabled():
            learner._seen = seen  # no loss can come from this output
        elif not output.requires_grad:  # nothing below it is a Parameter
            output.requires_grad_()
        return output

    def step(
        self, loss: Tensor, params: Iterable[Tensor] | None, target: Tensor | None
    ) -> list[Tensor]:
        """One presentation; the new fast weights, which are the module's from now on."""
        fmodel: Any = self._fmodel()
        fast = list(fmodel.fast_params if params is None else params)
        features, teacher = self._read(loss, target)
        self._take(fast, features.shape[0])
        learner, noise = self._learner, self._noise(features)
        assert learner._fast is not None
        with torch.set_grad_enabled(self._track):
            after = learner.step(learner._fast, Presentation(features, teacher, noise=noise))
        learner._check_finite(after["weights"], f"weights after step {self._steps}")
        for name, i in self._position.items():
            moved = after["weights"][name].reshape(fast[i].shape)
            fast[i] = moved if self._track else moved.detach().requires_grad_()
        learner._fast, learner._seen = after, None
        self._steps += 1
        fmodel.update_params(fast)
        return fast

    def _take(self, fast: list[Tensor], batch: int) -> None:
        """Let the learner's state hold the fast weights. The size B of what is shown is known from
        the first presentation on, before which the state is made anew."""
        learner = self._learner
        state = learner._fast
        if state is None or not self._steps:
            state = learner.start(batch, drawn=self._drawn)
        weights = dict(state["weights"])
        for name, i in self._position.items():
            weights[name] = fast[i].reshape(weights[name].shape)
        learner._fast = {**state, "weights": weights}

    def _read(self, loss: Tensor, target: Tensor | None) -> tuple[Tensor, GivenError]:
        """The features shown last, and the error that the loss asks for at their output."""
        seen = self._learner._seen
        if seen is None or loss.dim() != 0 or not loss.requires_grad:
            raise ConfigurationError(
                "diffopt.step(loss) needs a scalar loss of one fmodel(x) since the last step, with "
                f"gradients enabled; got a tensor {tuple(loss.shape)} with requires_grad="
                f"{loss.requires_grad}, after {'no' if seen is None else 'a'} forward pass."
            )
        features, output = seen
        (gradient,) = torch.autograd.grad(loss, output, create_graph=self._track, allow_unused=True)
        if gradient is None:
            raise ConfigurationError(
                "this loss does not depend on the output of the last fmodel(x): build it from that "
                "output, and step before the next forward pass."
            )
        objective = self._learner.objective
        examples = 1 if objective.scale == "batch" else output.shape[0]
        if target is not None:
            target = self._learner.encode(target, output.shape[:1])
        return features, _LossTeacher(objective, -gradient * examples, target)

    def _noise(self, features: Tensor) -> Tensor | None:
        """The noise that the credit asks for at one presentation, (B, *)."""
        learner, lead = self._learner, (1, 1, features.shape[0])
        noise = learner.credit.noise(
            learner.network, lead, self._generator or torch.Generator().manual_seed(0)
        )
        if noise is None:
            return None
        if self._generator is None:
            raise ConfigurationError(
                f"{type(learner.credit).__name__} draws noise: make the optimiser with "
                "PlasticOptimizer(learner, generator=torch.Generator())."
            )
        return noise[0, 0].to(features)


class _LossTeacher(GivenError):
    """Knows the error read off a loss, and the target where the caller gave it."""

    def __init__(self, objective: Objective, error: Tensor, target: Tensor | None) -> None:
        super().__init__(objective, error)
        self._given = target

    @property
    def target(self) -> Tensor:
        if self._given is None:
            raise CompatibilityError(
                "diffopt.step(loss) reads only the output error from the loss, and this credit "
                "feeds back the target: call diffopt.step(loss, target=y), or use the error as its "
                "signal."
            )
        return self._given


def _learner_of(learner: Learner, fast: dict[int, Tensor], device: torch.device | None) -> Learner:
    """The learner with ``fast``, by the id of the Parameter, in the place of its own tensors."""
    memo: dict[int, Any] = {}
    for own in (*learner.parameters(), *learner.buffers()):
        tensor = fast.get(id(own), own)
        memo[id(own)] = tensor if device is None else tensor.to(device)
    return copy.deepcopy(learner, memo)


def _check_model(learner: Learner, parameters: list[Tensor], fmodel: Any) -> None:
    """Whether higher's functional module was made from the learner, or from its network's body."""
    network = learner.network
    model: nn.Module | None = None
    if isinstance(fmodel, Learner):
        model = learner if fmodel._fast is None else None
    elif isinstance(network, LayeredNetwork) and network.trunk is None:
        model = network.body
    if model is not None and isinstance(fmodel, nn.Module):
        ours = dict(model.named_modules(remove_duplicate=False))
        theirs = dict(fmodel.named_modules(remove_duplicate=False))
        alike = ours.keys() == theirs.keys() and all(
            isinstance(theirs[name], type(part)) for name, part in ours.items()
        )
        own = list(model.parameters())
        if alike and [id(p) for p in own] == [id(p) for p in parameters]:
            return
    raise ConfigurationError(
        "PlasticOptimizer(learner) goes with the model it was made for: pass the learner (no "
        "clone), or, where its network has no trunk, the nn.Sequential that it was made from, to "
        f"higher.innerloop_ctx(model, optimizer); got {type(fmodel).__name__} with "
        f"{len(parameters)} parameters."
    )
