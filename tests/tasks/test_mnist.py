"""MNIST: made-up idx files read back by slow loops, what is refused, and the real ones."""

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from metaplastic.episodes import Episodes
from metaplastic.errors import ConfigurationError, DataError, MissingDataError, UnknownNameError
from metaplastic.evaluation import evaluate
from metaplastic.recipes import recipe
from studies.networks import build_network
from tasks import SPLITS, Mnist
from tasks.mnist_files import read_idx

TRAIN, TEST = 197, 71
Named = dict[bytes, tuple[str, int, int]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def idx(array: np.ndarray) -> bytes:
    """The content of an idx file, written byte by byte."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


def made_up(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise images, so that sorted pixels name an image; every digit is in every fifth image."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28)).astype(np.uint8)
    place = np.arange(count)
    return images, ((place // 5 + 3 * (place % 5)) % 10).astype(np.uint8)


PARTS = {"train": made_up(TRAIN, 0), "t10k": made_up(TEST, 1)}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """One part gzipped and one raw."""
    monkeypatch.delenv("METAPLASTIC_DATA", raising=False)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, (images, digits) in PARTS.items():
        for name, array in (("images-idx3", images), ("labels-idx1", digits)):
            path = folder / f"{part}-{name}-ubyte"
            if part == "train":
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return tmp_path


@pytest.fixture(scope="module")
def named() -> Named:
    """Sorted pixels -> part, place in its file and digit."""
    return {
        np.sort(image.reshape(-1)).tobytes(): (part, i, int(digits[i]))
        for part, (images, digits) in PARTS.items()
        for i, image in enumerate(images)
    }


def small(root: Path | None, order="continual", **options) -> Mnist:
    return Mnist(order, **{"shots": 2, "queries": 1, "root": root, **options})


def grey(image: torch.Tensor) -> np.ndarray:
    """The 784 bytes that were drawn."""
    return (image * 255).round().to(torch.uint8).numpy().reshape(-1)


def find(named: Named, image: torch.Tensor) -> tuple[str, int, int]:
    return named[np.sort(grey(image)).tobytes()]


def shown(named: Named, drawn: Episodes, e: int) -> list[tuple[str, int, int, int, int]]:
    """Part, place, digit, label and task of the support, then of the queries."""
    assert drawn.support_task is not None
    assert drawn.query_task is not None
    found = []
    for t in range(drawn.presentations):
        for b in range(drawn.support_y.shape[2]):
            label, task = int(drawn.support_y[e, t, b]), int(drawn.support_task[e, t])
            found.append((*find(named, drawn.support_x[e, t, b]), label, task))
    for q in range(drawn.query_y.shape[1]):
        label, task = int(drawn.query_y[e, q]), int(drawn.query_task[e, q])
        found.append((*find(named, drawn.query_x[e, q]), label, task))
    return found


@pytest.mark.parametrize(
    ("stream", "tasks", "ways", "shots", "queries", "batch"),
    [
        ("split", 5, 10, 2, 1, 1),
        ("split", 2, 10, 3, 2, 5),
        ("split", 1, 10, 1, 3, 2),
        ("split", 3, 9, 4, 1, 4),
        ("split", 7, 7, 1, 1, 1),
        ("permuted", 3, 10, 1, 1, 5),
        ("permuted", 1, 4, 3, 2, 3),
        ("permuted", 2, 3, 3, 2, 1),
    ],
)
def test_every_image_is_where_its_task_and_label_say(
    root, named, stream, tasks, ways, shots, queries, batch
):
    task = small(
        root, stream=stream, tasks=tasks, ways=ways, shots=shots, queries=queries, batch=batch
    )
    drawn = task.episodes("train", 3, seeded(2))
    own = ways // tasks if stream == "split" else ways
    assert drawn.support_x.shape == (3, tasks * own * shots // batch, batch, 1, 28, 28)
    assert drawn.query_x.shape == (3, tasks * own * queries, 1, 28, 28)
    orders = set()
    for e in range(3):
        found = shown(named, drawn, e)
        support, query = found[: tasks * own * shots], found[tasks * own * shots :]
        # Every image once; task after task; every label of a task as often as it should be.
        assert len({place for _, place, *_ in found}) == len(found)
        for part, count in ((support, shots), (query, queries)):
            for k in range(tasks):
                block = part[k * own * count : (k + 1) * own * count]
                labels = range(k * own, (k + 1) * own) if stream == "split" else range(ways)
                assert {image[4] for image in block} == {k}
                assert sorted(i[3] for i in block) == [y for y in labels for _ in range(count)]
        # One digit behind each label, in all tasks and in the queries.
        digits = dict((label, digit) for _, _, digit, label, _ in found)
        assert all(digits[label] == digit for _, _, digit, label, _ in found)
        assert len(set(digits.values())) == ways
        orders.add(tuple(digits[label] for label in range(ways)))
    assert len(orders) == 3


def test_unpermuted_images_are_shown_as_they_are_in_the_files(root, named):
    for split in SPLITS:
        drawn = small(root).episodes(split, 4, seeded())
        for image in (*drawn.support_x.flatten(0, 2), *drawn.query_x.flatten(0, 1)):
            part, place, _ = find(named, image)
            expected = torch.from_numpy(PARTS[part][0][place]).float() / 255
            assert torch.equal(image[0], expected)


def test_no_image_is_in_two_splits_and_validation_is_every_fifth(root, named):
    seen = {}
    for split in SPLITS:
        drawn = small(root, shots=1).episodes(split, 200, seeded())
        seen[split] = {find(named, x)[:2] for x in drawn.support_x.flatten(0, 2)}
    assert seen["validation"] == {("train", i) for i in range(TRAIN) if i % 5 == 4}
    assert seen["train"] == {("train", i) for i in range(TRAIN) if i % 5 != 4}
    assert seen["test"] == {("t10k", i) for i in range(TEST)}


def test_a_task_has_one_permutation_of_its_own_in_support_and_queries(root, named):
    task = small(root, stream="permuted", tasks=2, shots=2, queries=1)
    drawn = task.episodes("train", 2, seeded())
    per_task = []
    for e in range(2):
        for k in range(2):
            # A pixel of a task is known by its greys in the task's thirty images.
            images = [*drawn.support_x[e, 20 * k : 20 * (k + 1), 0]]
            images += [*drawn.query_x[e, 10 * k : 10 * (k + 1)]]
            originals = [PARTS["train"][0][find(named, x)[1]].reshape(-1) for x in images]
            pixels = {tuple(column): p for p, column in enumerate(np.stack(originals, 1).tolist())}
            shown = np.stack([grey(x) for x in images], 1).tolist()
            permutation = [pixels[tuple(column)] for column in shown]
            assert sorted(permutation) == list(range(784))
            per_task.append(permutation)
    per_task.append(list(range(784)))
    for i, one in enumerate(per_task):
        for two in per_task[:i]:
            assert sum(a == b for a, b in zip(one, two, strict=True)) < 10


@pytest.mark.parametrize("stream", ["split", "permuted"])
def test_same_seed_same_episodes_and_the_order_only_shuffles(root, stream):
    continual = small(root, stream=stream, tasks=2).episodes("train", 3, seeded(1))
    again = small(root, stream=stream, tasks=2).episodes("train", 3, seeded(1))
    other = small(root, stream=stream, tasks=2).episodes("train", 3, seeded(2))
    iid = small(root, "iid", stream=stream, tasks=2, batch=4).episodes("train", 3, seeded(1))
    for name in ("support_x", "support_y", "query_x", "query_y", "support_task"):
        assert torch.equal(getattr(continual, name), getattr(again, name))
    assert not torch.equal(continual.support_x, other.support_x)
    assert not torch.equal(continual.query_x, other.query_x)
    assert torch.equal(continual.query_x, iid.query_x)
    assert torch.equal(continual.query_y, iid.query_y)
    assert iid.support_task is iid.query_task is None
    assert iid.support_y.shape == (3, continual.presentations // 4, 4)
    for e in range(3):
        both = [
            [(grey(x).tobytes(), int(y)) for x, y in zip(xs, ys, strict=True)]
            for xs, ys in (
                (d.support_x[e].flatten(0, 1), d.support_y[e].flatten()) for d in (continual, iid)
            )
        ]
        assert both[0] != both[1]
        assert sorted(both[0]) == sorted(both[1])


def test_images_of_a_task_come_in_random_order(root):
    drawn = small(root, tasks=1, shots=2).episodes("train", 5, seeded())
    orders = {tuple(labels) for labels in drawn.support_y[..., 0].tolist()}
    assert len(orders) == 5
    assert tuple(sorted(drawn.support_y[0, :, 0].tolist())) not in orders


def test_half_size_averages_four_pixels(root, named):
    one = small(root, stream="split").episodes("test", 1, seeded())
    half = small(root, stream="split", size=14).episodes("test", 1, seeded())
    assert half.query_x.shape == (1, 10, 1, 14, 14)
    for whole, shrunk in zip(one.query_x[0, :, 0], half.query_x[0, :, 0], strict=True):
        for row in range(14):
            for column in range(14):
                corner = whole[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert abs(float(shrunk[row, column] - corner.sum() / 4)) < 0.51 / 255
    permuted = small(root, stream="permuted", tasks=1, size=14).episodes("test", 1, seeded())
    assert permuted.support_x.shape == (1, 20, 1, 1, 14, 14)


def test_attributes_describe_the_network_that_fits_and_tasks_are_scored_apart(root):
    task = small(root, shots=1, size=14)
    assert (task.name, task.input_shape, task.outputs, task.chance) == (
        "mnist-continual",
        (1, 14, 14),
        10,
        0.1,
    )
    none = recipe("none")
    network = build_network(task, none, (8,), seeded())
    learner = none.build(network, task.objective, none.options, seeded())
    scores = evaluate(learner, task.episodes("validation", 3, seeded()))
    assert scores.task_accuracy is not None
    assert scores.task_accuracy.shape == (3, 5)
    # Nothing is plastic, so nothing is forgotten.
    assert scores.forgetting is not None
    assert scores.forgetting.tolist() == [0] * 3


def test_the_data_folder_and_the_folder_of_the_files_read_the_same(root, monkeypatch):
    expected = small(root).episodes("test", 2, seeded())
    monkeypatch.setenv("METAPLASTIC_DATA", str(root))
    for given in (None, root / "MNIST" / "raw", str(root)):
        drawn = small(given).episodes("test", 2, seeded())
        assert torch.equal(drawn.support_x, expected.support_x)


def test_missing_data_says_where_it_looked_and_what_to_do(root, tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"none was named.*METAPLASTIC_DATA.*torchvision"):
        small(None)
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(MissingDataError, match=r"neither t10k-labels-idx1-ubyte nor") as caught:
        small(root)
    assert str(root / "MNIST" / "raw") in str(caught.value)
    shutil.rmtree(root / "MNIST")
    monkeypatch.setenv("METAPLASTIC_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"train-images-idx3-ubyte\.gz"):
        small(None)


IMAGES, DIGITS = idx(PARTS["t10k"][0]), idx(PARTS["t10k"][1])


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("images-idx3", IMAGES[:-1], rf"{784 * TEST - 1} bytes .* 71 x 28 x 28 = {784 * TEST}"),
        ("images-idx3", IMAGES + b"\0", rf"{784 * TEST + 1} bytes after its header"),
        ("images-idx3", IMAGES[:9], "ends within its header of 16 bytes"),
        ("images-idx3", b"", r"begins with the bytes \(none\)"),
        ("images-idx3", DIGITS, "begins with the bytes 00 00 08 01; .* begins with 00 00 08 03"),
        ("labels-idx1", IMAGES, "begins with 00 00 08 01"),
        ("images-idx3", b"\0\0\x0d" + IMAGES[3:], "begins with the bytes 00 00 0d 03"),
        ("images-idx3", idx(np.zeros((TEST, 28, 27))), "images of 28 x 27 pixels"),
        ("labels-idx1", idx(np.zeros(TEST - 1)), rf"{TEST} images and .* {TEST - 1} labels"),
        ("labels-idx1", idx(np.arange(TEST)), "the label 10 at index 10"),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_files_are_named_with_the_remedy(root, kind, content, message, zipped):
    path = root / "MNIST" / "raw" / f"t10k-{kind}-ubyte"
    if zipped:
        path.unlink()
        path = path.with_name(f"{path.name}.gz")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=message) as caught:
        small(root).pool("test")
    assert str(path) in str(caught.value)
    assert "download" in str(caught.value)
    assert small(root).pool("validation").classes == 10


@pytest.mark.parametrize("damage", ["cut", "bits", "blocks", "text"])
def test_damaged_compression_is_named_with_the_remedy(root, damage):
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "bits":
        content = content[:5000] + bytes(50) + content[5050:]
    elif damage == "blocks":
        content = content[:10] + b"\xff" * 50 + content[60:]
    else:
        content = b"404: not found"
    path.write_bytes(content)
    with pytest.raises(DataError, match="download the official file again") as caught:
        small(root).pool("train")
    assert str(path) in str(caught.value)


def test_options_that_do_not_fit_are_refused(root):
    with pytest.raises(UnknownNameError, match="Did you mean 'permuted'"):
        small(root, stream="permute")
    with pytest.raises(ConfigurationError, match="tasks=3 does not divide the 10 digits"):
        small(root, tasks=3)
    with pytest.raises(ConfigurationError, match="tasks must be a positive integer, got 0"):
        small(root, tasks=0)
    with pytest.raises(ConfigurationError, match="ways=12, and there are 10 digits"):
        small(root, ways=12)
    with pytest.raises(ConfigurationError, match="28 or 14 pixels, got 20"):
        small(root, size=20)
    with pytest.raises(ConfigurationError, match=r"batch=3 does not divide the 4 .* each task"):
        small(root, batch=3)
    with pytest.raises(ConfigurationError, match=r"not divide the 20 .* each episode"):
        small(root, "iid", batch=3)
    assert small(root, stream="permuted", tasks=3, batch=5).tasks == 3


def test_more_images_than_a_digit_has_are_refused(root):
    fewest = int(np.bincount(PARTS["t10k"][1]).min())
    small(root, shots=fewest - 1).episodes("test", 1, seeded())
    too_many = rf"digit \d has {fewest} images in split 'test' and shots \+ queries = {fewest + 1} "
    with pytest.raises(DataError, match=too_many):
        small(root, shots=fewest).episodes("test", 1, seeded())
    with pytest.raises(DataError, match=r"tasks \* \(shots \+ queries\) = 9 distinct"):
        small(root, stream="permuted", tasks=3).episodes("test", 1, seeded())


RAW = Path(os.environ.get("METAPLASTIC_DATA", "")) / "MNIST" / "raw"


@pytest.mark.skipif(
    not any(RAW.glob("train-images-idx3-ubyte*")),
    reason="METAPLASTIC_DATA names no folder with MNIST/raw/train-images-idx3-ubyte",
)
def test_the_real_set_has_seventy_thousand_legible_digits():
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        for kind, axes in (("images-idx3", 3), ("labels-idx1", 1)):
            path = next(RAW.glob(f"{part}-{kind}-ubyte*"))
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            assert int.from_bytes(content[4:8], "big") == count
            array = read_idx(path, axes)
            assert len(array) == count
            if axes == 1:
                assert array[:5].tolist() == list(content[8:13])
                assert np.bincount(array).min() == {"train": 5421, "t10k": 892}[part]
    task = Mnist("continual", shots=15, queries=5)
    drawn = task.episodes("test", 20, seeded())
    ink = torch.cat((drawn.support_x[:, :, 0], drawn.query_x), 1)
    assert ((ink.mean((2, 3, 4)) > 0.01) & (ink.mean((2, 3, 4)) < 0.5)).all()
    distance = torch.cdist(drawn.query_x.flatten(2), drawn.support_x[:, :, 0].flatten(2))
    guess = drawn.support_y[..., 0].gather(1, distance.argmin(-1))
    assert 0.7 < (guess == drawn.query_y).double().mean() < 0.95
