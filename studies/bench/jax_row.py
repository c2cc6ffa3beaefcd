"""JAX in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studies.bench.problem import MIX, Problem
from studies.bench.rows import LeftOut

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SCRIPT = Path(__file__).with_name("jax_peer.py")
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": "",
}
LIMIT = 1800
"""Seconds for one size."""


def run_jax(
    problem: Problem, repeats: int, every: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``jax_peer`` answers, and the gradient by name, for the fastest of ``every`` form or for
    one. On a CPU, with one thread on one core.

    Raises:
        LeftOut: without ``.venv-peers``, on a GPU, and where JAX fails or takes too long.
    """
    if not PYTHON.exists():
        raise LeftOut(f"there is no {PYTHON.parents[1].name}: `make peers` makes it")
    if problem.x.is_cuda:
        raise LeftOut("it is measured on a CPU only")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers = {n: t.numpy() for n, t in problem.tensors.items()}
        np.savez(folder / "numbers.npz", **numbers)  # type: ignore[arg-type]
        request = {
            "size": {**asdict(problem.size), "mix": MIX},
            "double": problem.x.dtype == torch.float64,
            "repeats": repeats,
            "every": every,
            "numbers": str(folder / "numbers.npz"),
            "gradient": str(folder / "gradient.npz"),
            "answer": str(folder / "answer.json"),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            done = subprocess.run(
                [PYTHON, SCRIPT, folder / "request.json"],
                env={**os.environ, **ONE_THREAD},
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            raise LeftOut(f"JAX took more than {LIMIT} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise LeftOut(f"JAX ended with code {done.returncode}: {last}")
        answer = json.loads((folder / "answer.json").read_text("utf-8"))
        with np.load(folder / "gradient.npz") as found:
            return answer, {n: torch.from_numpy(found[n]) for n in found.files}
