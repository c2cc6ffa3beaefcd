"""How many threads compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def few_threads() -> Iterator[None]:
    """Within, torch computes with as many threads as OMP_NUM_THREADS says, or else with one: the
    matrices are small, more threads are slower on a busy machine, and another number of them gives
    other roundings.
    """
    before, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(asked) if asked.isdecimal() and int(asked) > 0 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
