"""Writing files that are whole or absent, and saying what is wrong when the disk refuses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jepa.errors import UserError


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing `path` into a UserError."""
    try:
        yield
    # ArrayRecord reports every failure, a full disk among them, as RuntimeError.
    except (OSError, RuntimeError) as error:
        strerror = error.strerror if isinstance(error, OSError) else None
        reason = strerror or str(error).split(";")[0]
        raise UserError(
            f"cannot write {path}: {reason}; free space or make the directory writable, then run "
            "the same command again, which goes on where this one stopped"
        ) from error


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a small file so that it is whole or as it was before, whatever happens meanwhile.

    Args:
        path: Of the file; its directory is made where it is absent.
        content: Text, written as UTF-8, or bytes.

    Raises:
        UserError: the operating system refuses, e.g. because the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
