"""Where studies are kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend

from metaplastic.errors import ConfigurationError

INTERVAL, GRACE = 10, 60
"""Seconds between two signs of life of a running trial, and after which it counts as dead."""
JOURNAL = (".journal", ".log")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that heartbeats and some samplers are experimental in Optuna."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def open_storage(
    place: str | Path,
    *,
    interval: int = INTERVAL,
    grace: int = GRACE,
    retries: int | None = 3,
) -> BaseStorage:
    """A storage whose trials show signs of life, so that those of a dead worker are run again.

    Args:
        place: a database URL (``sqlite:///...``, ``postgresql://...``), the name of a file for
            SQLite, ``grpc://host:port`` of a proxy, or a file ending in ``.journal`` or ``.log``,
            which has no signs of life in Optuna 5: a killed trial stays as running for ever and
            takes the place of one.
        interval: seconds between two signs of life.
        grace: seconds without one after which a trial counts as dead.
        retries: how often its parameters are run again, or None for any number.

    Raises:
        ConfigurationError: for a place that cannot be opened, or times that do not fit.
    """
    if not 0 < interval < grace:
        raise ConfigurationError(
            f"the interval must be positive and below the grace time; got {interval} and {grace}."
        )
    text = str(place)
    try:
        if text.startswith("grpc://"):
            with quiet():
                return _proxy(text)
        if "://" not in text and text.endswith(JOURNAL):
            return optuna.storages.JournalStorage(JournalFileBackend(text))
        url = text if "://" in text else f"sqlite:///{text}"
        with quiet():
            return RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {},
                heartbeat_interval=interval,
                grace_period=grace,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(retries),
            )
    except Exception as reason:
        shown = text.split("://")[0] + "://..." if "@" in text else text
        raise ConfigurationError(
            f"the storage {shown} cannot be opened ({type(reason).__name__}: {reason}): give a "
            "file for SQLite, a database URL, or grpc://host:port."
        ) from reason


def has_heartbeat(storage: BaseStorage) -> bool:
    """Whether trials of dead workers are found and run again."""
    return isinstance(storage, RDBStorage) and storage.get_heartbeat_interval() is not None


def _proxy(text: str) -> BaseStorage:
    parts = urlsplit(text)
    return optuna.storages.GrpcStorageProxy(
        host=parts.hostname or "localhost", port=parts.port or 13000
    )
