"""Contracts that a rule, a credit or a meta-gradient of your own can be held to, with pytest.

Subclass one, give it what is to be tested as a fixture, and run pytest:

    class TestMyRule(RuleContract):
        @pytest.fixture
        def rule(self):
            return MyRule()

Importing this package imports pytest, which ``import metaplastic`` does not.
"""

import pytest

# Before they are imported, so that a failed assert says what it compared.
_FILES = ("oracles", "loop", "heard", "kept", "rule", "credit", "metagradient")
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in _FILES))

from metaplastic.testing.credit import CreditContract as CreditContract  # noqa: E402
from metaplastic.testing.metagradient import MetaGradientContract as MetaGradientContract  # noqa: E402
from metaplastic.testing.rule import RuleContract as RuleContract  # noqa: E402
