"""Reading CIFAR-10 (Krizhevsky 2009) from an archive of JPEGs, ``train|test/<class>/NNNN.jpg``."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np

from metaplastic.errors import ConfigurationError, DataError, MissingDataError

Part = Literal["train", "test"]
Arrays = dict[Part, tuple[np.ndarray, np.ndarray]]

ARCHIVE = "cifar10-jpg.zip"
SIDE, CLASSES = 32, 10
OFFICIAL = (
    f"Place the archive {ARCHIVE}, with members train/<class>/NNNN.jpg and test/<class>/NNNN.jpg, "
    "in a folder and set METAPLASTIC_DATA to it."
)
_REMEDY = "the archive or its download is damaged; fetch it again."


def read_cifar(folder: Path) -> Arrays:
    """Both parts of the data set: images (n, 3, 32, 32) uint8 and labels (n,) uint8, the place of
    the class in alphabetical order. Images come in the order of their numbers, and of their classes
    where these are equal, so that every stretch holds all classes alike.

    Decoding takes some tens of seconds; the arrays are kept in the folder METAPLASTIC_CACHE, or
    ``~/.cache/metaplastic``, for the next time.

    Raises MissingDataError where the archive is not there, DataError where it is damaged, and
    ConfigurationError without Pillow.
    """
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise MissingDataError(f"{ARCHIVE} is not in {folder}. {OFFICIAL}")
    try:
        with zipfile.ZipFile(archive) as file:
            members = {info.filename: info.CRC for info in file.infolist() if not info.is_dir()}
            kept = _cached(members)
            if kept is not None:
                return kept
            arrays: Arrays = {part: _decode(file, members, part) for part in get_args(Part)}
    except (zipfile.BadZipFile, OSError, zlib.error) as reason:
        raise DataError(f"{archive} cannot be read ({reason}): {_REMEDY}") from reason
    _keep(members, arrays)
    return arrays


def cache_folder() -> Path:
    """Where decoded data is kept between runs."""
    given = os.environ.get("METAPLASTIC_CACHE")
    return Path(given or "~/.cache/metaplastic").expanduser()


def _decode(
    file: zipfile.ZipFile, members: dict[str, int], part: Part
) -> tuple[np.ndarray, np.ndarray]:
    try:
        from PIL import Image
    except ImportError as reason:
        raise ConfigurationError(
            "reading CIFAR-10 needs Pillow, which is not installed: pip install pillow."
        ) from reason

    paths = [PurePosixPath(m) for m in members if m.startswith(f"{part}/") and m.endswith(".jpg")]
    classes = sorted({path.parent.name for path in paths})
    if len(classes) != CLASSES:
        raise DataError(
            f"{file.filename} holds {len(classes)} classes in {part}/ and CIFAR-10 has {CLASSES}: "
            f"{_REMEDY}"
        )
    paths.sort(key=lambda path: (path.name, path.parent.name))
    images = np.empty((len(paths), 3, SIDE, SIDE), np.uint8)
    for i, path in enumerate(paths):
        try:
            image = Image.open(io.BytesIO(file.read(str(path)))).convert("RGB")
        except (OSError, SyntaxError, ValueError) as reason:
            raise DataError(
                f"{path} in {file.filename} is not a readable image ({reason}): {_REMEDY}"
            ) from reason
        if image.size != (SIDE, SIDE):
            raise DataError(
                f"{path} in {file.filename} has {image.size[0]} x {image.size[1]} pixels and "
                f"CIFAR-10 has {SIDE} x {SIDE}: {_REMEDY}"
            )
        images[i] = np.asarray(image).transpose(2, 0, 1)
    place = {name: i for i, name in enumerate(classes)}
    return images, np.array([place[path.parent.name] for path in paths], np.uint8)


def _cache_file(members: dict[str, int]) -> Path:
    """Named after the content of the archive, so that another one is decoded anew."""
    content = repr(sorted(members.items())).encode()
    return cache_folder() / f"cifar10-{hashlib.sha256(content).hexdigest()[:16]}.npz"


def _cached(members: dict[str, int]) -> Arrays | None:
    try:
        with _cache_file(members).open("rb") as file, np.load(file) as kept:
            return {part: (kept[f"{part}_x"], kept[f"{part}_y"]) for part in get_args(Part)}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # not decoded yet, or cut off


def _keep(members: dict[str, int], arrays: Arrays) -> None:
    path = _cache_file(members)
    named = {
        f"{part}_{k}": a for part, pair in arrays.items() for k, a in zip("xy", pair, strict=True)
    }
    own = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):  # without a cache, the next run decodes again
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with own.open("wb") as file:
                np.savez(file, **named)
            os.replace(own, path)
        finally:
            own.unlink(missing_ok=True)
