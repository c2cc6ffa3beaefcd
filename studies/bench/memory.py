"""Peak memory of one meta-gradient, and the time to compile kernels, each in a fresh process.

``python -m studies.bench.memory``: a request on standard input, the answer on standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from studies.bench.jax_row import ROOT
from studies.bench.problem import make_problem
from studies.bench.rows import ROWS, LeftOut
from studies.bench.sizes import Size, resized

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
THRESHOLD = "65536"
"""Bytes from which glibc asks the system for memory and gives it back, so that the peak is of what
is alive and not of a fragmented heap."""


def peak_bytes(size: Size, row: str, device: str, seed: int) -> int:
    """The most memory in use during one call, over what was in use before it. A tiny call comes
    first, so that compiling is not counted.

    Raises:
        LeftOut: where the system does not tell.
    """
    return _ask({"what": "peak", "size": asdict(size), "row": row, "device": device, "seed": seed})


def compile_seconds(size: Size, row: str, device: str) -> float:
    """What the first call ever takes longer than the second, with no compiled code on disk."""
    with tempfile.TemporaryDirectory() as cache:
        request = {"what": "compile", "size": asdict(size), "row": row, "device": device, "seed": 0}
        return _ask(request, NUMBA_CACHE_DIR=cache, TRITON_CACHE_DIR=cache)


def _ask(request: dict[str, Any], **environment: str) -> Any:
    if not CLEAR.exists():
        raise LeftOut("peak memory is read from Linux's /proc")
    own = {"MALLOC_MMAP_THRESHOLD_": THRESHOLD, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "studies.bench.memory"],
        input=json.dumps(request),
        env={**os.environ, **own},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was ended"])[-1]
        raise LeftOut(f"the process ended with code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _resident(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(v.split()[1]) * 1024 for v in lines if v.startswith(name))


def measured(size: Size, row: str, device: str, seed: int) -> int:
    """In this process; see ``peak_bytes``."""
    problem = make_problem(size, seed).to(device, torch.float32)
    call = ROWS[row].prepare(problem)
    _warm(size, row, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    CLEAR.write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _warm(size: Size, row: str, device: str) -> float:
    tiny = replace(resized(size, "smoke"), episodes=min(size.episodes, 2))
    call = ROWS[row].prepare(make_problem(tiny).to(device, torch.float32))
    began = time.perf_counter()
    call()
    middle = time.perf_counter()
    call()
    return (middle - began) - (time.perf_counter() - middle)


def main() -> None:
    """Answer one request."""
    torch.set_num_threads(1)
    request = json.load(sys.stdin)
    given = {**request["size"], "widths": tuple(request["size"]["widths"])}
    size, row, device = Size(**given), request["row"], request["device"]
    if request["what"] == "compile":
        print(json.dumps(_warm(size, row, device)))
    else:
        print(json.dumps(measured(size, row, device, request["seed"])))


if __name__ == "__main__":
    main()
