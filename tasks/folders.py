"""Where the user's own copies of data sets are."""

from __future__ import annotations

import os
from pathlib import Path

from metaplastic.errors import MissingDataError


def data_folder(root: str | os.PathLike[str] | None, name: str, inside: str, official: str) -> Path:
    """The folder that holds the files of a data set.

    Args:
        root: the user's folder of data sets, or that folder itself; without it the environment
            variable METAPLASTIC_DATA says where.
        name: of the data set, for the message.
        inside: its folder in ``root``, such as ``MNIST/raw``; empty where the files lie there.
        official: what to do where it is missing.

    Raises MissingDataError where no folder was named.
    """
    given = root or os.environ.get("METAPLASTIC_DATA")
    if not given:
        raise MissingDataError(
            f"{name} is read from a folder on disk and none was named: pass root=, or set the "
            f"environment variable METAPLASTIC_DATA. {official}"
        )
    base = Path(given).expanduser()
    nested = base / inside
    return base if base.name == nested.name and not nested.is_dir() else nested
