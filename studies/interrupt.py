"""Stopping between two steps instead of inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C (or SIGTERM) is only remembered, and the function that this yields
    tells it; the second one interrupts at once. Outside the main thread nothing changes.
    """
    asked: list[int] = []

    def remember(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is up to 30 s old.")
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
