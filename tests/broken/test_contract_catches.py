"""The contracts catch what they are for: broken methods, each under the test that must fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaplastic import Unrolled
from metaplastic.testing import CreditContract, MetaGradientContract, RuleContract
from tests.broken.credits import CREDIT_CASES, SoundCredit, credit_pool
from tests.broken.metagradients import METAGRADIENT_CASES, metagradient_pool
from tests.broken.rules import RULE_CASES, Sound, rule_pool

KINDS: dict[type, tuple[list, Callable[[], Any], Callable[[Any, Path], dict[str, Any]]]] = {
    RuleContract: (RULE_CASES, Sound, rule_pool),
    CreditContract: (CREDIT_CASES, SoundCredit, credit_pool),
    MetaGradientContract: (METAGRADIENT_CASES, Unrolled, metagradient_pool),
}
CASES = [
    pytest.param(contract, test, broken, id=f"{contract.__name__}-{test}-{what}".replace(" ", "_"))
    for contract, (cases, _, _) in KINDS.items()
    for test, what, broken in cases
]


def call(contract: type, test: str, method: Any, tmp_path: Path) -> None:
    """One test of a contract, with whatever arguments it takes."""
    bound = getattr(contract(), f"test_{test}")
    pool = KINDS[contract][2](method, tmp_path)
    bound(**{name: pool[name] for name in inspect.signature(bound).parameters})


@pytest.mark.parametrize(("contract", "test", "broken"), CASES)
def test_a_broken_method_fails_where_it_must(contract, test, broken, tmp_path):
    call(contract, test, KINDS[contract][1](), tmp_path)
    with pytest.raises((AssertionError, RuntimeError)):  # the latter where torch finds it first
        call(contract, test, broken(), tmp_path)


@pytest.mark.parametrize("contract", KINDS)
def test_every_test_of_a_contract_has_caught_something(contract):
    tests = {n.removeprefix("test_") for n in dir(contract) if n.startswith("test_")}
    assert tests == {test for test, _, _ in KINDS[contract][0]}
