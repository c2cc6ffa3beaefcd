"""From modules to populations and pathways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import nn

from metaplastic.errors import ConfigurationError, UnsupportedLayerError
from metaplastic.networks.layer import shape_after, unit_shape
from metaplastic.networks.populations import Pathway, Population, Synapses, Wiring
from metaplastic.networks.transforms import SLOPES, Transform, transform, without_inplace

FEATURES = "features"
Units = Mapping[str, nn.Module]
Pathways = Mapping[str, tuple[str, str, nn.Module]]


def wire(units: Units, pathways: Pathways, feature_shape: tuple[int, ...]) -> Wiring:
    """The wiring of an EquilibriumNetwork; see there for its arguments.

    Raises:
        ConfigurationError: for names that do not fit together, and units that nothing reaches.
        UnsupportedLayerError, ShapeError: for a module that cannot be run through.
    """
    _check_names(units, pathways)
    behind = {name: _behind(module) for name, module in units.items()}
    shapes = _shapes(units, pathways, behind, feature_shape)
    populations, start = [], 0
    for name, (activation, transforms) in behind.items():
        populations.append(Population(name, activation, transforms, shapes[name], start))
        start += prod(shapes[name])
    _check_output(populations[-1], units, pathways)
    order = list(units)
    ways = []
    for label, (source, target, module) in pathways.items():
        transforms, last = _parsed(module)
        given = feature_shape
        if source != FEATURES:
            given = shape_after(behind[source][1], shapes[source])
        given, index, synapses = shape_after(transforms, given), order.index(target), None
        if last is not None:
            unit = unit_shape(last, given, index)
            synapses = Synapses(index, last, behind[target][0], (), given, unit, label)
        _check_shape(label, target, given if synapses is None else synapses.unit_shape, shapes)
        ways.append(
            Pathway(
                None if source == FEATURES else order.index(source), index, transforms, synapses
            )
        )
    return Wiring(tuple(populations), tuple(ways))


def _check_names(units: Units, pathways: Pathways) -> None:
    if FEATURES in units or not units:
        raise ConfigurationError(
            f"units need a name each other than {FEATURES!r}, which is the input's; got "
            f"{list(units)}."
        )
    for label, (source, target, _) in pathways.items():
        if target not in units or source not in {FEATURES, *units}:
            raise ConfigurationError(
                f"pathway {label!r} goes from {source!r} to {target!r}, and there is {FEATURES!r} "
                f"(only from there) and {', '.join(units)}."
            )


def _behind(module: nn.Module) -> tuple[nn.Module, tuple[Transform, ...]]:
    """The activation function, and the transforms behind it."""
    modules = opened(module)
    activation: nn.Module = nn.Identity()
    if modules and type(modules[0]) in SLOPES:
        activation = without_inplace(modules.pop(0))
    return activation, _transforms(modules)


def _parsed(module: nn.Module) -> tuple[tuple[Transform, ...], nn.Linear | nn.Conv2d | None]:
    """The transforms of a pathway, and the synapses behind them."""
    modules = opened(module)
    last = modules[-1] if modules else None
    if not isinstance(last, nn.Linear | nn.Conv2d):
        return _transforms(modules), None
    return _transforms(modules[:-1]), last


def _transforms(modules: Sequence[nn.Module]) -> tuple[Transform, ...]:
    return tuple(transform(m, "running") for m in modules)


def _shapes(
    units: Units,
    pathways: Pathways,
    behind: Mapping[str, tuple[nn.Module, tuple[Transform, ...]]],
    feature_shape: tuple[int, ...],
) -> dict[str, tuple[int, ...]]:
    """The shape of each population, from the pathways that reach it."""
    found: dict[str, tuple[int, ...]] = {}
    for _ in units:
        for source, target, module in pathways.values():
            if target in found or source not in {FEATURES, *found}:
                continue
            given = feature_shape
            if source != FEATURES:
                given = shape_after(behind[source][1], found[source])
            transforms, last = _parsed(module)
            given = shape_after(transforms, given)
            index = list(units).index(target)
            found[target] = given if last is None else unit_shape(last, given, index)
    lost = [name for name in units if name not in found]
    if lost:
        raise ConfigurationError(f"no pathway from the features reaches {', '.join(lost)}.")
    return found


def _check_shape(
    label: str, target: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if shape != shapes[target]:
        raise ConfigurationError(
            f"pathway {label!r} brings {shape} to {target!r}, which is {shapes[target]}: mend "
            "sizes, stride or padding."
        )


def _check_output(last: Population, units: Units, pathways: Pathways) -> None:
    sends = [label for label, (source, _, _) in pathways.items() if source == last.name]
    if sends or opened(units[last.name]) or len(last.shape) != 1:
        raise UnsupportedLayerError(
            f"the last units, {last.name!r}, are the output: numbers (K,) with nn.Identity() "
            f"behind them and no pathway of their own; got {last.shape}, {units[last.name]} and "
            f"pathways {sends}."
        )


def opened(module: nn.Module) -> list[nn.Module]:
    """The modules of nested Sequentials in order, without nn.Identity."""
    if isinstance(module, nn.Sequential):
        return [m for part in module for m in opened(part)]
    return [] if type(module) is nn.Identity else [module]
