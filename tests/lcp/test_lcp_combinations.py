"""Every credit that has a field at rest, under every method that differentiates there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    Consolidated,
    CreditAssignment,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Eligibility,
    Episodes,
    EquilibriumControl,
    Hebb,
    Implicit,
    InputModulation,
    LayeredNetwork,
    Learner,
    LeastControl,
    Network,
    Oja,
    PlasticityRule,
    ThroughRest,
)
from metaplastic.credit import FeedbackControl, StrongFeedbackControl
from metaplastic.equilibrium import SolverOptions
from metaplastic.errors import CompatibilityError
from metaplastic.inner_loop import draw
from metaplastic.metagradient import Equilibrium
from metaplastic.metagradient.rest import Rest
from metaplastic.networks import equilibrium_chain, equilibrium_rnn
from metaplastic.testing.loop import LearnerBench
from metaplastic.testing.oracles import central_difference, direction
from metaplastic.testing.parts import drawn, mlp
from tests.helpers import assert_close, classification, gradients, presentation, seeded, shake
from tests.test_contract import CREDITS, Row

STEPS, BETA = 10, 0.05
OPTIONS = {"steps": STEPS, "tolerance": 1e-7, "batching": "vmap"}
IMPLICIT, THROUGH = Implicit(terms=STEPS, **OPTIONS), ThroughRest(**OPTIONS)
LEAST = LeastControl("inversion", BETA, free_steps=0, **OPTIONS)
OTHERS: dict[str, Equilibrium] = {
    "direct": LeastControl("direct", BETA, **OPTIONS),
    "contrastive": LeastControl("contrastive", BETA, **OPTIONS),
}
NEUMANN = Implicit("neumann", STEPS, **OPTIONS)

# --- the table ---

NOISY = {
    "mirror",
    "mirror-resampled",
    "signs-presentation",
    "modulation-learned",
    "modulation-streaming",
    "modulation-hebbian",
    "modulation-time-local",
    "modulation-mirror",
    "modulation-mirror-streaming",
    "control-forward-noise",
    "control-noise-phase",
    "control-single-phase",
    "equilibrium-noise-phase",
}
CARRIED = {"unsupervised-recurrent", "unsupervised-modulated"}
"""Those with a network that carries a state through the stream."""
WITHOUT_DROPOUT = {
    "modulation-clean": Row(lambda: InputModulation("learned", sign=-1, pre="clean")),
    "modulation-all-hebbian": Row(lambda: InputModulation("learned", 5.0, variant="hebbian")),
    "modulation-streamed": Row(lambda: InputModulation("learned", 5.0, streaming=True)),
    "modulation-time-local": Row(lambda: InputModulation("learned", 5.0, variant="time-local")),
}
SOLVER: SolverOptions = {"method": "newton", "tolerance": 1e-13, "sweeps": 10}


def recurrent() -> Network:
    return equilibrium_rnn(6, 3, 3, solver={**SOLVER, "sweeps": 6})


def chain() -> Network:
    with torch.random.fork_rng(devices=[]):
        layers = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        return drawn(equilibrium_chain(layers, input_shape=(6,), solver={"sweeps": 2}))


def at_rest(psi: str, **options) -> Row:
    options = {"integral": 0.002, "solver": SOLVER} | options
    return Row(lambda: EquilibriumControl(psi, **options), network=recurrent)  # type: ignore[arg-type]


SOLVED = {
    "control-steady": Row(
        lambda: FeedbackControl(
            "steady", weights="learned", difference="voltage", iterations=4, halvings=0
        )
    ),
    "control-strong": Row(
        lambda: StrongFeedbackControl(weights="learned", iterations=9, halvings=0)
    ),
    "equilibrium": at_rest("inversion"),
    "equilibrium-chain": replace(at_rest("inversion"), network=chain),
    "equilibrium-kolen-pollack": at_rest("kolen-pollack", weights="learned", scale=0.3),
    "equilibrium-linear": at_rest("linear", weights="resampled", solver={**SOLVER, "sweeps": 5}),
    "equilibrium-energy": at_rest("energy", start="free"),
    "equilibrium-gradient": at_rest("recurrent-backprop", solver={**SOLVER, "sweeps": 7}),
    "equilibrium-backprop": at_rest("backprop", solver={"sweeps": 4}),
}
"""Credits with a solver, which under vmap always takes all its steps, at few of them."""
FIELDS = {
    name: row
    for name, row in CREDITS.items()
    if name not in NOISY | CARRIED | SOLVED.keys() and not name.startswith("equilibrium")
}
FIELDS |= WITHOUT_DROPOUT | SOLVED


def small() -> Network:
    """Two Linear layers on examples of 6 numbers."""
    with torch.random.fork_rng(devices=[]):
        return drawn(LayeredNetwork(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))))


def every_rule(credit: CreditAssignment, rate: float) -> dict[str, PlasticityRule]:
    """Each in its own place; Delta needs a teaching signal, and Eligibility reads a modulator."""
    taught, modulates = (kind in credit.provides for kind in ("teaching", "modulator"))
    mix = 0.4 if taught else 0.0
    last = Delta(rate, learned=True) if taught else Hebb(rate, mix)
    rules = {
        "role:bias": Hebb(rate, mix),
        "position:0": Oja(rate, mix),
        "*": Eligibility(rate, 1.0) if modulates else last,
    }
    return consolidated(rules)


def consolidated(rules: Mapping[str, PlasticityRule]) -> dict[str, PlasticityRule]:
    return {pattern: Consolidated(rule, 1.0) for pattern, rule in rules.items()}


def one_rule(make: Callable[[float, float], PlasticityRule]):
    """The same rule everywhere."""

    def rules(credit: CreditAssignment, rate: float) -> dict[str, PlasticityRule]:
        return consolidated({"*": make(rate, 0.4 if "teaching" in credit.provides else 0.0)})

    return rules


RULES = {
    "every": every_rule,
    "oja": one_rule(Oja),
    "hebb": one_rule(Hebb),
    "delta": one_rule(lambda rate, mix: Delta(rate, learned=True)),
}


def bench(row: Row, rules: str, rate: float = 0.03) -> LearnerBench:
    make = small if row.network in (None, mlp) else row.network
    credit = row.credit()
    return LearnerBench(make(), credit, RULES[rules](credit, rate), batch=3)


def shown(bench: LearnerBench) -> Episodes:
    """Of two episodes at a size at which all settle in a few steps."""
    episodes = bench.episodes(2, 1)
    small = {name: 0.5 * getattr(episodes, name) for name in ("support_x", "query_x")}
    return replace(episodes, **small)


def least_value(learner: Learner, episodes: Episodes, method: LeastControl) -> Tensor:
    """Min |f|^2 / 2 + beta L over beta, of each episode, (E,)."""
    with torch.no_grad():
        rest = method.settle(Rest(learner, episodes, draw(learner, episodes, seeded())))
    assert float(rest.residual.max()) <= method.tolerance
    return rest.psi.square().sum(-1) / 2 / method.beta + rest.loss


def gradient(learner: Learner, episodes: Episodes, method: Equilibrium) -> dict[str, Tensor]:
    """With every episode kept, finite."""
    learner.zero_grad(set_to_none=True)
    outcome = method.gradient(learner, episodes, generator=seeded())
    assert outcome.diverged == (), [str(lost) for lost in outcome.diverged]
    found = gradients(learner)
    assert all(bool(g.isfinite().all()) for g in found.values())
    return found


def unconverged(learner: Learner, episodes: Episodes) -> int:
    """The examples of the first episode for which the credit finds no signal."""
    x, y = episodes.support_x[0, 0], episodes.support_y[0, 0]
    state = learner.step(learner.start(len(x), seeded()), presentation(learner, x, y))
    return int(state["credit"].get("unconverged", 0))


def slope_error(
    learner: Learner, found: dict[str, Tensor], loss: Callable[[], Tensor], part: str = ""
) -> float:
    """Of a gradient along a random direction over the Parameters whose name begins with ``part``,
    against a central difference, relative.
    """
    along = {n: d for n, d in direction(learner, 1).items() if n.startswith(part)}
    wanted = sum(float((found[n] * d).sum()) for n, d in along.items())
    numeric = central_difference(learner, along, 1e-5, lambda: float(loss().mean()))
    return abs(numeric - wanted) / abs(wanted)


def check(learner: Learner, episodes: Episodes, rate: float, *, exact: bool = True) -> None:
    """Every method at rest, against each other and against the slopes of what they are of."""
    assert unconverged(learner, episodes) == 0
    through, least = replace(THROUGH, rate=rate), replace(LEAST, rate=rate)
    found = gradient(learner, episodes, through)
    for method in (IMPLICIT, NEUMANN):
        same = gradient(learner, episodes, replace(method, rate=rate))
        assert_close(same, found, 1e-6)
    for method in OTHERS.values():
        gradient(learner, episodes, replace(method, rate=rate))
    control = gradient(learner, episodes, least)
    if exact:

        def loss() -> Tensor:
            return through.evaluate(learner, episodes, generator=seeded()).loss

        assert slope_error(learner, found, loss) < 1e-7
        assert slope_error(learner, control, lambda: least_value(learner, episodes, least)) < 1e-7


RATES = {"control-dynamic": 1.5}
"""A simulation of six moments tells its signals in six pieces, and the pull back with each of them:
1 - (5/6)^6 of it altogether.
"""
AGAIN = ("-learned", "-fixed", "-resampled", "-oja", "-pool")
"""Where another row differs only in where its weights come from, or in a rule not taken here."""
LONG = {n for n in FIELDS if n.startswith("equilibrium")} - {"equilibrium-backprop"}


def rows() -> list:
    """Names of FIELDS, the slow ones marked."""
    slow = {n for n in FIELDS if n.endswith(AGAIN)} - {"dfa-resampled"} | LONG
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in FIELDS]


@pytest.mark.parametrize("name", rows())
def test_every_credit_under_every_method_at_rest(name: str) -> None:
    parts = bench(FIELDS[name], "every")
    check(parts.learner(), shown(parts), RATES.get(name, 1.0), exact=FIELDS[name].exact)


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["oja", "hebb", "delta"])
@pytest.mark.parametrize("name", FIELDS)
def test_every_credit_under_one_rule_everywhere(name: str, rules: str) -> None:
    parts = bench(FIELDS[name], rules)
    if rules == "delta" and "teaching" not in parts.credit.provides:
        with pytest.raises(CompatibilityError, match=r"needs \['teaching'\]"):
            parts.learner()
        return
    check(parts.learner(), shown(parts), RATES.get(name, 1.0), exact=FIELDS[name].exact)


@pytest.mark.parametrize("name", sorted(NOISY | CARRIED))
def test_what_has_no_field_at_rest_is_refused(name: str) -> None:
    parts = bench(CREDITS[name], "every")
    learner, episodes = parts.learner(), shown(parts)
    why = "carries a state" if name in CARRIED else "draws noise"
    for method in (IMPLICIT, NEUMANN, THROUGH, LEAST, *OTHERS.values()):
        for ask in (method.gradient, method.evaluate):
            with pytest.raises(CompatibilityError, match=why):
                ask(learner, episodes, generator=seeded())


# --- what is plastic within an episode, and what is learned about it ---

PLASTIC = {"shifts": "role:bias", "last-layer": "position:last"}
BODY = {"shifts": "network.body.0.weight", "last-layer": "network.body.0"}
SENDERS: dict[str, Callable[[], CreditAssignment]] = {
    "backprop": Backprop,
    "direct": lambda: DirectFeedback("error", output="feedback"),
    "control": lambda: FeedbackControl(weights="learned"),
    "modulation": lambda: InputModulation("learned", 5.0),
}


def modulatory(sender: str, plastic: str) -> Learner:
    """A body and a trunk that are learned by the outer loop alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
        chain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    network = LayeredNetwork(chain, trunk=trunk, input_shape=(2,))
    rules = {PLASTIC[plastic]: Consolidated(Oja(0.1, 0.6), 1.0)}
    if sender == "backprop":
        rules = {PLASTIC[plastic]: Consolidated(Delta(0.1, learned=True), 1.0)}
    learner = Learner(network, SENDERS[sender](), rules, CrossEntropy())
    return shake(learner, 2, initial=0.1)


@pytest.mark.parametrize("plastic", PLASTIC)
@pytest.mark.parametrize("sender", SENDERS)
def test_what_is_fixed_within_an_episode_learns_from_its_rest(sender: str, plastic: str) -> None:
    learner = modulatory(sender, plastic)
    episodes = classification(2, 1, 3, 2, 2, queries=3)
    found, control = (gradient(learner, episodes, method) for method in (IMPLICIT, LEAST))
    assert_close(gradient(learner, episodes, THROUGH), found, 1e-6)

    def loss() -> Tensor:
        return IMPLICIT.evaluate(learner, episodes).loss

    for part in ("network.trunk", BODY[plastic]):
        assert slope_error(learner, found, loss, part) < 1e-6
        least = slope_error(learner, control, lambda: least_value(learner, episodes, LEAST), part)
        assert least < 1e-6
