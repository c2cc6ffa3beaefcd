"""What Numba keeps on disk goes with the sources of all kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import metaplastic

pytest.importorskip("numba", reason="needs Numba")
RUN = """
import torch
from torch import nn
from metaplastic import DirectFeedback, Episodes, LayeredNetwork, Learner, Oja, Unrolled

torch.manual_seed(0)
network = LayeredNetwork(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
learner = Learner(network, DirectFeedback("target"), {"role:weight": Oja(0.1)})
shown = Episodes(torch.ones(1, 2, 1, 3), torch.zeros(1, 2, 1).long(), torch.ones(1, 1, 3),
                 torch.zeros(1, 1).long())
print(float(Unrolled(engine="fused").gradient(learner, shown).loss))
"""


@pytest.mark.slow
def test_a_change_in_a_function_that_is_called_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "metaplastic"
    source = Path(metaplastic.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))

    def loss() -> float:
        done = subprocess.run(
            [sys.executable, "-c", RUN], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        )  # fmt: skip
        return float(done.stdout)

    before = loss()
    assert loss() == before
    neurons = package / "kernels" / "cpu_neurons.py"
    told = neurons.read_text()
    assert "return np.tanh(u)" in told
    neurons.write_text(told.replace("return np.tanh(u)", "return np.tanh(u + u)"))
    assert loss() != before
