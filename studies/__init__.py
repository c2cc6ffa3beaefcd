"""The laboratory: ``python -m studies COMMAND`` meta-trains, scores, compares and draws."""

from studies.cli import COMMANDS as COMMANDS
from studies.cli import main as main
