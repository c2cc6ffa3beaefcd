"""Rule files, and rules on networks that they have never seen."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaplastic import DirectFeedback, LayeredNetwork, Learner, SquaredError, Unrolled
from metaplastic.credit import FeedbackAlignment, FeedbackControl, KolenPollack
from metaplastic.errors import RuleFileError, TransferError
from metaplastic.portable import learned_rule, load_into, load_rule, save_rule, transfer
from metaplastic.rule_file import CreditCoefficient, read_rule
from metaplastic.rules import Coefficient, Delta, Oja, PlasticityRule, Pool
from metaplastic.rules.coefficient import Bound
from tests.helpers import final_weights, mlp, regression, seeded, shake

RULES: dict[str, Callable[[], dict[str, PlasticityRule | None]]] = {
    "synapse": lambda: {"role:bias": None, "position:last": Oja(0.1, 1.0), "*": Oja(0.02)},
    "neuron": lambda: {"*": Oja(0.02, granularity="neuron")},
    "layer": lambda: {"role:weight": Oja(Coefficient(0.3, bound="tanh", granularity="layer"))},
    "network": lambda: {"*": Delta(0.1, granularity="network", learned=True)},
}


def learner(rule: str = "synapse", *sizes: int, seed: int = 0, **options) -> Learner:
    made = Learner(
        mlp(*(sizes or (4, 6, 5, 3)), seed=seed),
        DirectFeedback(),
        RULES[rule](),
        SquaredError(),
        generator=seeded(seed),
    )
    return shake(made, seed, plasticity=0.3, mixing=0.3, control=0.3, feedback=0.1)


def learned(made: Learner) -> dict[str, Tensor]:
    state = made.state_dict()
    return {n: v.clone() for n, v in state.items() if n.startswith(("rules", "credit"))}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_moves_bit_by_bit_into_an_equal_network(rule: str, tmp_path: Path) -> None:
    source = learner(rule)
    before = learned(source)
    save_rule(source, tmp_path / "rule.safetensors", task="toy", score=0.25)
    other, report = transfer(tmp_path / "rule.safetensors", mlp(4, 6, 5, 3, seed=7))
    assert {m.action for m in report.moved} == {"exact"}
    assert same(learned(other), before)
    assert same(learned(source), before)
    shown = regression(2, 3, 2, 4, 3)
    for name in source.network.groups():  # with the same initial weights it is the same learner
        other.network.parameter(name).data.copy_(source.network.parameter(name).data)
    Unrolled().gradient(source, shown)
    Unrolled().gradient(other, shown)
    for (name, a), (_, b) in zip(source.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("rule", RULES)
def test_a_loaded_rule_makes_the_same_learner_for_a_network(rule: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.safetensors"
    source = learner(rule)
    save_rule(source, path)
    network = mlp(4, 6, 5, 3, seed=7)
    other = Learner(network, *load_rule(path, network), SquaredError()).double()
    assert same(learned(other), learned(source))
    assert other.plastic == source.plastic
    wide = mlp(4, 9, 5, 3, seed=7)
    by_hand, _ = transfer(path, mlp(4, 9, 5, 3, seed=7), generator=seeded(3))
    loaded = Learner(wide, *load_rule(path, wide, generator=seeded(3)), SquaredError()).double()
    assert same(learned(loaded), learned(by_hand))


def test_templates_without_a_network_start_at_their_first_values(tmp_path: Path) -> None:
    path = tmp_path / "rule.safetensors"
    save_rule(learner("synapse"), path)
    credit, rules = load_rule(path)
    assert list(rules) == ["role:bias", "position:last", "*"]
    assert rules["role:bias"] is None
    fresh = Learner(mlp(4, 6, 5, 3), credit, rules, SquaredError(), generator=seeded(0)).double()
    plain = Learner(
        mlp(4, 6, 5, 3), DirectFeedback(), RULES["synapse"](), SquaredError(), generator=seeded(0)
    ).double()
    assert same(learned(fresh), learned(plain))


def test_synapse_coefficients_are_pooled_to_their_mean_value(tmp_path: Path) -> None:
    source = learner("synapse")
    other, report = transfer(source, mlp(4, 12, 10, 3, seed=1), generator=seeded(5))
    values = {n: r.coefficients() for n, r in source._rules().items()}
    for name, rule in other._rules().items():
        for what, value in rule.coefficients().items():
            if what == "plasticity" and name != "layer2_weight":
                wanted = values[name][what].mean()
            elif what == "plasticity":
                wanted = values["layer2_weight"][what].mean()
            else:
                wanted = values[name][what]
            torch.testing.assert_close(value, wanted.expand_as(value), rtol=1e-14, atol=1e-15)
    done = {(m.group, m.what): m.action for m in report.moved}
    assert done["layer0_weight", "plasticity"] == "pooled"
    assert done["layer0_weight", "mix"] == "exact"
    assert done["layer0_feedback1", "feedback"] == "drawn"
    fresh = Learner(
        mlp(4, 12, 10, 3), DirectFeedback(), RULES["synapse"](), generator=seeded(5)
    ).double()
    for name, value in fresh.credit.weights().items():
        assert torch.equal(other.credit.weights()[name], value)
    assert "layer0_weight" in str(report)
    assert "12x4" in str(report)


def test_a_deeper_network_takes_from_the_nearest_relative_depth() -> None:
    source = learner("layer", 4, 6, 5, 3)
    values = [source._rules()[f"layer{i}_weight"].coefficients()["plasticity"] for i in range(3)]
    other, report = transfer(source, mlp(4, 6, 6, 6, 6, 3))
    for i, nearest in enumerate((0, 0, 1, 1, 2)):  # depths 0 .25 .5 .75 1 beside 0 .5 1
        taken = other._rules()[f"layer{i}_weight"].coefficients()["plasticity"]
        assert torch.equal(taken, values[nearest])
    sources = {m.group: m.source for m in report.moved if m.what == "plasticity"}
    assert sources["layer3_weight"] == "layer1_weight"


def test_a_layer_rule_moves_into_a_convolutional_network() -> None:
    source = Learner(
        mlp(4, 6, 5, 3), FeedbackAlignment("resampled"), Pool(granularity="layer"), SquaredError()
    )
    shake(source, 0, plasticity=0.1)
    chain = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)
    ).double()
    other, report = transfer(
        source, LayeredNetwork(chain, input_shape=(1, 3, 3)), initial="resampled"
    )
    assert {m.action for m in report.moved} == {"exact"}
    for i in range(3):
        a, b = (x._rules()[f"layer{i}_weight"].coefficients() for x in (source, other))
        assert all(torch.equal(a[n], b[n]) for n in a)


def test_the_exact_policy_names_what_does_not_fit_and_changes_nothing() -> None:
    source, other = learner("synapse"), learner("synapse", 4, 7, 5, 3, seed=2)
    before = learned(other)
    with pytest.raises(TransferError, match=r"layer0_weight is 7x4 .* 6x4"):
        load_into(other, source, policy="exact")
    assert same(learned(other), before)
    with pytest.raises(TransferError):
        transfer(source, mlp(4, 7, 5, 3), policy="exact")


def test_coefficients_that_the_network_shares_stay_shared(tmp_path: Path) -> None:
    save_rule(learner("network"), tmp_path / "r")
    other, _ = transfer(tmp_path / "r", mlp(4, 8, 8, 8, 3))
    assert len([p for n, p in other.named_parameters() if n.startswith("rules")]) == 1


def test_twins_share_their_rule_after_the_transfer(tmp_path: Path) -> None:
    rule = Delta(0.1, learned=True, decay=Coefficient(0.01, bound="sigmoid", role="control"))
    source = Learner(mlp(4, 6, 3), KolenPollack("learned"), rule, SquaredError())
    shake(source, 3, control=0.5, feedback=0.5)
    save_rule(source, tmp_path / "r")
    network = mlp(4, 6, 3, seed=5)
    other = Learner(network, *load_rule(tmp_path / "r", network), SquaredError()).double()
    assert same(learned(other), learned(source))
    assert other.rules["layer1_feedback"] is other.rules["layer1_weight"]


def damaged(path: Path, change: Callable[[dict], None]) -> None:
    """Rewrite the metadata of a rule file."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    content = json.loads(header["__metadata__"]["metaplastic"])
    change(content)
    header["__metadata__"]["metaplastic"] = json.dumps(content)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def _narrow(content: dict) -> None:
    content["groups"][0]["n_out"] = 5


def _newer(content: dict) -> None:
    content["format"] += 1
    content["versions"]["metaplastic"] = "9.0"


def _unknown(content: dict) -> None:
    content["rules"][0][1]["type"] = "Mystery"


def _argument(content: dict) -> None:
    content["rules"][0][1]["mystery"] = 1


def _group(content: dict) -> None:
    content["groups"].pop(0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_narrow, "does not fit"),
        (_newer, "metaplastic 9.0"),
        (_unknown, "Mystery"),
        (_argument, "mystery"),
        (_group, "damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_changes_nothing(
    change: Callable[[dict], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "rule.safetensors"
    source = learner("neuron")
    save_rule(source, path)
    damaged(path, change)
    with pytest.raises(RuleFileError, match=words):
        transfer(path, mlp(4, 6, 5, 3))
    if change is _argument:
        return  # coefficients and kinds are those of the learner
    before = learned(source)
    with pytest.raises(RuleFileError, match=words):
        load_into(source, path)
    assert same(learned(source), before)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "rule.safetensors"
    save_rule(learner(), path)
    path.write_bytes(path.read_bytes()[:keep])
    other = learner(seed=4)
    before = learned(other)
    with pytest.raises(RuleFileError, match="save_rule"):
        load_into(other, path)
    assert same(learned(other), before)
    with pytest.raises(RuleFileError, match="not a readable"):
        read_rule(tmp_path / "missing")


def test_another_rule_or_credit_is_refused() -> None:
    delta = Learner(mlp(4, 6, 5, 3), DirectFeedback(), Delta(0.1, learned=True), SquaredError())
    oja = Learner(mlp(4, 6, 5, 3), DirectFeedback(), Oja(0.1), SquaredError())
    alignment = Learner(
        mlp(4, 6, 5, 3), FeedbackAlignment("learned"), Delta(0.1, learned=True), SquaredError()
    )
    fewer = Learner(mlp(4, 6, 5, 3), FeedbackAlignment(), Pool({"F0": 0.1}), SquaredError())
    more = Learner(mlp(4, 6, 5, 3), FeedbackAlignment(), Pool(), SquaredError())
    for source, target in ((delta, oja), (delta, alignment), (fewer, more), (more, fewer)):
        before = learned(target)
        with pytest.raises(RuleFileError, match="transfer\\(\\)"):
            load_into(target, source)
        assert same(learned(target), before)


class Tenfold(Delta):
    """A rule that is not the library's."""


def test_a_rule_of_the_users_own_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r"
    save_rule(Learner(mlp(4, 3), DirectFeedback(), Tenfold(0.1), SquaredError()), path)
    with pytest.raises(RuleFileError, match="known="):
        load_rule(path)
    _, rules = load_rule(path, known={"Tenfold": Tenfold})
    assert type(rules["role:weight"]) is Tenfold


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "rule.safetensors"
    source = learner()
    save_rule(source, path, task="glyphs", score=0.5)
    found = read_rule(path)
    assert (found.task, found.score) == ("glyphs", 0.5)
    assert found.groups["layer0_weight"].n_in == 4
    assert found.groups["layer0_weight"].pattern == "*"
    assert "torch" in found.versions
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(
        found.coefficients["layer0_weight"]["plasticity"],
        source.get_parameter("rules.layer0_weight.plasticity.raw"),
    )


def test_arguments_that_no_file_holds_are_refused(tmp_path: Path) -> None:
    rule = Delta(0.1)
    rule._arguments["rate"] = torch.nn.ReLU()
    with pytest.raises(ValueError, match="cannot hold"):
        save_rule(Learner(mlp(4, 3), DirectFeedback(), rule, SquaredError()), tmp_path / "r")
    assert not list(tmp_path.iterdir())


# --- coefficients of the credit itself ---


def number(value: float, bound: Bound = "exp") -> Coefficient:
    return Coefficient(value, bound=bound, role="control")


def controlled(*sizes: int, seed: int = 0, **numbers) -> Learner:
    """Under feedback control whose leak and nudge are learned, and have moved."""
    numbers = numbers or {"leak": number(0.5), "nudge": number(0.3)}
    credit = FeedbackControl("steady", weights="learned", **numbers)
    rule = Delta(0.3, derivative=False, learned=True)
    made = Learner(mlp(*(sizes or (4, 6, 5, 3)), seed=seed), credit, rule, SquaredError())
    return shake(made, seed, control=0.5, feedback=0.1)


def test_a_controllers_numbers_come_back_and_move_the_same_weights(tmp_path: Path) -> None:
    source, path = controlled(seed=3), tmp_path / "r"
    shown = regression(2, 5, 2, 4, 3)
    wanted, before = final_weights(source, shown), learned(source)
    save_rule(source, path)
    network = mlp(4, 6, 5, 3, seed=3)
    loaded = Learner(network, *load_rule(path, network), SquaredError()).double()
    moved, report = transfer(path, mlp(4, 6, 5, 3, seed=3), policy="exact")
    into = controlled(seed=5)
    load_into(into, path, policy="exact")
    for name in source.network.groups():
        into.network.parameter(name).data.copy_(source.network.parameter(name).data)
    for other in (loaded, moved, into):
        assert same(learned(other), before)
        found = final_weights(other, shown)
        assert all(torch.equal(found[name], w) for name, w in wanted.items())
    assert same(learned(source), before)
    own = {m.what: m.action for m in report.moved if m.group == "credit"}
    assert own == {"leak": "exact", "nudge": "exact"}
    fresh = Learner(mlp(4, 6, 5, 3, seed=3), *load_rule(path), SquaredError()).double()
    for name in ("leak", "nudge"):  # what they began with is not what was learned
        assert not torch.equal(
            fresh.state_dict()[f"credit.{name}.raw"], before[f"credit.{name}.raw"]
        )
        assert read_rule(path).own[name].bound == "exp"


def test_a_controllers_numbers_move_into_another_network() -> None:
    source = controlled(seed=3)
    other, report = transfer(source, mlp(4, 8, 7, 5, 3), policy="pool")
    for name in ("leak", "nudge"):
        found = other.get_parameter(f"credit.{name}.raw")
        assert torch.equal(found, source.get_parameter(f"credit.{name}.raw"))
    assert "leak" in str(report)


class Broad(DirectFeedback):
    """A credit with a coefficient for each output."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = Coefficient(0.5, bound="exp")

    def bind(self, network, needs, generator):
        own = super().bind(network, needs, generator)
        first = self.wanted.raw.detach().mean()
        own.wanted.raw = nn.Parameter(first.expand(network.outputs, 1).clone())
        return own


def test_a_credits_coefficients_of_another_size_are_pooled() -> None:
    source = shake(Learner(mlp(4, 3), Broad(), Delta(0.1), SquaredError()), plasticity=0.5)
    kinds = {"Broad": Broad}
    other, report = transfer(source, mlp(4, 5), known=kinds)
    values = source.credit.get_submodule("wanted")()
    found = other.credit.get_submodule("wanted")()
    torch.testing.assert_close(found, values.mean().expand(5, 1), rtol=1e-14, atol=0)
    assert [m.action for m in report.moved if m.what == "wanted"] == ["pooled"]
    with pytest.raises(TransferError, match=r"wanted of credit is 5x1 .* 3x1"):
        transfer(source, mlp(4, 5), policy="exact", known=kinds)


@pytest.mark.parametrize("numbers", [
    {"leak": 0.5, "nudge": 0.3},
    {"leak": number(0.5), "nudge": 0.3},
    {"leak": number(0.5), "nudge": number(0.3), "gain": number(1.0)},
    {"leak": number(0.5), "nudge": number(0.3, "sigmoid")},
    {"leak": number(0.5), "nudge": Coefficient(0.3, bound="exp", learned=False)},
])  # fmt: skip
def test_coefficients_that_the_credit_does_not_have_are_refused(numbers, tmp_path: Path) -> None:
    """And those that it has and the file lacks, both ways, before anything changes."""
    one, other = controlled(seed=1), controlled(seed=2, **numbers)
    save_rule(one, tmp_path / "one")
    save_rule(other, tmp_path / "other")
    for target, file in ((one, "other"), (other, "one")):
        before = learned(target)
        with pytest.raises(RuleFileError, match="coefficients of its own"):
            load_into(target, tmp_path / file)
        assert same(learned(target), before)


def _forgetful(content: dict) -> None:
    content["own"].pop("leak")


def _older(content: dict) -> None:
    content.pop("own")


@pytest.mark.parametrize("change", [_forgetful, _older])
def test_a_file_whose_credit_lost_a_coefficient_is_refused(
    change: Callable[[dict], None], tmp_path: Path
) -> None:
    save_rule(controlled(), tmp_path / "r")
    damaged(tmp_path / "r", change)
    with pytest.raises(RuleFileError, match="leak"):
        transfer(tmp_path / "r", mlp(4, 6, 5, 3))


def test_a_file_without_such_coefficients_needs_no_word_of_them(tmp_path: Path) -> None:
    """As those written before there were any."""
    source = learner("neuron")
    save_rule(source, tmp_path / "r")
    damaged(tmp_path / "r", _older)
    other, _ = transfer(tmp_path / "r", mlp(4, 6, 5, 3))
    assert same(learned(other), learned(source))


@pytest.mark.parametrize("shape", [(3,), (0, 1)])
def test_a_credits_coefficient_without_two_dimensions_is_refused(shape: tuple[int, ...]) -> None:
    found = learned_rule(controlled())
    own = {**found.own, "leak": CreditCoefficient(torch.zeros(shape), "exp")}
    with pytest.raises(RuleFileError, match="leak"):
        replace(found, own=own)


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
@pytest.mark.parametrize("through_file", [True, False])
def test_values_move_between_learned_and_fixed_coefficients(first, second, through_file, tmp_path):
    """Whatever raw numbers stand for them."""
    source = Learner(mlp(4, 5, 3), DirectFeedback(), Delta(0.1, learned=first))
    target = Learner(mlp(4, 5, 3), DirectFeedback(), Delta(0.5, learned=second))
    save_rule(source, tmp_path / "rule.safetensors")
    load_into(target, tmp_path / "rule.safetensors" if through_file else source)
    for rule in target.rules.values():
        assert isinstance(rule, Delta)
        assert float(rule.rate().detach()) == pytest.approx(0.1, rel=1e-12)


def test_values_that_no_raw_number_stands_for_are_refused():
    free = Coefficient(-0.3, bound="none", role="control")
    source = Learner(mlp(4, 5, 3), DirectFeedback(), Delta(free))
    target = Learner(mlp(4, 5, 3), DirectFeedback(), Delta(0.5, learned=True))
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(RuleFileError, match=r"rate of layer0_weight reaches from -0\.3"):
        load_into(target, source)
    assert all(torch.equal(before[n], v) for n, v in target.state_dict().items())
