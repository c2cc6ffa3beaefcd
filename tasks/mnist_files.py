"""Reading MNIST's four official idx files, gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from metaplastic.errors import DataError, MissingDataError

Part = Literal["train", "t10k"]

SIDE = 28
"""Height and width of an image."""
OFFICIAL = (
    "Place the official files (train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each with or without .gz) in a folder "
    "'MNIST/raw', where torchvision keeps them too, and set METAPLASTIC_DATA to the folder above "
    "'MNIST'."
)
_REMEDY = "the file or its download is damaged; download the official file again."


def find(folder: Path, name: str) -> Path:
    """Return the file ``name`` in ``folder``, or ``name.gz``; else MissingDataError."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise MissingDataError(f"neither {name} nor {name}.gz is in {folder}. {OFFICIAL}")


def find_part(folder: Path, part: Part) -> tuple[Path, Path]:
    """Return the files with the images and the labels of one part; else MissingDataError."""
    return find(folder, f"{part}-images-idx3-ubyte"), find(folder, f"{part}-labels-idx1-ubyte")


def read_part(folder: Path, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Read one part of the data set, in the order of its files.

    Returns images (n, 28, 28) uint8 with ink 255 on 0, and labels (n,) uint8, the digit.

    Raises MissingDataError for a file that is not there, and DataError for one that is damaged,
    no idx file of this kind, or does not fit the other.
    """
    image_file, label_file = find_part(folder, part)
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(
            f"{image_file} holds images of {images.shape[1]} x {images.shape[2]} pixels and MNIST "
            f"has {SIDE} x {SIDE}: {_REMEDY}"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{image_file} holds {len(images)} images and {label_file} {len(labels)} labels: take "
            "both from one download."
        )
    if labels.size and labels.max() > 9:
        where = int((labels > 9).argmax())
        raise DataError(
            f"{label_file} holds the label {labels[where]} at index {where}; digits are 0..9: "
            f"{_REMEDY}"
        )
    return images, labels


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of bytes with ``dimensions`` axes as a read-only uint8 array.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes; their lengths as
    big-endian 32-bit integers; then the bytes, last axis fastest. Raises DataError for anything
    else, and for fewer or more bytes than the lengths say.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): {_REMEDY}") from error
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"{path} begins with the bytes {content[:4].hex(' ') or '(none)'}; an idx file of "
            f"bytes with {dimensions} axes begins with {magic.hex(' ')}: {_REMEDY}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path} ends within its header of {start} bytes: {_REMEDY}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} has {len(content) - start} bytes after its header, which announces "
            f"{' x '.join(map(str, shape))} = {math.prod(shape)}: {_REMEDY}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
