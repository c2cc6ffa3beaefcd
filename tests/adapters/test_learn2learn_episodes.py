"""Learn2learn's own task sets, turned into Episodes."""

import subprocess
import sys

import pytest
import torch
from torch.utils.data import TensorDataset

from metaplastic.adapters.learn2learn import episodes_from_taskset
from metaplastic.errors import (
    ConfigurationError,
    DataError,
    LabelError,
    ShapeError,
    UnknownNameError,
)

CLASSES, PER_CLASS = 6, 7


class Listed:
    """A task set that gives what it is told, so that the order is known."""

    def __init__(self, *labels: list[int]) -> None:
        self.labels = iter(labels)

    def sample(self):
        labels = torch.tensor(next(self.labels))
        x = torch.stack((labels.flatten().double(), torch.arange(labels.numel()).double()), 1)
        return x, labels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions(x: torch.Tensor) -> list[int]:
    return x[..., 1].flatten().int().tolist()


@pytest.fixture(scope="module")
def taskset():
    l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS) + 100
    x = torch.stack((labels.float(), torch.arange(len(labels)).float()), 1)
    dataset = l2l.data.MetaDataset(TensorDataset(x, labels))
    transforms = l2l.data.transforms
    return lambda ways, samples, remap: l2l.data.Taskset(
        dataset,
        task_transforms=[
            transforms.NWays(dataset, n=ways),
            transforms.KShots(dataset, k=samples),
            transforms.LoadData(dataset),
            *([transforms.RemapLabels(dataset)] if remap else []),
        ],
    )


@pytest.mark.parametrize("remap", [True, False], ids=["remapped", "raw labels"])
@pytest.mark.parametrize("order", ["continual", "iid", "given"])
def test_real_tasksets_become_few_shot_episodes(taskset, order, remap):
    drawn = episodes_from_taskset(
        taskset(4, 5, remap), 3, ways=4, shots=2, order=order, generator=seeded()
    )
    assert drawn.support_x.shape == (3, 8, 1, 2)
    assert drawn.query_x.shape == (3, 12, 2)
    for e in range(3):
        x = torch.cat((drawn.support_x[e, :, 0], drawn.query_x[e]))
        y = torch.cat((drawn.support_y[e, :, 0], drawn.query_y[e]))
        assert len(x[:, 1].unique()) == 20
        # One class of the data set behind each label, another for each.
        pairs = {(int(label), float(c)) for label, c in zip(y, x[:, 0], strict=True)}
        assert len(pairs) == 4
        assert sorted(label for label, _ in pairs) == [0, 1, 2, 3]
        assert len({c for _, c in pairs}) == 4
        assert drawn.support_y[e].flatten().bincount().tolist() == [2] * 4
        assert drawn.query_y[e].bincount().tolist() == [3] * 4
        if order == "continual":
            assert drawn.support_y[e].flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
            assert drawn.support_task[e].tolist() == drawn.support_y[e].flatten().tolist()
            assert drawn.query_task[e].tolist() == drawn.query_y[e].tolist()
        else:
            assert drawn.support_task is None
            assert drawn.query_task is None


@pytest.mark.parametrize(
    ("order", "support", "labels"),
    [("given", [0, 1, 2, 4], [1, 0, 1, 0]), ("continual", [1, 4, 0, 2], [0, 0, 1, 1])],
)
def test_the_first_examples_of_each_class_are_support(order, support, labels):
    taskset = Listed([1, 0, 1, 1, 0, 0, 1])
    drawn = episodes_from_taskset(taskset, 1, ways=2, shots=2, order=order)
    assert positions(drawn.support_x) == support
    assert drawn.support_y.flatten().tolist() == labels
    assert positions(drawn.query_x) == [3, 5, 6]
    assert drawn.query_y.flatten().tolist() == [1, 0, 1]


def test_labels_out_of_range_are_numbered_as_they_appear():
    drawn = episodes_from_taskset(Listed([7, 7, -2, 3, 3, -2]), 1, ways=3, shots=1, order="given")
    assert drawn.support_y.flatten().tolist() == [0, 1, 2]
    assert drawn.query_y.flatten().tolist() == [0, 2, 1]
    assert drawn.support_x[0, :, 0, 0].tolist() == [7, -2, 3]


def test_iid_shuffles_the_support_by_the_generator():
    labels = [0, 1, 2, 3] * 4

    def draw(seed):
        return episodes_from_taskset(
            Listed(labels, labels), 2, ways=4, shots=3, order="iid", generator=seeded(seed)
        )

    one, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(one.support_x, again.support_x)
    assert not torch.equal(one.support_x, other.support_x)
    assert not torch.equal(one.support_x[0], one.support_x[1])
    assert sorted(positions(one.support_x[0])) == list(range(12))
    assert torch.equal(one.support_y.squeeze(2), one.support_x[:, :, 0, 0].long())
    assert positions(one.query_x[0]) == [12, 13, 14, 15]


@pytest.mark.parametrize(
    ("labels", "options", "error", "words"),
    [
        ([[0, 0, 1, 1]], {"ways": 3}, DataError, "2 classes and ways=3"),
        ([[0, 0, 1, 1, 2, 2]], {}, DataError, "3 classes and ways=2"),
        ([[0, 0, 1]], {}, DataError, "class 1 of task 0 has 1 examples; shots=1"),
        ([[0, 0, 1, 1], [0, 0, 0, 1, 1]], {"count": 2}, DataError, "task 1 has queries"),
        ([[0.0, 0.0, 1.0, 1.0]], {}, LabelError, "float"),
        ([[[0, 1], [1, 0]]], {}, ShapeError, "labels"),
        ([[0, 0, 1, 1]], {"order": "iid"}, ConfigurationError, "generator"),
        ([[0, 0, 1, 1]], {"shots": 0}, ConfigurationError, "shots"),
        ([[0, 0, 1, 1]], {"order": "gven"}, UnknownNameError, "Did you mean 'given'"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(labels, options, error, words):
    wanted = {"count": 1, "ways": 2, "shots": 1, **options}
    with pytest.raises(error, match=words):
        episodes_from_taskset(Listed(*labels), **wanted)


def test_the_adapter_does_not_import_learn2learn():
    code = "import sys, metaplastic.adapters.learn2learn; sys.exit('learn2learn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
