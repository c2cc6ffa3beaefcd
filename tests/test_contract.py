"""Every rule, credit and meta-gradient of the library under the contract of its kind.

To add a method, add a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import distributed, nn

import metaplastic.credit
import metaplastic.metagradient
import metaplastic.rules
from metaplastic import (
    ABCD,
    Backprop,
    Backpropamine,
    Coefficient,
    Consolidated,
    CreditAssignment,
    Delta,
    DifferentiablePlasticity,
    DirectFeedback,
    DirectRandomTarget,
    Distributed,
    Eligibility,
    EquilibriumControl,
    EquilibriumNetwork,
    Evolution,
    FeedbackAlignment,
    Hebb,
    Implicit,
    InputModulation,
    KolenPollack,
    LeastControl,
    MetaGradient,
    Network,
    Neuromodulation,
    Oja,
    OjaSubspace,
    PlasticityRule,
    Polynomial,
    Pool,
    RecurrentNetwork,
    Sanger,
    SignSymmetry,
    ThroughRest,
    Unrolled,
    Unsupervised,
    WeightMirror,
)
from metaplastic.credit import FeedbackControl, StrongFeedbackControl
from metaplastic.equilibrium import SolverOptions
from metaplastic.errors import CompatibilityError
from metaplastic.networks import equilibrium_chain, equilibrium_rnn
from metaplastic.testing import CreditContract, MetaGradientContract, RuleContract
from metaplastic.testing.loop import LearnerBench
from metaplastic.testing.metagradient import MetaBench
from metaplastic.testing.parts import conv, drawn, mlp

Rules = PlasticityRule | Mapping[str, PlasticityRule | None]


def abcd(variant: str, **options) -> ABCD:
    """All terms of a variant at values that move."""
    inside, _, outside = variant.partition("+")
    terms = {name: 0.2 for name in inside} | ({"D_out": 0.01} if outside else {})
    return ABCD(variant, rate=0.1, **terms, **options)  # type: ignore[arg-type]


RULES: dict[str, Callable[[], PlasticityRule]] = {
    "hebb": lambda: Hebb(0.02, granularity="neuron"),
    "hebb-of-activity": lambda: Hebb(0.02, mix=0.0),
    "hebb-of-teaching": lambda: Hebb(0.02, mix=1.0, fan_in=True, reduction="examples"),
    "hebb-free": lambda: Hebb(0.003, bounded=False, granularity="layer"),
    "oja": lambda: Oja(0.02),
    "oja-free": lambda: Oja(0.003, bounded=False, granularity="layer", multiplier=2.0),
    "oja-network": lambda: Oja(0.02, granularity="network"),
    "oja-mix-of-neurons": lambda: Oja(
        0.02, Coefficient(0.4, granularity="neuron", bound="sigmoid", role="mixing", l1=0.01)
    ),
    "oja-sum": lambda: Oja(0.02, reduction="sum"),
    "delta": lambda: Delta(0.02, learned=True),
    "delta-synapse": lambda: Delta(0.02, learned=True, granularity="synapse", reduction="sum"),
    "delta-flat": lambda: Delta(0.02, derivative=False, reduction="positions"),
    "delta-decay": lambda: Delta(0.02, learned=True, decay=0.01),
    "delta-learned-decay": lambda: Delta(0.02, decay=Coefficient(0.01, bound="sigmoid")),
    "pool": lambda: Pool({f"F{r}": 0.01 for r in range(10)}),
    "pool-of-layers": lambda: Pool({"F0": 0.01, "F3": 0.01, "F9": 0.01}, granularity="layer"),
    "pool-of-synapses": lambda: Pool({"F0": 0.01, "F6": 0.01}, granularity="synapse", l1=0.01),
    "abcd-A": lambda: abcd("A"),
    "abcd-AD": lambda: abcd("AD", granularity="neuron"),
    "abcd-ABC": lambda: abcd("ABC", reduction="examples"),
    "abcd": lambda: abcd("ABCD"),
    "abcd-ABC+D": lambda: abcd("ABC+D", reduction="sum"),
    "abcd-ABCD+D": lambda: abcd("ABCD+D", granularity="layer"),
    "abcd-normalised": lambda: abcd("ABCD", normalise=True),
    "polynomial": lambda: Polynomial({"110": 0.02, "021": -0.02, "000": 0.01, "001": -0.01}),
    "polynomial-full": lambda: Polynomial.full(2, rate=0.02, granularity="layer", l1=0.01),
    "polynomial-modulated": lambda: Polynomial({"1101": 0.02, "0210": -0.02}),
    "polynomial-taught": lambda: Polynomial({"110": 0.02, "112": 0.01}, teaching=True),
    "subspace": lambda: OjaSubspace(0.02),
    "subspace-of-activity": lambda: OjaSubspace(0.02, mix=0.0, granularity="synapse"),
    "sanger": lambda: Sanger(0.02),
    "sanger-of-teaching": lambda: Sanger(0.02, mix=1.0, reduction="examples"),
    "eligibility-modulator": lambda: Eligibility(0.05, 4.0),
    "eligibility-teaching": lambda: Eligibility(0.05, 4.0, third="teaching", granularity="synapse"),
    "eligibility-no-memory": lambda: Eligibility(0.05, 1.0, learned=False),
    "plastic-decay": lambda: DifferentiablePlasticity("decay", 0.1, 0.2),
    "plastic-oja": lambda: DifferentiablePlasticity("oja", 0.1, 0.2, granularity="neuron"),
    "plastic-clip": lambda: DifferentiablePlasticity("clip", 0.1, 0.2, bound=0.05),
    "consolidated-oja": lambda: Consolidated(Oja(0.02), 0.3, granularity="neuron"),
    "consolidated-delta": lambda: Consolidated(
        Delta(0.02, granularity="network", learned=True), 0.3, granularity="synapse"
    ),
    "consolidated-eligibility": lambda: Consolidated(Eligibility(0.05, 4.0), 0.2, learned=False),
    "backpropamine": lambda: Backpropamine("simple", 0.1),
    "backpropamine-soft": lambda: Backpropamine("simple", 0.1, clip="soft", granularity="layer"),
    "backpropamine-retroactive": lambda: Backpropamine("retroactive", 0.1, 0.2),
    "backpropamine-unclipped": lambda: Backpropamine("retroactive", 0.1, 0.2, clip=None),
}


@dataclass(frozen=True)
class Row:
    """A credit, and what it is to be run with where that is not the contract's own choice."""

    credit: Callable[[], CreditAssignment]
    rule: Callable[[], Rules] | None = None
    network: Callable[[], Network] | None = None
    batch: int = 3
    exact: bool = True


def recurrent(modulator: str | None) -> Callable[[], Network]:
    return lambda: RecurrentNetwork(6, 5, 3, modulator=modulator, instruction=True)


def at_rest() -> EquilibriumNetwork:
    return equilibrium_rnn(6, 4, 3, solver={"method": "newton", "tolerance": 1e-14})


def chain_at_rest() -> Network:
    with torch.random.fork_rng(devices=[]):
        chain = [nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]
        return drawn(equilibrium_chain(nn.Sequential(*chain), input_shape=(6,)))


def conv_at_rest() -> Network:
    with torch.random.fork_rng(devices=[]):
        trunk = nn.Unflatten(1, (1, 2, 3))
        chain = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))
        return drawn(equilibrium_chain(chain, input_shape=(6,), trunk=trunk))


def mirrored() -> Rules:
    mirror = Delta(0.02, derivative=False, decay=0.1)
    return {"role:feedback": mirror, "*": Delta(0.02, learned=True)}


def without_biases() -> Rules:
    return {"role:bias": None, "*": Pool({"F2": 0.02})}  # the unit before a bias has no error


def fixed_biases() -> Rules:
    return {"role:bias": None, "*": Delta(0.02, learned=True, derivative=False)}


def decaying() -> Rules:
    return {"*": Delta(0.02, learned=True, decay=0.05)}


def fed() -> Rules:
    rate = Delta(1e-3, derivative=False, decay=0.1)
    return {"role:feedback": rate, "*": Delta(0.02, learned=True, derivative=False)}


def flat() -> Rules:
    return {"*": Delta(0.02, learned=True, derivative=False)}


NEWTON: SolverOptions = {"method": "newton", "tolerance": 1e-13, "sweeps": 20}
SWEEPS: SolverOptions = {"method": "sweeps", "tolerance": 1e-13, "sweeps": 80}


def at_weak_control(psi: str, **options) -> EquilibriumControl:
    return EquilibriumControl(psi, integral=0.002, solver=NEWTON, **options)  # type: ignore[arg-type]


CREDITS: dict[str, Row] = {
    "backprop": Row(Backprop),
    "backprop-pool": Row(lambda: Backprop(input_beta=2.0, linked=True), RULES["pool"]),
    "direct-error": Row(DirectFeedback),
    "direct-error-oja": Row(DirectFeedback, lambda: Oja(0.02)),
    "direct-target": Row(lambda: DirectFeedback("target"), lambda: Oja(0.02)),
    "direct-deep": Row(
        lambda: DirectFeedback(depth=2, width=4, rectify=True, bias=True, output="feedback"),
        lambda: Oja(0.02),
    ),
    "direct-detached": Row(lambda: DirectFeedback(detach_error=True), exact=False),
    "dfa": Row(lambda: DirectFeedback(weights="fixed")),
    "dfa-resampled": Row(lambda: DirectFeedback(weights="resampled")),
    "random-target": Row(DirectRandomTarget),
    "random-target-learned": Row(lambda: DirectRandomTarget("learned")),
    "alignment": Row(FeedbackAlignment),
    "alignment-learned": Row(lambda: FeedbackAlignment("learned"), without_biases),
    "alignment-resampled": Row(lambda: FeedbackAlignment("resampled", linked=True)),
    "kolen-pollack": Row(KolenPollack, decaying),
    "kolen-pollack-learned": Row(lambda: KolenPollack("learned"), decaying),
    "mirror": Row(WeightMirror, mirrored),
    "mirror-resampled": Row(lambda: WeightMirror("resampled", sigma=0.3), mirrored),
    "signs": Row(SignSymmetry),
    "signs-fixed": Row(lambda: SignSymmetry("fixed")),
    "signs-learned": Row(lambda: SignSymmetry("learned")),
    "signs-resampled": Row(lambda: SignSymmetry("resampled")),
    "signs-presentation": Row(lambda: SignSymmetry("presentation")),
    "neuromodulation": Row(Neuromodulation),
    "neuromodulation-target": Row(
        lambda: Neuromodulation("target", weights="resampled"), RULES["polynomial-modulated"]
    ),
    "modulation": Row(InputModulation),
    "modulation-learned": Row(lambda: InputModulation("learned", sign=-1, pre="clean", keep=0.8)),
    "modulation-resampled": Row(
        lambda: InputModulation("resampled", 3.0, output="clean", mean_zero=False, error_sign=True)
    ),
    "modulation-streaming": Row(lambda: InputModulation("learned", 5.0, streaming=True, keep=0.8)),
    "modulation-hebbian": Row(lambda: InputModulation("learned", 5.0, variant="hebbian", keep=0.8)),
    "modulation-hebbian-streaming": Row(
        lambda: InputModulation(variant="hebbian", streaming=True), lambda: Oja(0.02)
    ),
    "modulation-time-local": Row(  # the biases' changes would come in between
        lambda: InputModulation("learned", 5.0, variant="time-local", keep=0.8), fixed_biases
    ),
    "modulation-factors": Row(lambda: InputModulation("learned", feedback="factors"), network=mlp),
    "modulation-mirror": Row(
        lambda: InputModulation("learned", 5.0, feedback="mirror", keep=0.8), mirrored, mlp
    ),
    "modulation-mirror-streaming": Row(
        lambda: InputModulation(feedback="mirror", streaming=True), mirrored, mlp
    ),
    "control": Row(FeedbackControl, network=mlp),
    "control-steady": Row(
        lambda: FeedbackControl("steady", weights="learned", difference="voltage"), network=mlp
    ),
    "control-random": Row(
        lambda: FeedbackControl(weights="resampled", initial="random", leak=1.0), network=mlp
    ),
    "control-dynamic": Row(lambda: FeedbackControl("dynamic", steps=6), network=mlp),
    "control-dynamic-last": Row(
        lambda: FeedbackControl("dynamic", steps=6, average=False, weights="learned"), network=mlp
    ),
    "control-forward-noise": Row(
        lambda: FeedbackControl(weights="learned", feedback_learning="forward-noise"), fed, mlp
    ),
    "control-noise-phase": Row(
        lambda: FeedbackControl(feedback_learning="noise-phase", noise={"steps": 6}), fed, mlp
    ),
    "control-strong": Row(lambda: StrongFeedbackControl(weights="learned"), network=mlp),
    "control-single-phase": Row(
        lambda: StrongFeedbackControl(
            "dynamic", steps=6, feedback_learning="single-phase", noise={"sigma": 0.3}
        ),
        fed,
        mlp,
    ),
    "equilibrium": Row(lambda: at_weak_control("inversion"), flat, network=at_rest),
    "equilibrium-anderson": Row(
        lambda: EquilibriumControl(integral=0.05, solver={"tolerance": 1e-13, "sweeps": 80}),
        network=chain_at_rest,
    ),
    "equilibrium-sweeps": Row(
        lambda: EquilibriumControl(integral=0.002, solver={**SWEEPS, "damping": 0.8}),
        network=conv_at_rest,
    ),
    "equilibrium-kolen-pollack": Row(
        lambda: at_weak_control("kolen-pollack", weights="learned", scale=0.3),
        decaying,
        at_rest,
    ),
    "equilibrium-linear": Row(
        lambda: at_weak_control("linear", weights="resampled"), network=at_rest
    ),
    "equilibrium-noise-phase": Row(
        lambda: at_weak_control(
            "linear", feedback_learning="noise-phase", noise={"steps": 4}
        ),
        fed,
        at_rest,
    ),
    "equilibrium-energy": Row(
        lambda: at_weak_control("energy", start="free"),
        network=at_rest,
    ),
    "equilibrium-gradient": Row(
        lambda: at_weak_control("recurrent-backprop"), network=at_rest
    ),
    "equilibrium-backprop": Row(
        lambda: EquilibriumControl("backprop", solver={"sweeps": 4}), network=at_rest
    ),
    "unsupervised": Row(Unsupervised),
    "unsupervised-recurrent": Row(
        Unsupervised, RULES["plastic-decay"], recurrent(None), batch=1
    ),
    "unsupervised-modulated": Row(
        Unsupervised, RULES["backpropamine-retroactive"], recurrent("fanout"), batch=1
    ),
}  # fmt: skip
LAYERED = {"mlp": mlp, "conv": conv}
PLACES = [
    (name, network)
    for name, row in CREDITS.items()
    for network in (["own"] if row.network else LAYERED)
]

METAGRADIENTS: dict[str, tuple[MetaGradient, bool]] = {
    "unrolled": (Unrolled(), True),
    "unrolled-vmap": (Unrolled(batching="vmap"), True),
    "unrolled-loop": (Unrolled(batching="loop"), True),
    "checkpointed": (Unrolled(checkpoint_every=3), True),
    "truncated-nowhere": (Unrolled(truncate=9), True),
    "truncated": (Unrolled(truncate=2), False),
    "first-order": (Unrolled(first_order=True), False),
    "distributed": (Distributed(Unrolled()), True),
    "evolution": (Evolution(pairs=3), False),
    "evolution-unshaped": (Evolution(pairs=2, shaping="none", batching="loop"), False),
}
"""And whether it computes the whole gradient."""

METAGRADIENTS_AT_REST: dict[str, MetaGradient] = {
    "least-control": LeastControl(beta=0.05, steps=20, rate=0.7),
    "least-control-at-once": LeastControl(beta=0.05, steps=20, rate=0.7, free_steps=0),
    "least-control-direct": LeastControl("direct", 0.05, steps=20, rate=0.7, batching="loop"),
    "least-control-contrastive": LeastControl(
        "contrastive", 0.05, steps=20, rate=0.7, symmetric=True
    ),
    "implicit": Implicit(steps=20, rate=0.7, momentum=0.1, batching="vmap"),
    "implicit-cg": Implicit("cg", steps=20, rate=0.7, tolerance=0.1, damping=0.1),
    "implicit-neumann": Implicit("neumann", steps=20, rate=0.7),
    "t1-t2": Implicit("identity", steps=20, rate=0.7),
    "through-rest": ThroughRest(steps=20, rate=0.7, momentum=0.1),
}
"""Those that see a rest point instead of the stream."""

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class OnDevices:
    @pytest.fixture(params=DEVICES)
    def device(self, request: pytest.FixtureRequest) -> str:
        return request.param


class TestRule(OnDevices, RuleContract):
    @pytest.fixture(params=RULES)
    def rule(self, request: pytest.FixtureRequest) -> PlasticityRule:
        return RULES[request.param]()


class TestCredit(OnDevices, CreditContract):
    @pytest.fixture(params=PLACES, ids="-".join)
    def place(self, request: pytest.FixtureRequest) -> tuple[str, str]:
        return request.param

    @pytest.fixture
    def row(self, place: tuple[str, str]) -> Row:
        return CREDITS[place[0]]

    @pytest.fixture
    def credit(self, row: Row) -> CreditAssignment:
        return row.credit()

    @pytest.fixture
    def exact(self, row: Row) -> bool:
        return row.exact

    @pytest.fixture
    def network(self, place: tuple[str, str], row: Row) -> Network:
        return (row.network or LAYERED[place[1]])()

    @pytest.fixture
    def batch(self, row: Row) -> int:
        return row.batch

    @pytest.fixture
    def rule(self, row: Row, credit: CreditAssignment) -> Rules:
        return default_rule(credit) if row.rule is None else row.rule()


def default_rule(credit: CreditAssignment) -> Rules:
    """What the contract itself would take."""
    if "teaching" in credit.provides:
        return Delta(0.02, learned=True)
    return Eligibility(0.02) if "modulator" in credit.provides else Hebb(0.02, mix=0.0)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of this process alone."""
    meeting = (tmp_path_factory.mktemp("group") / "meeting").as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
class TestMetaGradient(OnDevices, MetaGradientContract):
    @pytest.fixture(params=METAGRADIENTS)
    def row(self, request: pytest.FixtureRequest) -> tuple[MetaGradient, bool]:
        return METAGRADIENTS[request.param]

    @pytest.fixture
    def metagradient(self, row: tuple[MetaGradient, bool]) -> MetaGradient:
        return row[0]

    @pytest.fixture
    def exact(self, row: tuple[MetaGradient, bool]) -> bool:
        return row[1]


class TestMetaGradientAtRest(OnDevices, MetaGradientContract):
    """With rules that have a rest point, and scores that are of there."""

    @pytest.fixture(params=METAGRADIENTS_AT_REST)
    def metagradient(self, request: pytest.FixtureRequest) -> MetaGradient:
        return METAGRADIENTS_AT_REST[request.param]

    @pytest.fixture
    def exact(self) -> bool:
        return False

    @pytest.fixture
    def rule(self) -> Rules:
        plasticity = Coefficient(0.02, granularity="neuron", bound="tanh", l1=0.01)
        return Consolidated(Oja(plasticity), 1.0, granularity="synapse")

    @pytest.fixture
    def following(self) -> PlasticityRule:
        return Consolidated(Delta(0.1, learned=True), 1.0)

    def test_its_outcome_says_how_the_learner_did(self, meta: MetaBench) -> None:
        if isinstance(meta.method, LeastControl) and meta.method.free_steps == 0:
            pytest.skip("its scores are those under control")
        super().test_its_outcome_says_how_the_learner_did(meta)


@pytest.mark.parametrize("name", list({type(RULES[n]()): n for n in RULES}.values()))
@pytest.mark.parametrize("sender", [n for n, row in CREDITS.items() if row.network is None])
def test_every_rule_under_every_credit(sender: str, name: str) -> None:
    """A step is pure and moves every group, or the learner is refused when it is made."""
    credit, rule = CREDITS[sender].credit(), RULES[name]()
    rules = {"*": rule}
    if isinstance(credit, WeightMirror):
        rules = {"role:feedback": Delta(0.02, derivative=False), "*": rule}
    bench = LearnerBench(mlp(), credit, rules)
    sent = credit.provides | (mlp().provides if isinstance(credit, Unsupervised) else frozenset())
    if not rule.needs <= sent:
        with pytest.raises(CompatibilityError):
            bench.learner()
        return
    contract = CreditContract()
    contract.test_a_step_is_pure(bench, dtype=torch.float64)
    contract.test_every_plastic_group_moves(bench)


def concrete(module: object, base: type) -> set[type]:
    """What a package exports of one kind, without the abstract."""
    found = {v for v in vars(module).values() if inspect.isclass(v) and issubclass(v, base)}
    return {kind for kind in found if not inspect.isabstract(kind)}


@pytest.mark.parametrize(
    ("module", "base", "table"),
    [
        (metaplastic.rules, PlasticityRule, [make() for make in RULES.values()]),
        (metaplastic.credit, CreditAssignment, [row.credit() for row in CREDITS.values()]),
        (
            metaplastic.metagradient,
            MetaGradient,
            [*METAGRADIENTS_AT_REST.values(), *(m for m, _ in METAGRADIENTS.values())],
        ),
    ],
)
def test_no_method_is_missing_from_the_table(module: object, base: type, table: list) -> None:
    exported = concrete(module, base)
    assert exported != set()
    assert exported <= {type(made) for made in table}
