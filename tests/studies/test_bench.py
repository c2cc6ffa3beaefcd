"""The benchmark: that its rows compute the same, and that it says what it did."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from metaplastic import Unrolled
from metaplastic.errors import ConfigurationError, UnknownNameError
from studies.bench import floor, jax_row, loop, memory, rows, study
from studies.bench.agreement import agreement, error, fits
from studies.bench.figures import memory_figure, scaling_figure, speed_figure
from studies.bench.floor import Rates, floor_seconds, least_bytes, multiply_adds
from studies.bench.problem import make_episodes, make_learner, make_problem, named
from studies.bench.rows import PEERS, ROWS, LeftOut
from studies.bench.scaling import Curve, slope
from studies.bench.sizes import SCALING, SIZES, Size, chosen, pick
from studies.bench.study import Line, Measured
from studies.bench.tables import headline, memory_table, notes, scaling_table, speed_table
from studies.bench.timing import Spread, interleaved, ratios
from tests.studies.conftest import read

KINDS = {"small": 2, "error": 1, "oml": 1, "sinusoid": 1}
"""A size of each kind, and its episodes at smoke."""


def smoke(name: str) -> Size:
    return chosen([name], "smoke")[0]


# --- what is computed ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_loop_has_the_gradient_of_unrolled(name) -> None:
    problem = make_problem(smoke(name), 3)
    assert problem.size.episodes == KINDS[name]
    kept = problem.copy()
    loss, found = loop.meta_gradient(problem)
    learner = make_learner(problem)
    outcome = Unrolled(engine="plain").gradient(learner, make_episodes(problem))
    assert loss == pytest.approx(float(outcome.loss.mean()), rel=1e-12)
    assert found.keys() == problem.parameters.keys() == named(learner).keys()
    for key, parameter in named(learner).items():
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        assert scale > 0
        torch.testing.assert_close(found[key], parameter.grad, rtol=0, atol=1e-10 * scale)
    assert problem.same(kept)


@pytest.mark.parametrize("name", KINDS)
def test_the_loop_has_the_slope_of_its_loss(name) -> None:
    """Finite differences along a random direction of all meta-parameters."""
    problem = make_problem(smoke(name), 4)
    _, found = loop.meta_gradient(problem)
    g = torch.Generator().manual_seed(0)
    way = {n: torch.randn(t.shape, generator=g).double() for n, t in problem.parameters.items()}

    def moved(step: float) -> float:
        other = problem.copy()
        for key, tensor in other.parameters.items():
            tensor += step * way[key]
        return loop.meta_gradient(other)[0]

    wanted = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert sum(float((found[n] * v).sum()) for n, v in way.items()) == pytest.approx(wanted, 1e-6)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_row_agrees_with_the_loop_or_says_why_it_is_not_there(name, compiled) -> None:
    problem = make_problem(smoke(name))
    there = []
    for row in ROWS if compiled else ROWS.keys() - {"fused", "compiled"}:
        try:
            ROWS[row].prepare(problem)
        except LeftOut as reason:
            assert len(str(reason)) > 10  # noqa: PT017
        else:
            there.append(row)
    assert {"loop", "plain"} <= set(there)
    assert ("vmap" in there) == (problem.size.episodes > 1)
    shown, errors = agreement(problem, there)
    assert shown == problem.size.presentations
    assert max(errors.values()) < 1e-10, errors


def test_an_error_is_the_largest_of_any_tensor() -> None:
    wanted = {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([10.0])}
    assert error(wanted, wanted) == 0
    assert error({**wanted, "a": torch.tensor([1.0, -3.0])}, wanted) == 0.25
    assert error({**wanted, "b": torch.tensor([math.nan])}, wanted) == math.inf


@pytest.mark.parametrize("name", SIZES)
def test_nothing_diverges_on_inputs_of_unit_norm(name) -> None:
    problem = make_problem(smoke(name))
    torch.testing.assert_close(problem.x.norm(dim=-1), torch.ones(problem.x.shape[:3]).double())
    assert loop.meta_gradient(problem)[0] < 10


# --- how it is timed ----------------------------------------------------------------------------


def test_rows_take_turns_and_the_first_call_is_apart() -> None:
    problem, order = make_problem(smoke("error")), []

    def row(name: str):
        return lambda: (order.append(name) or 1.0, {})

    found = interleaved({"a": row("a"), "b": row("b")}, problem, 2)
    assert order == ["a", "b"] * 3
    assert [len(t.cpu) for t in found.values()] == [len(t.wall) for t in found.values()] == [2, 2]


def test_a_row_that_is_too_slow_is_not_repeated() -> None:
    found = interleaved({"a": lambda: (1.0, {})}, make_problem(smoke("error")), 3, limit=-1.0)
    assert found["a"].cpu == []


def test_a_loss_that_moves_and_changed_inputs_are_refused() -> None:
    problem = make_problem(smoke("error"))
    losses = iter([1.0, 1.0, 1.1])
    with pytest.raises(RuntimeError, match=r"error, a, call 2: the loss is 1.1"):
        interleaved({"a": lambda: (next(losses), {})}, problem, 2)
    with pytest.raises(RuntimeError, match="the loss is nan"):
        interleaved({"a": lambda: (math.nan, {})}, problem, 1)

    def spoils():
        problem.weights[0][0, 0] += 1
        return 1.0, {}

    with pytest.raises(RuntimeError, match="inputs were changed"):
        interleaved({"a": spoils}, problem, 1)


def test_ratios_are_taken_turn_by_turn() -> None:
    assert ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == Spread(3.0, 2.0, 4.0)


def test_the_slope_is_that_of_a_power() -> None:
    assert slope([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)
    assert math.isnan(slope([1], [1.0]))


def test_the_floor_counts_what_there_is_to_do() -> None:
    """By an independent loop over layers, presentations, examples and synapses."""
    size = Size("tiny", (3, 4, 2), 5, 2, batch=3, queries=7)
    count = 0
    for layer, (n_out, n_in) in enumerate(((4, 3), (2, 4))):
        for _ in range(size.episodes * n_out * n_in):
            for _ in range(size.presentations):
                count += 2 + 2 + 4  # update forward, update again, its adjoint
                for _ in range(size.batch):
                    count += 2 + 1 + 2 + (2 if layer else 0)
            count += size.queries * (3 if layer else 2)
    assert multiply_adds(size) == count
    slow = Rates(multiply_adds=count / 2.0, near=1.0, far=1e12)
    assert floor_seconds(size, slow) == pytest.approx(2.0)
    assert floor_seconds(size, Rates(1e12, 1.0, least_bytes(size) / 3)) == pytest.approx(3.0)


def test_what_would_not_fit_the_memory_is_not_tried(monkeypatch) -> None:
    monkeypatch.setattr("studies.bench.agreement.free_bytes", lambda: 10**6)
    assert not fits(SIZES["middle"], "loop")
    assert fits(SIZES["middle"], "fused")  # it keeps no graph of every presentation
    problem = make_problem(smoke("stream"))
    monkeypatch.setattr("studies.bench.agreement.free_bytes", lambda: 10**5)
    shown, errors = agreement(problem, ["plain"])
    assert 1 <= shown < problem.size.presentations
    assert errors["plain"] < 1e-10
    monkeypatch.setattr("studies.bench.study.fits", lambda size, name: name == "plain")
    done = study.measure(smoke("error"), ["plain"], torch.device("cpu"), 0, 1, lambda text: None)
    assert done.left_out["loop"] == "its graph would not fit the free memory"
    assert done.lines["plain"].cpu_ratio is None
    assert any("loop" in note for note in notes(done))


# --- what is said -------------------------------------------------------------------------------


def measured(name: str = "small") -> Measured:
    one, two = Spread(0.2, 0.19, 0.25), Spread(2.0, 1.8, 2.2)
    done = Measured(smoke(name))
    for row, ratio in (("loop", Spread(1.0, 1.0, 1.0)), ("fused", two)):
        done.lines[row] = Line(name, row, one, one, 1.5, 1.0, ratio, ratio, 1e-15, 4)
    done.peaks = {"loop": 30_000_000, "fused": 3_000_000}
    return done


def test_the_tables_and_the_headline() -> None:
    done = measured()
    head, body = speed_table(done)
    assert [line[0] for line in body] == ["loop", "fused"]
    assert body[1][head.index("× loop, CPU")] == "2.00"
    assert body[1][1:3] == ["200", "190–250"]
    assert memory_table([done])[1] == [["small", "30", "3", "10"]]
    text = headline([done], "smoke", gpu=False)
    assert "fused 2 on small" in text
    assert "peak memory over fused's: 10 on small" in text
    done.left_out["jax"] = "no environment"
    assert notes(done) == ["left out: jax: no environment"]
    curve = Curve("T", "fused", (1, 2), (Spread(1, 1, 1), Spread(2, 2, 2)), 1.0)
    assert scaling_table([curve])[1] == [["T 1..2", "T^1.00"]]


def test_the_pictures_show_every_row() -> None:
    pytest.importorskip("matplotlib")
    done = measured()
    figure = speed_figure([done])
    assert figure is not None
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["small"]
    assert memory_figure([done]) is not None
    curve = Curve("T", "fused", (1, 2), (Spread(1, 1, 1), Spread(2, 2, 2)), 1.0)
    drawn = scaling_figure([curve])
    assert drawn is not None
    assert drawn.axes[0].get_legend().get_texts()[0].get_text() == "fused: slope 1.00"
    assert speed_figure([]) is memory_figure([]) is scaling_figure([]) is None


def test_sizes_and_rows_by_name() -> None:
    assert [s.name for s in chosen(["oml", "small"], "acceptance")] == ["small", "oml"]
    assert chosen(None, "full") == list(SIZES.values())
    assert SIZES["middle"].synapses == 268_800
    with pytest.raises(UnknownNameError, match="Did you mean 'middle'"):
        chosen(["midle"], "smoke")
    with pytest.raises(UnknownNameError, match="Did you mean 'smoke'"):
        chosen(None, "smok")
    with pytest.raises(ConfigurationError, match="no size is named"):
        chosen([], "smoke")
    assert pick(["jax", "plain"], PEERS, "peer") == ["plain", "jax"]


def test_missing_peers_are_said(tmp_path, monkeypatch) -> None:
    problem = make_problem(smoke("error"))
    monkeypatch.setattr(jax_row, "PYTHON", tmp_path / ".venv-peers" / "bin" / "python")
    with pytest.raises(LeftOut, match="make peers"):
        jax_row.run_jax(problem, 1)
    for name in ("higher", "learn2learn"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(LeftOut, match=f"pip install {name}=="):
            ROWS[name].prepare(problem)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(LeftOut, match="pip install numba"):
        floor.measure()


@pytest.mark.slow
@pytest.mark.skipif(not jax_row.PYTHON.exists(), reason="there is no .venv-peers: make peers")
@pytest.mark.parametrize("name", [n for n in KINDS if n != "error"])
def test_jax_has_the_gradient_of_the_loop(name) -> None:
    problem = make_problem(smoke(name), 5)
    answer, found = jax_row.run_jax(problem, 1)
    loss, wanted = loop.meta_gradient(problem)
    assert answer["loss"] == pytest.approx(loss, rel=1e-10)
    assert error(found, wanted) < 1e-10


def test_the_peak_of_a_longer_stream_is_the_longer_stream_s(monkeypatch) -> None:
    if not memory.CLEAR.exists():
        pytest.skip("peaks are read from Linux's /proc")
    long = Size("long", (64, 64, 8), 300, 1, queries=4)
    peak = memory.peak_bytes(long, "loop", "cpu", 0)
    least = 2 * 4 * long.synapses * long.presentations  # two copies of the weights at each
    assert least < peak < 4 * least


def test_the_command(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(jax_row, "PYTHON", tmp_path / ".venv-peers" / "bin" / "python")
    monkeypatch.setattr(study, "peak_bytes", lambda size, row, device, seed: 2_000_000)
    out, before = tmp_path / "out", torch.get_num_threads()
    asked = ("bench", "--preset", "smoke", "--sizes", "oml,small", "--peers", "jax,plain,vmap")
    done = command(*asked, "--out", out, "--device", "cpu", "--seed", 7, "--repeats", 1)
    assert done.code == 0, done.err
    assert torch.get_num_threads() == before
    result = read(out)
    assert done.last == result["headline"]
    assert [(r["task"], r["learner"]) for r in result["rows"]] == [
        ("small", "loop"), ("small", "plain"), ("small", "vmap"), ("oml", "loop"), ("oml", "plain"),
    ]  # fmt: skip
    config = result["config"]
    assert (result["seeds"], config["repeats"], config["peers"]) == (
        [7],
        1,
        ["plain", "vmap", "jax"],
    )
    small, oml = config["summary"]
    assert [row["row"] for row in small["rows"]] == ["loop", "plain", "vmap"]
    assert all(row["error"] < 1e-10 for row in small["rows"])
    assert small["peak_bytes"] == {"loop": 2_000_000}
    assert "make peers" in small["left_out"]["jax"]
    assert oml["left_out"]["vmap"].startswith("one episode")
    assert {c["axis"] for c in config["scaling"]["curves"]} == {"T", "E", "width"}
    assert "left out: jax: there is no .venv-peers: `make peers` makes it" in done.out
    assert str(out.parent) not in json.dumps(result)


def test_what_is_wrong_is_said(command, tmp_path) -> None:
    for arguments, message in (
        (("--sizes", "midle"), "Did you mean 'middle'?"),
        (("--peers", "jaxx"), "Did you mean 'jax'?"),
        (("--repeats", "0"), "counts from 1"),
        (("--preset", "quik"), "Did you mean 'quick'?"),
        (("--sizes", ","), "no size is named"),
    ):
        done = command("bench", *arguments, "--out", tmp_path / "out")
        assert done.code == 2
        assert message in done.err
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_size_and_row(capsys) -> None:
    import studies

    with pytest.raises(SystemExit):
        studies.main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*SIZES, *PEERS, "make peers"))


def test_every_preset_has_its_sizes() -> None:
    assert SCALING.keys() == {"smoke", "quick", "acceptance", "full"}
    assert rows.PEERS.keys() - ROWS.keys() == {"jax"}
