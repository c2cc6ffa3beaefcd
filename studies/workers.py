"""Several jobs in a few processes of their own, and one display for all."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from metaplastic.errors import MetaplasticError
from studies.display import Display
from studies.status import Report
from studies.threads import few_threads

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def run_jobs(
    function: Callable[[Job, Report], Outcome],
    jobs: Mapping[str, Job],
    workers: int,
    display: Display,
    words: Callable[[Outcome], str] = str,
) -> dict[str, Outcome]:
    """Run ``function(job, report)`` for every job, ``workers`` at a time, the first ones first.

    Each process computes with the threads of ``few_threads``. The function stands at the top of a
    module; jobs and outcomes can be pickled. ``words`` tells the display about an outcome. When one
    job fails, the others are ended.

    Raises:
        MetaplasticError: as the job raised it.
        RuntimeError: for any other failure, with the job's traceback, or a process that died.
    """
    context = multiprocessing.get_context("spawn")
    todo, events = context.Queue(), context.Queue()
    for item in [*jobs.items(), *[None] * workers]:
        todo.put(item)
    processes = [
        context.Process(target=_work, args=(function, todo, events), daemon=True)
        for _ in range(min(workers, len(jobs)))
    ]
    outcomes: dict[str, Outcome] = {}
    try:
        for process in processes:
            process.start()
        while len(outcomes) < len(jobs):
            try:
                kind, name, value = events.get(timeout=1.0)
            except queue.Empty:
                dead = [p.exitcode for p in processes if p.exitcode]
                if dead:
                    raise RuntimeError(
                        f"a worker process ended with code {dead[0]}; -9 usually means that the "
                        "machine ran out of memory."
                    ) from None
                continue
            if kind == "status":
                display.show(name, value)
            elif kind == "done":
                outcomes[name] = value
                display.done(name, words(value))
            elif kind == "refused":
                raise MetaplasticError(f"{name}: {value}")
            else:
                raise RuntimeError(f"{name} failed:\n{value}")
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
    return {name: outcomes[name] for name in jobs}


def _work(function: Callable[[Any, Report], Any], todo: Any, events: Any) -> None:
    # An interrupt from the keyboard reaches every process; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def send(kind: str, name: str, value: Any) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit("the command that asked for this is gone")
        events.put((kind, name, value))

    while (item := todo.get()) is not None:
        name, job = item
        try:
            with few_threads():
                outcome = function(job, lambda s, name=name: send("status", name, s))
        except MetaplasticError as reason:
            send("refused", name, str(reason))
        except Exception:
            send("failed", name, traceback.format_exc())
        else:
            send("done", name, outcome)
