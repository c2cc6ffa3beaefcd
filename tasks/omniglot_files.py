"""Reading Omniglot's official archives, zipped or unpacked, into small grey images."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError, DataError, MissingDataError

OFFICIAL = (
    "Download the official files (repository 'omniglot' of Brenden Lake on GitHub, folder "
    "'python': images_background.zip and images_evaluation.zip, or images_background_small1.zip "
    "alone) into a folder 'omniglot', and set METAPLASTIC_DATA to the folder above it."
)
_REMEDY = "the file or its download is incomplete; download the official archive again."


def find(folder: Path, archive: str) -> Path:
    """Return ``archive.zip`` in ``folder``, or the folder it unpacks to; else MissingDataError."""
    for path in (folder / f"{archive}.zip", folder / archive):
        if path.exists():
            return path
    raise MissingDataError(
        f"neither {archive}.zip nor the unpacked folder {archive} is in {folder}. {OFFICIAL}"
    )


def read_characters(source: Path, names: Sequence[str], size: int) -> tuple[Tensor, Tensor]:
    """Decode all drawings of some characters.

    ``names`` are ``Alphabet/characterNN``. Returns images (n, 1, size, size) uint8 with ink 255,
    and labels (n,), the character's place in ``names``; drawings in the order of their file names.

    Raises DataError for a damaged archive or image, and for characters that are not there.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigurationError(
            "reading Omniglot needs Pillow, which is not installed: pip install pillow."
        ) from error

    place = {name: i for i, name in enumerate(names)}
    images: list[np.ndarray] = []
    labels: list[int] = []
    for path, content in _drawings(source, place):
        try:
            drawing = Image.open(io.BytesIO(content)).convert("L")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"{path} in {source} is not a readable image ({error}): {_REMEDY}"
            ) from error
        # Pillow's bilinear filter averages over what a pixel covers when it shrinks.
        small = drawing.resize((size, size), Image.Resampling.BILINEAR)
        images.append(255 - np.asarray(small))
        labels.append(place[_character(path)])
    read = set(labels)
    missing = [name for name in names if place[name] not in read]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing)} of the {len(names)} characters of this split, the "
            f"first {missing[0]}: {_REMEDY}"
        )
    return torch.from_numpy(np.stack(images)).unsqueeze(1), torch.tensor(labels)


def _character(path: str) -> str:
    """``.../Alphabet/characterNN/drawing.png`` -> ``Alphabet/characterNN``."""
    return "/".join(PurePosixPath(path).parts[-3:-1])


def _drawings(source: Path, wanted: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Path and content of every drawing of the wanted characters, ordered by path."""
    if source.is_dir():
        paths = sorted(path.relative_to(source).as_posix() for path in source.glob("*/*/*.png"))
        for path in paths:
            if _character(path) in wanted:
                yield path, (source / path).read_bytes()
        return
    path = ""
    try:
        with zipfile.ZipFile(source) as archive:
            for path in sorted(archive.namelist()):
                parts = PurePosixPath(path).parts
                # Exactly archive/Alphabet/character/drawing: some tools zip their own clutter too.
                drawing = len(parts) == 4 and parts[0] == source.stem and path.endswith(".png")
                if drawing and _character(path) in wanted:
                    yield path, archive.read(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise DataError(
            f"{source} cannot be read{f' at {path}' if path else ''} ({error}): {_REMEDY}"
        ) from error
