"""Learned rules on other networks: what is measured, and the command."""

import json

import numpy as np
import pytest
import torch

from metaplastic import evaluate
from metaplastic.errors import ConfigurationError
from metaplastic.portable import transfer
from metaplastic.rule_file import read_rule
from metaplastic.seeds import evaluation_stream
from studies.intervals import seeds_interval
from studies.networks import build_architecture
from studies.results import KEYS, ROW_KEYS
from studies.scoring import Scores
from studies.transfer import RATES, Gain, Scalar, best_scalar, measure, summarise
from tasks import make_task
from tests.studies.conftest import read

TASK = {"ways": 3, "shots": 2, "queries": 2}
CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two small runs of the pool rule, seeds 0 and 1."""
    import studies

    folders = [tmp_path_factory.mktemp("runs") / f"pool-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        arguments = ("train", "--preset", "smoke", "--task", "glyphs-iid", "--learner", "pool")
        options = ("--seed", seed, "--steps", 2, "--out", folder, "--device", "cpu")
        assert studies.main([str(a) for a in (*arguments, *options)]) == 0
    return folders


# --- networks -------------------------------------------------------------------------------


def shapes(arch: str, task: str = "glyphs-iid", **options) -> list[tuple[int, int]]:
    network = build_architecture(arch, make_task(task, **options), seeded())
    assert all(g.role == "weight" for g in network.groups().values())
    return [(g.n_out, g.n_in) for g in network.groups().values()]


def test_architectures_by_name():
    assert shapes("mlp:64x32", ways=7) == [(64, 784), (32, 64), (7, 32)]
    assert shapes("mlp:6", "sinusoid-iid", functions=4) == [(6, 5), (1, 6)]
    assert shapes("conv:8x4-16") == [(8, 9), (4, 72), (16, 4 * 49), (5, 16)]
    assert shapes("conv:8", size=17) == [(8, 9), (5, 8 * 81)]


@pytest.mark.parametrize(
    "arch",
    ["mlp", "64", "mlp:", "mlp:64x", "mlp:0", "mlp:-3", "conv:", "conv:-8", "rnn:8", "conv:8-4-2"],
)
def test_another_spelling_is_an_error(arch):
    with pytest.raises(ConfigurationError, match="mlp:64"):
        build_architecture(arch, make_task("glyphs-iid"), seeded())


def test_vectors_have_no_convolution():
    with pytest.raises(ConfigurationError, match="sinusoid"):
        build_architecture("conv:8", make_task("sinusoid-iid"), seeded())


# --- what is measured -----------------------------------------------------------------------


def test_interval_of_a_few_values():
    # Sleep gained under two drugs (Student 1908): the paired difference of ten patients, whose
    # interval at 95 % is 0.70 to 2.46.
    extra = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert extra.mean() - seeds_interval(extra) == pytest.approx(0.70, abs=0.005)
    assert extra.mean() + seeds_interval(extra) == pytest.approx(2.46, abs=0.005)
    assert np.isnan(seeds_interval(extra[:1]))
    assert seeds_interval(np.arange(40.0)) == pytest.approx(
        1.96 * np.arange(40).std(ddof=1) / 40**0.5
    )


def scores(accuracy, kept=None) -> Scores:
    values = np.array(accuracy, dtype=float)
    kept = np.ones(len(values), dtype=bool) if kept is None else np.array(kept)
    return Scores(1 - values, values, None, None, int((~kept).sum()), kept)


def test_gains_by_hand():
    scalar = Scalar(0.1, [], scores([0.5, 0.5, 0.2, 0.4]))
    one = Gain("a", 0, scores([0.9, 0.7, 0.6], [True, False, True, True]), scalar, "")
    assert one.by_episode == pytest.approx([0.4, -0.5, 0.5, 0.2])  # a diverged episode is all wrong
    other = Gain("a", 1, scores([0.5, 0.5, 0.2, 0.4]), scalar, "")
    wide = Gain("b", 0, scores([0.6, 0.6, 0.3, 0.5]), scalar, "")
    first, second = summarise([one, other, wide])
    assert first.gain == pytest.approx(0.075)
    assert first.half == pytest.approx(12.706 * np.std([0.15, 0], ddof=1) / 2**0.5)
    assert (first.learned, first.scalar) == pytest.approx((0.475, 0.4))
    assert second.kept == pytest.approx(0.1 / 0.075)
    assert second.half is None  # one seed alone
    assert second.half_episodes == pytest.approx(0, abs=1e-12)
    both = np.array([0.2, -0.25, 0.25, 0.1])  # the mean of two seeds in each episode
    assert first.half_episodes == pytest.approx(1.96 * both.std(ddof=1) / 2)


def test_a_regression_gains_where_the_loss_falls():
    def losses(*values: float) -> Scores:
        return Scores(np.array(values), None, None, None, 0, np.ones(len(values), dtype=bool))

    gain = Gain("a", 0, losses(1.0, 2.0), Scalar(0.1, [], losses(3.0, 1.0)), "")
    assert gain.by_episode == pytest.approx([2.0, -1.0])


def test_the_learned_rule_and_the_single_rates_see_the_same_draws(runs):
    """Against the library alone: the transferred learner, and F0 alone at the rate that does best
    on validation."""
    task, arch = make_task("glyphs-iid", **TASK), "mlp:8"
    rule = read_rule(runs[0] / "rule.safetensors")
    (gain,) = measure({0: rule}, [arch], task, 7, CPU)
    learner, report = transfer(rule, build_architecture(arch, task, seeded()), initial="resampled")
    shown = task.episodes("test", 50, evaluation_stream(0))[:7]
    wanted = evaluate(learner, shown, generator=evaluation_stream(1)).accuracy
    assert gain.learned.accuracy == pytest.approx(wanted.double().numpy())
    assert str(report) == gain.report
    scalar = best_scalar(rule, arch, task, 7, CPU)
    assert scalar.rate == RATES[int(np.argmax(scalar.validation))]
    assert len(scalar.validation) == 16
    assert gain.scalar.rate == scalar.rate


# --- the command ----------------------------------------------------------------------------


def test_the_command_leaves_its_results(runs, command, tmp_path):
    out = tmp_path / "moved"
    done = command("transfer", *runs, "--to", "mlp:8x8", "--to", "conv:2-4", "--episodes", 4,
                   "--out", out, "--device", "cpu")  # fmt: skip
    assert done.code == 0, done.err
    result = read(out)
    assert tuple(result) == KEYS
    assert [tuple(row) for row in result["rows"]] == [ROW_KEYS] * 6
    assert result["seeds"] == [0, 1]
    assert result["rows"][2]["learner"] == "pool on mlp:8x8"
    assert done.last == result["headline"]
    content = json.loads((out / "transfer.json").read_text())
    assert [s["arch"] for s in content["summary"]] == ["mlp:16x16", "mlp:8x8", "conv:2-4"]
    assert [(r["arch"], r["seed"]) for r in content["runs"]][:2] == [
        ("mlp:16x16", 0),
        ("mlp:16x16", 1),
    ]
    assert (out / "gain.png").is_file()
    again = command("transfer", *runs, "--out", out, "--overwrite", "--episodes", 2)
    assert again.code == 0
    assert len(read(out)["rows"]) == 2


@pytest.mark.usefixtures("bare")
def test_the_command_runs_bare_and_says_what_is_missing(runs, command, tmp_path):
    done = command("transfer", runs[0], "--episodes", 2, "--out", tmp_path / "moved")
    assert done.code == 0
    assert "gain.png" in done.out
    assert not (tmp_path / "moved" / "gain.png").exists()


def test_what_cannot_be_transferred_is_said_before_a_folder_is_made(runs, command, tmp_path):
    out = tmp_path / "moved"
    wrong = command("transfer", runs[0], "--to", "mlp:x", "--out", out)
    assert wrong.code == 2
    assert "mlp:64x64" in wrong.err
    twice = command("transfer", runs[0], runs[0], "--out", out)
    assert "same seed" in twice.err
    behind = tmp_path / "flp"
    trained = command(
        "train", "--preset", "smoke", "--task", "glyphs-iid", "--steps", 1, "--out", behind
    )
    assert trained.code == 0
    assert "--arch" in command("transfer", behind, "--out", out).err
    assert "differ" in command("transfer", runs[0], behind, "--out", out).err
    (behind / "rule.safetensors").write_bytes(b"")
    assert not out.exists()
