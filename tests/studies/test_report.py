"""Reports: pictures, the self-contained page, and what is left of them without matplotlib."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from studies.figures import smooth
from studies.gather import gather
from studies.style import colours, spread
from studies.words import forgetting_text, score_text
from tests.studies.conftest import read


class Page(HTMLParser):
    """What a page shows and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: dict[str, bytes] = {}
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        for name in ("src", "href", "srcset", "data", "action"):
            if (value := values.get(name)) is not None:
                self.references.append(value)
        if tag == "img":
            kind, _, content = (values["src"] or "").partition(",")
            assert kind == "data:image/png;base64"
            self.images[values["alt"] or ""] = base64.b64decode(content)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A sinusoid learner and one of images; small, with all their pictures."""
    import studies

    found = []
    for task, learner in (("sinusoid-continual", "none"), ("glyphs-continual", "dfa")):
        out = tmp_path_factory.mktemp("run") / learner
        arguments = ["train", "--preset", "smoke", "--task", task, "--learner", learner]
        assert studies.main([*arguments, "--steps", "3", "--out", str(out)]) == 0
        found.append(out)
    return found


def test_the_page_carries_every_picture_and_refers_to_nothing_outside(runs, command, tmp_path):
    done = command("report", *runs, "--out", tmp_path)
    assert done.code == 0
    page = Page(tmp_path / "report.html")
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert page.images == files
    assert set(files) == {
        "sinusoid-continual-curve.png",
        "sinusoid-continual-age.png",
        "sinusoid-continual-functions.png",
        "glyphs-continual-curve.png",
        "glyphs-continual-age.png",
        "glyphs-continual-forgetting.png",
        "glyphs-continual-interference.png",
        "glyphs-continual-angles.png",
        "glyphs-continual-alignment.png",
    }
    assert all(content.startswith(b"\x89PNG") for content in files.values())
    assert all(reference.startswith("data:") for reference in page.references)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert "http" not in page.text
    result = read(tmp_path)
    assert result["headline"] in page.text
    assert done.last == result["headline"]
    for run in runs:
        (row,) = read(run)["rows"]
        assert row in result["rows"]
        assert score_text(row) in page.text


def test_reports_can_be_narrowed(runs, command, tmp_path):
    done = command("report", *runs, "--task", "glyphs-continual", "--out", tmp_path / "a")
    assert done.code == 0
    assert [row["learner"] for row in read(tmp_path / "a")["rows"]] == ["dfa"]
    assert "Known: glyphs" in command("report", *runs, "--task", "omniglot-iid").err
    assert "these have 20" in command("report", *runs, "--episodes", "21").err


def test_without_matplotlib_the_missing_pictures_are_named(runs, bare, command, tmp_path):
    done = command("report", *runs, "--out", tmp_path)
    assert done.code == 0
    assert list(tmp_path.glob("*.png")) == []
    page = Page(tmp_path / "report.html")
    assert page.images == {}
    for text in (done.out, page.text):
        assert "sinusoid-continual-functions.png" in text
        assert "glyphs-continual-age.png" in text


def test_runs_of_one_learner_are_told_apart(runs, command, tmp_path):
    again = tmp_path / "again"
    run = ("train", "--preset", "smoke", "--task", "sinusoid-continual", "--learner", "none")
    assert command(*run, "--steps", 3, "--seed", 4, "--out", again).code == 0
    assert [run.label for run in gather([*runs, again])] == [
        "none (seed 0)",
        "dfa",
        "none (seed 4)",
    ]


def test_fitted_functions_are_those_of_one_episode(runs):
    scores = gather(runs)[0].scores
    x, y, fit = (scores[f"function_{name}"] for name in ("x", "y", "fit"))
    assert x.shape == y.shape == fit.shape
    assert len(x) == 3
    for k in range(3):
        assert (np.diff(x[k]) >= 0).all()
        # a sinusoid of frequency 1 is a combination of sin x and cos x, and the fit is not
        basis = np.stack((np.sin(x[k]), np.cos(x[k])), 1)
        for values, exact in ((y[k], True), (fit[k], False)):
            solution = np.linalg.lstsq(basis, values, rcond=None)[0]
            assert np.allclose(basis @ solution, values, atol=1e-3) == exact


def test_smoothing_is_a_centred_mean_that_leaves_gaps_out():
    values = np.random.default_rng(0).normal(size=60)
    values[[3, 30]] = np.nan
    for i, found in enumerate(smooth(values)):
        near = values[max(0, i - 3) : i + 4]
        assert found == pytest.approx(near[np.isfinite(near)].mean())
    assert np.isnan(smooth(np.full(5, np.nan))).all()


def test_labels_are_moved_apart_as_little_as_needed():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    rng = np.random.default_rng(0)
    for _ in range(50):
        heights = sorted(rng.random(6).tolist())
        moved = spread(heights, 0.08)
        assert (np.diff(moved) >= 0.08 - 1e-9).all()
        assert sum(moved) == pytest.approx(sum(heights))


def test_learners_keep_their_colours_and_lines_do_not_share_one():
    assert colours(["flp", "oml"])[1] == colours(["oml"])[0]
    many = colours(["flp", "flp", "oml", "pepita", "dfc", "none", "dfa"])
    assert len(set(many)) == len(many)


def test_scores_are_written_with_the_digits_of_their_interval():
    row = {"loss": 0.45512, "accuracy": None, "ci95": 0.0518, "forgetting": -0.104}
    assert score_text(row) == "0.455 ± 0.052"
    assert forgetting_text(row) == "-0.10"
    assert score_text({**row, "loss": 12.34, "ci95": 1.4}) == "12.3 ± 1.4"
    assert score_text({**row, "accuracy": 0.8127, "ci95": 0.0123}) == "81.3 ± 1.2 %"
    assert score_text({**row, "loss": None}) == "diverged"
