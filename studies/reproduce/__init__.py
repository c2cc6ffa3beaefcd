"""Published experiments, run again: ``python -m studies reproduce PAPER``."""

from __future__ import annotations

from metaplastic.errors import UnknownNameError
from studies.reproduce import dfc, lcp, pepita, strong_dfc
from studies.reproduce.paper import Paper

PAPERS: dict[str, Paper] = {
    paper.name: paper for paper in (dfc.PAPER, strong_dfc.PAPER, pepita.PAPER, lcp.PAPER)
}
"""Every paper; a new one is one file and one name here."""


def paper_of(name: str) -> Paper:
    """The paper of a name; UnknownNameError suggests the nearest."""
    if name not in PAPERS:
        raise UnknownNameError("paper", name, PAPERS)
    return PAPERS[name]
