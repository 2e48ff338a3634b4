"""A lock on a folder for one holder at a time. It is released if the holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mambaout.errors import WrongRequest

LOCK_FILE = ".lock"


class FolderHeld(WrongRequest):
    """Another process holds the folder. The message says which, and what to do."""


class CannotHold(WrongRequest):
    """The folder cannot be locked, because it is not writable."""


@contextmanager
def held(folder: Path, what: str, wait_seconds: float = 0) -> Iterator[None]:
    """Hold `folder` inside the context. It is made if missing; messages call it `what`.

    The kernel releases the lock of a dead process, so no lock is ever stale. Raises FolderHeld if
    the lock is still held after `wait_seconds`, CannotHold if the folder is not writable, and
    WrongRequest if the file system has no locks.
    """
    deadline = time.monotonic() + wait_seconds
    with _opened(folder, what) as file:
        while not _locked(file.fileno(), folder):
            if time.monotonic() >= deadline:
                raise FolderHeld(
                    f"{what} is in use by {_holder(file.name)}; wait for it or stop it"
                )
            time.sleep(0.2)
        file.truncate(0)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        file.flush()
        yield  # closing the file releases the lock


def _opened(folder: Path, what: str) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK_FILE).open("a+")
    except OSError as error:
        raise CannotHold(f"{what} cannot be written to ({error.strerror or error})") from error


def _locked(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise WrongRequest(
            f"{folder} is on a file system without file locks ({error.strerror}); "
            "choose another --storage, or mount it with locks (NFS 4, Lustre with -o flock)"
        ) from error
    return True


def _holder(path: str) -> str:
    text = Path(path).read_text()
    if not text:  # the holder has locked it but not written its line yet
        return "a process that has only just started"
    holder = json.loads(text)
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
