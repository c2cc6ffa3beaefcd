"""Reproductions: training that can be interrupted, the table, and the command."""

import json
import math
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from metaplastic import Delta, Learner
from metaplastic.credit import Backprop, FeedbackControl
from metaplastic.errors import CheckpointError, ConfigurationError, UnknownNameError
from studies.display import make_display
from studies.reproduce import PAPERS
from studies.reproduce.base import Method, Setup, Sizes, Sweep, Trainee, resized
from studies.reproduce.control import controlled
from studies.reproduce.dfc import MNIST
from studies.reproduce.episodes import ChosenEpisodes
from studies.reproduce.figures import CONTROL_PICTURES, NOISE_PICTURE
from studies.reproduce.images import ChosenImages, PaperPart
from studies.reproduce.jobs import ImageJob, make_training
from studies.reproduce.outcome import Outcome, slowness, summarise
from studies.reproduce.paper import Paper, chosen
from studies.reproduce.phase import FEEDBACK, WEIGHTS, Phase
from studies.reproduce.study import make_jobs, open_study, work
from studies.reproduce.tables import cells, epochs_table, summary_table, sweep_table
from studies.reproduce.training import Training, evaluate
from studies.results import KEYS, ROW_KEYS
from studies.workers import run_jobs
from tasks.images import Images, Part
from tests.studies.conftest import read

SIZES = Sizes(images=40, epochs=3, seeds=(0, 1), test=30, validation=20, batch=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made_up(name: str = "mnist", root=None, *, images=None, device="cpu", **_) -> Images:
    """Three classes of 2 x 3 pixels that a linear map can tell apart."""
    g = seeded(7)
    centres = torch.randn(3, 1, 2, 3, generator=g)

    def part(count: int) -> Part:
        y = torch.arange(count) % 3
        return Part(centres[y] + 0.3 * torch.randn(count, 1, 2, 3, generator=g), y)

    return Images(name, part(images or 40), part(20), part(30), 3)


def small(setup: Setup) -> Trainee:
    """Analytic control with feedback that learns, and a rate that falls."""
    g = setup.generator("initial")
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    for parameter in net.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=g)
    rules = {"role:feedback": Delta(1.0, derivative=False), "*": Delta(10.0, derivative=False)}
    credit = FeedbackControl(
        nudge=0.1, weights="learned", initial="random", feedback_learning="forward-noise"
    )
    learner = Learner(net, credit, rules, generator=setup.generator("feedback"))
    forward = torch.optim.Adam(net.parameters(), setup.options["lr"])
    back = torch.optim.Adam(learner.credit.parameters(), 0.01, weight_decay=1.0)
    falling = torch.optim.lr_scheduler.StepLR(forward, 2, 0.1)
    phases = [Phase(FEEDBACK, back), Phase(WEIGHTS, forward, scheduler=falling)]
    probes = {"norm": lambda learner, x, y: float(learner.credit.layer0_feedback.norm())}
    return Trainee(learner, phases, [Phase(FEEDBACK, back, 2)], probes)


def falls_over(setup: Setup) -> Trainee:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    learner = Learner(net, Backprop(), {"*": Delta(1.0)})
    return Trainee(learner, [Phase(WEIGHTS, torch.optim.SGD(net.parameters(), 1e38), clip=None)])


def training(seed: int = 0) -> Training:
    images = made_up()
    setup = Setup((1, 2, 3), 3, seed, SIZES, {"lr": 0.01})
    made = small(setup)
    return Training(
        made.learner,
        images,
        made.phases,
        before=made.before,
        probes=made.probes,
        batch=SIZES.batch,
        seed=seed,
    )


def silent(status) -> None:
    del status


def timeless(curve: list) -> list:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in curve]


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(stop, tmp_path):
    whole, path = training(), tmp_path / "checkpoint.pt"
    whole.run(3, silent)
    begun = training()
    begun.run(stop, silent)
    begun.save(path, {"mine": 3})
    resumed = training(seed=5)  # whatever it began with
    assert resumed.resume(path)["mine"] == 3
    resumed.run(3, silent)
    assert timeless(resumed.curve) == timeless(whole.curve)
    for name, value in whole.learner.state_dict().items():
        assert torch.equal(value, resumed.learner.state_dict()[name]), name
    other = Training(whole.learner, whole.images, whole.phases[:1])
    with pytest.raises(CheckpointError, match="optimisers"):
        other.resume(path)


def test_an_epoch_is_what_a_loop_by_hand_does():
    """Backpropagation by autograd, clipped by hand, on batches in the same order."""
    images = made_up()
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    images = replace(images, train=Part(images.train.x.double()[:35], images.train.y[:35]))
    for part in ("validation", "test"):
        own = getattr(images, part)
        images = replace(images, **{part: Part(own.x.double(), own.y)})
    rules = {"role:weight": Delta(1.0), "role:bias": Delta(1.0)}
    learner = Learner(net, Backprop(), rules)
    phase = Phase(WEIGHTS, torch.optim.SGD(net.parameters(), 0.5), sweeps=2, clip=0.2)
    made = Training(learner, images, [phase], batch=8, seed=3)
    order = made._generators["episodes"].clone_state()
    made.run(1, silent)

    w, b = start["1.weight"].clone(), start["1.bias"].clone()
    losses = []
    for _ in range(2):
        shuffled = torch.randperm(35, generator=order)
        for i in range(4):  # the last 3 images are dropped
            index = shuffled[8 * i : 8 * i + 8]
            w, b = w.requires_grad_(), b.requires_grad_()
            x, y = images.train.x[index].flatten(1), images.train.y[index]
            loss = nn.functional.cross_entropy(x @ w.T + b, y)
            losses.append(loss.item())
            gw, gb = torch.autograd.grad(loss, (w, b))
            gw, gb = (g * min(1.0, 0.2 / (float(g.norm()) + 1e-6)) for g in (gw, gb))
            w, b = (w - 0.5 * gw).detach(), (b - 0.5 * gb).detach()
    assert torch.allclose(net[1].weight, w, atol=1e-12)
    assert torch.allclose(net[1].bias, b, atol=1e-12)
    line = made.curve[1]
    assert line["loss"] == pytest.approx(np.mean(losses))
    with torch.no_grad():
        right = (net(images.test.x).argmax(1) == images.test.y).double().mean()
        loss = nn.functional.cross_entropy(net(images.test.x), images.test.y)
    assert line["test_accuracy"] == pytest.approx(float(right))
    assert evaluate(learner, images.test)[0] == pytest.approx(float(loss))


def test_feedback_is_trained_first_and_weights_only_in_their_phase():
    made = training()
    before = {k: v.clone() for k, v in made.learner.state_dict().items()}
    made.run(0, silent)
    for name, value in made.learner.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == name.startswith("credit."), name
    assert "loss" not in made.curve[0]
    first = made.curve[0]["probes"]["norm"]
    assert first == pytest.approx(float(before["credit.layer0_feedback"].norm()))
    assert made.phases[1].optimizer.param_groups[0]["lr"] == 0.01
    made.run(2, silent)
    assert made.phases[1].optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_lost_examples_are_counted_as_a_share(monkeypatch):
    made = training()
    assign = made.learner.assign_grads

    def lossy(*arguments, observe, **options):
        return assign(
            *arguments,
            observe=lambda state: observe({"credit": {"unconverged": torch.tensor(2.0)}}),
            **options,
        )

    monkeypatch.setattr(made.learner, "assign_grads", lossy)
    made.run(1, silent)
    assert made.curve[1]["unconverged"] == 2 / 8


def job(tmp_path, build=small, seed=0, **options) -> ImageJob:
    return ImageJob(
        "mine",
        "mnist",
        "unit",
        Method("m", "", build, {"lr": 0.01, **options}),
        SIZES,
        seed,
        None,
        tmp_path,
        "cpu",
    )


@pytest.fixture
def data(monkeypatch) -> None:
    for module in ("jobs", "images"):
        monkeypatch.setattr(f"studies.reproduce.{module}.load_images", made_up)


@pytest.mark.usefixtures("data")
def test_a_job_that_is_killed_goes_on_and_a_finished_one_is_only_read(tmp_path, monkeypatch):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = job(tmp_path / "whole").work(silent)

    class Killed(BaseException):
        pass

    def dies(status) -> None:
        if status.done > 15 + 7:  # in the second epoch
            raise Killed

    monkeypatch.setattr("studies.status.Every.__call__", lambda self: True)
    with pytest.raises(Killed):
        job(tmp_path / "killed").work(dies)
    lines = (tmp_path / "killed" / "curve.jsonl").read_text().splitlines()
    assert 1 < len(lines) < 4
    resumed = job(tmp_path / "killed").work(silent)
    assert timeless(resumed.curve) == timeless(whole.curve)
    monkeypatch.setattr("studies.reproduce.jobs.make_training", None)
    assert job(tmp_path / "killed").work(silent) == resumed
    with pytest.raises(CheckpointError, match="--overwrite"):
        job(tmp_path / "killed", lr=0.02).work(silent)
    row = read(tmp_path / "killed")["rows"][0]
    assert tuple(row) == ROW_KEYS
    best = max(whole.curve[1:], key=lambda line: line["validation_accuracy"])
    assert row["accuracy"] == best["test_accuracy"]
    assert row["task"] == "mine"


@pytest.mark.usefixtures("data")
def test_what_diverges_says_so_in_its_row(tmp_path):
    outcome = job(tmp_path, falls_over).work(silent)
    assert outcome.diverged
    assert outcome.accuracy is None
    row = read(tmp_path)["rows"][0]
    assert (row["accuracy"], row["loss"], row["diverged"]) == (None, None, 1)
    (summary,) = summarise([outcome], "bp", {})
    assert cells(summary)[1] == "–"
    assert cells(summary)[-1] == "1 of 1"


def line(step: int, validation: float, test: float, **more) -> dict:
    return {
        "step": step,
        "loss": 1.0,
        "unconverged": 0.25,
        "seconds": 2.0 * step,
        "validation_accuracy": validation,
        "test_accuracy": test,
        "test_loss": 0.5,
        "probes": more,
    }


def outcome(method: str, seed: int, test: float, level=None, **more) -> Outcome:
    """The best validation epoch is the first of two equals, not the best on test images."""
    curve = [
        line(0, 0.1, 0.1, row_space_share=0.2, **more),
        line(1, 0.9, test, row_space_share=0.3, **more),
        line(2, 0.9, test + 0.05, row_space_share=0.6, **more),
    ]
    return Outcome("mnist", method, seed, level, curve)


def test_the_table_is_over_seeds_and_paired():
    outcomes = [
        outcome("bp", 0, 0.90),
        outcome("bp", 1, 0.94),
        outcome("dfc", 1, 0.92),
        outcome("dfc", 0, 0.89),
        outcome("dfc", 2, 0.80),
    ]
    bp, dfc = summarise(outcomes, "bp", {"dfc": 97.8})
    assert bp.accuracy == pytest.approx(0.92)
    assert bp.std == pytest.approx(0.04 / 2**0.5)
    assert bp.difference is None
    assert dfc.difference == pytest.approx(-0.015)  # seed 2 has no partner
    assert dfc.seconds == pytest.approx(3.0)
    assert dfc.unconverged == 0.25
    assert dfc.condition == pytest.approx((0.2, 0.6))
    assert cells(dfc)[1:4] == ["87.00 ± 6.24", "-1.50 ± 0.71", "97.80"]
    top, body = summary_table("bp", [bp, dfc])
    assert top[1:3] == ["test accuracy, %", "against bp"]
    assert "diverged" not in top  # nobody did
    assert all(len(one) == len(top) for one in body)


def test_who_has_no_control_is_told_how_stable_its_simulation_was():
    outcomes = [outcome("dfc", seed, 0.9, gain_bound=bound) for seed, bound in ((0, 7.5), (1, 2))]
    (dfc,) = summarise(outcomes, "bp", {})
    assert dfc.warning is not None
    assert "dfc: 25 %" in dfc.warning
    assert "7.5, and simulations are stable below about 5" in dfc.warning
    assert replace(dfc, unconverged=0.0).warning is None
    (bp,) = summarise([outcome("bp", 0, 0.9)], "bp", {})
    assert bp.warning is None


def test_accuracy_after_some_epochs_stands_beside_what_was_published():
    outcomes = [outcome("a", 0, 0.8), outcome("a", 1, 0.9), outcome("b", 0, 0.5)]
    methods = [Method("a", "", small, published_epochs={1: 70.0, 10: 90.0}), Method("b", "", small)]
    top, body = epochs_table((1, 10), methods, outcomes)
    assert top[1:] == ["1", "2"]  # 10 was not reached; 2 is the last
    assert body == [
        ["a", "85.00 ± 7.07", "90.00 ± 7.07"],
        ["a, published", "70.00", "–"],
        ["b", "50.00", "55.00"],
    ]
    assert epochs_table((), methods, outcomes)[1] == []


@pytest.mark.parametrize("half", [0.05, 1.494, 20.0])
def test_slowness_is_that_of_the_curve(half):
    epochs = np.arange(1, 60)
    exact = list(0.5 * epochs / (half + epochs))
    assert slowness(exact) == pytest.approx(half, rel=1e-3)
    assert slowness(exact[:2]) is None
    assert slowness([0.3, 0.3, math.nan]) is None
    bent = [0.30, 0.42, 0.45, 0.49]
    s = slowness(bent)
    assert s is not None

    def misfit(s: float) -> float:
        shape = [t / (s + t) for t in (1, 2, 3, 4)]
        best = sum(a * b for a, b in zip(shape, bent, strict=True)) / sum(a * a for a in shape)
        return sum((best * a - b) ** 2 for a, b in zip(shape, bent, strict=True))

    assert misfit(s) < min(misfit(0.98 * s), misfit(1.02 * s))
    made = [outcome("m", 0, 0.9)]
    assert summarise(made, "m", {})[0].slowness is None
    assert summarise(made, "m", {}, slow=2)[0].slowness is None  # two epochs are too few


def test_sweeps_stand_in_a_table_of_their_own():
    outcomes = [outcome("weak", s, a, v) for v, a in ((0.0, 0.9), (0.1, 0.5)) for s in (0, 1)]
    outcomes.append(Outcome("mnist", "strong", 0, 0.1, [], "it diverged"))
    assert summarise(outcomes, "bp", {}) == []
    top, body = sweep_table(outcomes)
    assert top[1:] == ["0", "0.1"]
    assert body == [["weak", "90.0", "50.0"], ["strong", "–", "–"]]


def test_pictures_take_seeds_that_differ_in_length_and_levels():
    pytest.importorskip("matplotlib")
    probes = {"control_energy": 1.0, "control_to_drive_1": 0.1, "control_to_drive_2": 0.2}
    plain = [outcome(m, s, 0.9, **probes) for m in ("dfc", "strong") for s in (0, 1)]
    cut = replace(plain[-1], curve=plain[-1].curve[:2], diverged="so it is")
    swept = [outcome("weak", 0, 0.9, level) for level in (0.0, 0.01, 0.1)]
    for picture in (*CONTROL_PICTURES, NOISE_PICTURE):
        assert picture.draw([*plain[:-1], cut, *swept]) is not None
        assert picture.draw([Outcome("mnist", "dfc", 0, None, [], "at once")]) is None


def test_papers_are_complete_and_their_options_are_json():
    for name, paper in PAPERS.items():
        assert paper.name == name
        for preset in ("smoke", "quick", "acceptance", "full"):
            parts = chosen(paper, preset).values()
            assert {type(one) for one in parts} <= {ChosenImages, ChosenEpisodes}
            every = [(one, m) for one in parts if isinstance(one, ChosenImages) for m in one.every]
            assert every
            for one, method in every:
                assert len({m.name for m in one.every}) == len(one.every)
                assert one.part.reference in [m.name for m in one.methods]
                json.dumps(dict(method.options), allow_nan=False)
                pickle.dumps(method)
                shape = (3, 32, 32) if one.part.data == "cifar10" else (1, 8, 8)
                trainee = method.build(Setup(shape, 10, 0, one.sizes, method.options, None))
                own = {id(p) for p in trainee.learner.parameters()}
                held = {
                    id(p)
                    for phase in (*trainee.before, *trainee.phases)
                    for group in phase.optimizer.param_groups
                    for p in group["params"]
                }
                assert held == own, method.name


def test_methods_of_one_seed_begin_with_the_same_weights():
    methods = MNIST.methods("smoke")
    first = [
        m.build(Setup((1, 4, 4), 10, 3, SIZES, m.options)).learner.network.weights()
        for m in methods
    ]
    for weights in first[1:]:
        for name, value in weights.items():
            assert torch.equal(value, first[0][name])
    w = first[0]["layer1_weight"]
    assert float(w.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.02)


def test_what_is_asked_for_is_checked():
    paper = PAPERS["strong-dfc"]
    with pytest.raises(UnknownNameError, match="Did you mean 'dfc-ss'"):
        chosen(paper, "smoke", ["dfc-sss"])
    with pytest.raises(UnknownNameError, match="preset"):
        chosen(paper, "smokey")
    only = chosen(paper, "smoke", ["weak-in-noise"])["mnist"]
    assert isinstance(only, ChosenImages)
    assert not only.methods
    assert only.sweep is not None
    assert [m.name for m in only.sweep.methods] == ["weak-in-noise"]
    assert list(chosen(paper, "smoke", ["bp"])["mnist"].about) == ["bp"]
    assert resized(SIZES, 64, 2, [4, 4]).seeds == (4,)
    for wrong in ((4, 1, None), (64, 0, None), (64, 1, [-1]), (64, 1, [])):
        with pytest.raises(ConfigurationError):
            resized(SIZES, *wrong)


def test_a_folder_is_gone_on_with_only_for_the_same_setting(tmp_path):
    out, setting = str(tmp_path / "out"), {"paper": "dfc", "epochs": 2}
    folder = open_study(out, False, setting)
    assert open_study(out, False, setting) == folder
    with pytest.raises(ConfigurationError, match=r"epochs 2 \(now 3\)"):
        open_study(out, False, {**setting, "epochs": 3})
    open_study(out, True, {**setting, "epochs": 3})
    assert json.loads((folder / "config.json").read_text())["epochs"] == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ConfigurationError, match="not empty"):
        open_study(str(tmp_path / "mine"), False, setting)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """A paper of two methods and a sweep, and one of the methods again, in this process."""
    methods = [Method("bp", "one", small, {"lr": 0.02}), Method("own", "two", small, {"lr": 0.01})]
    sweep = Sweep("noise", "σ", (Method("swept", "three", small, {"lr": 0.01}),), (0.0, 0.1), SIZES)
    sizes = {"quick": SIZES}
    parts = {
        "one": PaperPart("mnist", lambda preset: methods, sizes, sweep=lambda preset: sweep),
        "two": PaperPart("mnist", lambda preset: methods[:1], sizes, scaling="unit"),
        "never": PaperPart("mnist", lambda preset: methods, {"full": SIZES}),
    }
    paper = Paper(
        name="tiny",
        title="A tiny paper",
        source="nobody",
        about="for this test",
        parts=parts,
        pictures=(*CONTROL_PICTURES, NOISE_PICTURE),
        shown_epochs=(1,),
    )
    monkeypatch.setitem(PAPERS, "tiny", paper)
    for module in ("jobs", "images"):
        monkeypatch.setattr(f"studies.reproduce.{module}.load_images", made_up)

    def here(function, jobs, workers, display, words):
        return {name: function(job, silent) for name, job in jobs.items()}

    monkeypatch.setattr("studies.commands.reproduce.run_jobs", here)


@pytest.mark.usefixtures("tiny")
def test_the_command_writes_its_results_and_goes_on(command, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done = command("reproduce", "tiny", "--methods", "bp", "--parts", "one", "--out", out)
    assert done.code == 0, done.err
    assert [(row["task"], row["learner"]) for row in read(out)["rows"]] == [("one", "bp")] * 2
    seen = []

    def spied(job, images):
        seen.append(job.out.name)
        return make_training(job, images)

    monkeypatch.setattr("studies.reproduce.jobs.make_training", spied)
    done = command("reproduce", "tiny", "--out", out)
    assert done.code == 0, done.err
    assert not [name for name in seen if name.startswith("one-bp")]  # those were there
    result = read(out)
    assert tuple(result) == KEYS
    assert all(tuple(row) == ROW_KEYS for row in result["rows"])
    assert {(row["task"], row["learner"], row["seed"]) for row in result["rows"]} == {
        *(("one", name, seed) for name in ("bp", "own") for seed in (0, 1)),
        *(("one", f"swept at {level:g}", seed) for level in (0, 0.1) for seed in (0, 1)),
        *(("two", "bp", seed) for seed in (0, 1)),
    }
    found = [(s["part"], s["method"]) for s in result["config"]["summary"]]
    assert found == [("one", "bp"), ("one", "own"), ("two", "bp")]
    assert done.out.count("test accuracy, % at epoch ") == 2
    assert done.last == result["headline"]
    assert (out / "report.html").read_text().count("A tiny paper") >= 2
    assert (out / "runs" / "one-own-0" / "curve.jsonl").read_text().count("\n") == 4
    refused = command("reproduce", "tiny", "--epochs", 5, "--out", out)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    alone = command("reproduce", "tiny", "--methods", "swept", "--seed", 0, "--out", out)
    assert alone.code == 0, alone.err
    assert "swept 0: " in alone.last


@pytest.mark.usefixtures("tiny", "bare")
def test_without_matplotlib_the_pictures_are_named(command, tmp_path):
    done = command("reproduce", "tiny", "--methods", "own", "--seed", 1, "--out", tmp_path)
    assert done.code == 0, done.err
    assert "one-curves.png" in done.out
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dcf",), "Did you mean 'dfc'"),
        (("tiny", "--methods", "owns"), "Did you mean 'own'"),
        (("tiny", "--parts", "never"), "part of tiny at --preset quick"),
        (("tiny", "--parts", "two", "--methods", "own"), "method of tiny"),
        (("tiny", "--seeds", "a"), "numbers with commas"),
        (("tiny", "--seeds", "0", "--seed", "0"), "one of them"),
        (("tiny", "--workers", "0"), "--workers counts from 1"),
        (("tiny", "--images", "3"), "--images from 8"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(arguments, message, command, tmp_path):
    done = command("reproduce", *arguments, "--out", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_control_under_a_small_nudge_learns_in_the_direction_of_the_gradient():
    """With the transposed weights as feedback; rate 1 / nudge gives it the size of a gradient."""
    options = {"lr": 1e-3}
    setup = Setup((1, 4, 4), 10, 0, SIZES, options)
    made = controlled(setup, FeedbackControl(nudge=1e-3, leak=1.0), 1e3)
    x, y = torch.randn(8, 1, 4, 4, generator=seeded()), torch.arange(8)
    made.learner.assign_grads(x, y)
    own = torch.cat([p.grad.flatten() for p in made.learner.network.parameters()])
    loss = nn.functional.cross_entropy(made.learner(x), y)
    wanted = torch.autograd.grad(loss, list(made.learner.network.parameters()))
    flat = torch.cat([g.flatten() for g in wanted])
    assert float(nn.functional.cosine_similarity(own, flat, dim=0)) > 0.9
    assert 0.1 < float(own.norm() / flat.norm()) < 1.0
    energies = made.probes["control_energy"](made.learner, x, y)
    assert 0 < energies < 1e-3
    assert made.probes["gradient_angle"](made.learner, x, y) < 45


@pytest.mark.skipif(
    "METAPLASTIC_DATA" not in os.environ, reason="needs MNIST: METAPLASTIC_DATA is unset"
)
def test_jobs_run_in_processes_too(tmp_path):
    sizes = Sizes(images=128, epochs=1, seeds=(0,), test=100, validation=100)
    wanted = chosen(PAPERS["dfc"], "smoke", ["bp", "dfc-ssa"])
    only = wanted["mnist"]
    assert isinstance(only, ChosenImages)
    jobs = make_jobs({"mnist": replace(only, sizes=sizes)}, tmp_path, "cpu")
    with make_display(list(jobs)) as display:
        done = run_jobs(work, jobs, 2, display)
    assert [o.diverged for o in done.values()] == [None, None]
    outcome = done["mnist-dfc-ssa-0"]
    assert isinstance(outcome, Outcome)
    assert outcome.along("row_space_share")[0] < 0.5
