"""Tasks by name."""

import pytest

from metaplastic.errors import ConfigurationError, UnknownNameError
from tasks import TASKS, make_task


def test_every_task_is_named_as_in_the_table(tmp_path):
    (tmp_path / "omniglot").mkdir()
    (tmp_path / "omniglot" / "images_background_small1.zip").touch()
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / "MNIST" / "raw" / f"{part}-{kind}-ubyte").touch()
    for name in TASKS:
        options = {"root": tmp_path} if name.startswith(("omniglot", "mnist")) else {}
        assert make_task(name, **options).name == name


def test_options_reach_the_task():
    assert make_task("glyphs-iid", ways=3).outputs == 3
    assert make_task("sinusoid-continual", functions=6).input_shape == (7,)


def test_unknown_tasks_are_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="Did you mean 'sinusoid-continual'"):
        make_task("sinusoid-continuous")


def test_options_of_another_task_are_refused_and_the_accepted_ones_named():
    with pytest.raises(ConfigurationError, match=r"no option 'ways'.*functions, batches") as caught:
        make_task("sinusoid-iid", ways=5)
    assert "order" not in str(caught.value)
