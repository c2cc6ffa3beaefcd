"""Images for standalone training: made-up archives, what is refused, and the real ones."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from metaplastic.errors import (
    ConfigurationError,
    DataError,
    MissingDataError,
    UnknownNameError,
)
from tasks import load_images
from tasks.cifar import ARCHIVE, read_cifar
from tests.tasks.test_mnist import idx, made_up

CLASSES = [f"class{i}" for i in range(10)]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

real = pytest.mark.skipif(
    "METAPLASTIC_DATA" not in os.environ, reason="needs data: METAPLASTIC_DATA is unset"
)


def jpeg(colour: tuple[int, int, int], size: int = 32) -> bytes:
    Image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def colour(part: str, label: int, number: int) -> tuple[int, int, int]:
    """Grey, so that JPEG keeps it."""
    grey = 20 * label + number + (5 if part == "test" else 0)
    return grey, grey, grey


def archive(folder: Path, numbers: int = 3, classes: list[str] = CLASSES, **extra: bytes) -> Path:
    """Members in an order that is not that of the labels."""
    path = folder / ARCHIVE
    with zipfile.ZipFile(path, "w") as file:
        for number in reversed(range(numbers)):
            for label in reversed(range(len(classes))):
                for part in ("train", "test"):
                    name = f"{part}/{classes[label]}/{number:04}.jpg"
                    file.writestr(name, extra.get(name) or jpeg(colour(part, label, number)))
    return path


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("METAPLASTIC_DATA", raising=False)
    monkeypatch.setenv("METAPLASTIC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_mnist_is_cut_and_scaled(root):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 23), ("t10k", 9)):
        images, digits = made_up(count, seed=count)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(digits))
    pixels, digits = made_up(23, seed=23)
    found = load_images("mnist", root, validation=6)
    assert [len(p) for p in (found.train, found.validation, found.test)] == [17, 6, 9]
    assert found.train.x.shape == (17, 1, 28, 28)
    assert found.train.x.dtype == torch.float32
    assert found.train.y.dtype == torch.int64
    for i, j, k in ((0, 0, 0), (16, 27, 3)):
        wanted = (int(pixels[i, j, k]) / 255 - 0.1307) / 0.3081
        assert float(found.train.x[i, 0, j, k]) == pytest.approx(wanted, abs=1e-6)
    assert found.validation.y.tolist() == digits[17:].tolist()
    wanted = (torch.tensor(pixels[17:]).unsqueeze(1) / 255 - 0.1307) / 0.3081
    assert torch.allclose(found.validation.x, wanted, atol=1e-6)
    few = load_images("mnist", root, validation=6, images=5, scaling="unit")
    assert len(few.train) == 5
    assert torch.equal(few.validation.y, found.validation.y)
    assert float(few.train.x[2, 0, 3, 4]) == pytest.approx(int(pixels[2, 3, 4]) / 255)
    assert len(found.train.first(3)) == 3
    for wrong in ({"images": 18}, {"validation": 23, "images": None}):
        with pytest.raises(DataError, match="ask for fewer"):
            load_images("mnist", root, **{"validation": 6, **wrong})


def test_cifar_comes_in_the_order_of_numbers_then_classes(root):
    archive(root)
    arrays = read_cifar(root)
    for part in ("train", "test"):
        images, labels = arrays[part]
        assert images.shape == (30, 3, 32, 32)
        assert labels.tolist() == [*range(10)] * 3
        for i in range(30):
            wanted = colour(part, i % 10, i // 10)[0]
            assert abs(int(images[i].astype(int).mean()) - wanted) <= 1
    found = load_images("cifar10", root, validation=10)
    assert found.validation.y.bincount().tolist() == [1] * 10  # all classes alike
    grey = float(arrays["train"][0][7, 2, 5, 5]) / 255
    assert float(found.train.x[7, 2, 5, 5]) == pytest.approx((grey - MEAN[2]) / STD[2], abs=1e-5)


def test_decoded_images_are_kept_outside_of_the_data_and_by_content(root, monkeypatch):
    archive(root)
    before = sorted(root.rglob("*"))
    first = read_cifar(root)
    assert sorted(root.rglob("*")) == before
    (kept,) = (root.parent / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.cifar._decode", None)  # not needed any more
        again = read_cifar(root)
    assert np.array_equal(again["train"][0], first["train"][0])
    archive(root, **{"train/class0/0000.jpg": jpeg((200, 200, 200))})
    assert int(read_cifar(root)["train"][0][0].mean()) == 200  # another archive
    kept.write_bytes(kept.read_bytes()[:100])
    archive(root)
    assert np.array_equal(read_cifar(root)["train"][0], first["train"][0])
    monkeypatch.setenv("METAPLASTIC_CACHE", str(root / ARCHIVE))  # no folder can be made there
    assert np.array_equal(read_cifar(root)["test"][0], first["test"][0])


def test_what_is_missing_or_damaged_is_said(root):
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        load_images("cifar", root)
    for name in ("mnist", "cifar10"):
        with pytest.raises(MissingDataError, match="METAPLASTIC_DATA"):
            load_images(name)
        with pytest.raises(MissingDataError, match=str(root)):
            load_images(name, root)
    with pytest.raises(ConfigurationError, match="scaling"):
        load_images("mnist", root, scaling="none")
    with pytest.raises(ConfigurationError, match="count from 1"):
        load_images("mnist", root, images=0)
    archive(root, classes=CLASSES[:9])
    with pytest.raises(DataError, match="9 classes"):
        read_cifar(root)
    archive(root, **{"test/class3/0001.jpg": b"no image"})
    with pytest.raises(DataError, match=r"test/class3/0001\.jpg"):
        read_cifar(root)
    archive(root, **{"test/class3/0001.jpg": jpeg((1, 1, 1), 16)})
    with pytest.raises(DataError, match="16 x 16"):
        read_cifar(root)
    (root / ARCHIVE).write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="damaged"):
        read_cifar(root)


@real
def test_the_real_mnist_is_standardised():
    found = load_images("mnist")
    assert [len(p) for p in (found.train, found.validation, found.test)] == [55_000, 5000, 10_000]
    assert abs(float(found.train.x.mean())) < 1e-2
    assert abs(float(found.train.x.std()) - 1) < 1e-2
    assert found.classes == int(found.test.y.max()) + 1
