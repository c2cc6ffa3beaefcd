"""A PostgreSQL server of the test's own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def find(program: str) -> str | None:
    """The path of one of the server's programs."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(program, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


def account() -> str | None:
    """Whom the server runs as where we are root, which it refuses; else None."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database; the server ends with the context."""
    user = account()
    with TemporaryDirectory(prefix="postgres-", dir="/tmp") as folder, socket.socket() as probe:
        if user is not None:
            shutil.chown(folder, user)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        data, log = f"{folder}/data", f"{folder}/log"

        def run(program: str, *arguments: str) -> None:
            command = [str(find(program)), "-D", data, *arguments]
            null = subprocess.DEVNULL  # the server would keep a pipe open
            subprocess.run(
                command, check=True, user=user, cwd=folder, timeout=60, stdout=null, stderr=null
            )

        run("initdb", "--auth=trust", "--username=tester", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", "-w", "-l", log, "-o", options)
        try:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "stop", "-m", "immediate")
