"""Omniglot (Lake et al. 2015): handwritten characters, read from the user's own copy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from metaplastic.episodes import Order
from metaplastic.errors import ConfigurationError, MissingDataError, UnknownNameError
from metaplastic.sampling import LabelledPool
from tasks.base import PoolTask, Split
from tasks.folders import data_folder
from tasks.omniglot_files import OFFICIAL, find, read_characters

Variant = Literal["small", "full"]

ARCHIVES: dict[Variant, dict[Split, str]] = {
    "full": {
        "train": "images_background",
        "validation": "images_background",
        "test": "images_evaluation",
    },
    "small": dict.fromkeys(("train", "validation", "test"), "images_background_small1"),
}
"""Which official archive each split is read from."""


class Omniglot(PoolTask):
    """Classification of handwritten characters; images (1, size, size), ink 1 on 0.

    ``root`` holds the folder ``omniglot`` (or is that folder) with the official archives, as zips
    or unpacked; without it the environment variable METAPLASTIC_DATA says where. ``variant`` is
    ``"full"`` (background and evaluation sets: 772 training, 192 validation and 659 test
    characters), ``"small"`` (small background set 1: 88, 22 and 26) or None: full if its
    background set is there, else small; ``self.variant`` says which it became.

    The splits are the checked-in lists ``tasks/splits/omniglot_*.txt``: validation is every fifth
    character of the training alphabets; test is the evaluation set, or Latin of the small one. In
    training each character turned by 0, 90, 180 and 270 degrees counts as four classes.

    Raises MissingDataError where nothing is found, DataError for damaged files or characters that
    are missing (when the split is first used), and ConfigurationError for another size.
    """

    def __init__(
        self,
        order: Order,
        ways: int = 5,
        shots: int = 5,
        queries: int = 5,
        size: int = 28,
        root: str | os.PathLike[str] | None = None,
        variant: Variant | None = None,
        batch: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 8 <= size <= 105:
            raise ConfigurationError(f"size must be 8..105 pixels, got {size!r}.")
        if variant is not None and variant not in ARCHIVES:
            raise UnknownNameError("Omniglot variant", variant, ARCHIVES)
        super().__init__(
            "omniglot",
            (1, size, size),
            order=order,
            ways=ways,
            shots=shots,
            queries=queries,
            batch=batch,
            device=device,
        )
        self.size = size
        self.folder = data_folder(root, "Omniglot", "omniglot", OFFICIAL)
        self.variant: Variant = variant or self._present()
        for archive in sorted(set(ARCHIVES[self.variant].values())):
            find(self.folder, archive)

    def load(self, split: Split) -> LabelledPool:
        """Decode the characters of ``split``, labelled by their place in its list."""
        names = split_characters(self.variant, split)
        source = find(self.folder, ARCHIVES[self.variant][split])
        images, labels = read_characters(source, names, self.size)
        return LabelledPool(images.to(self.device), labels, rotations=split == "train")

    def _present(self) -> Variant:
        """Return the full set if its background archive is there, else the small one."""
        try:
            find(self.folder, "images_background")
        except MissingDataError:
            return "small"
        return "full"


def split_characters(variant: Variant, split: Split) -> list[str]:
    """Return the characters of a split, ``Alphabet/characterNN``."""
    path = Path(__file__).parent / "splits" / f"omniglot_{variant}_{split}.txt"
    return path.read_text(encoding="utf-8").split()
