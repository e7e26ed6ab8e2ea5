"""Writing files that are whole or absent, and saying what is wrong when the disk refuses."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
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
    partial = temporary(path)
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


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether something names a bucket, not a path."""
    return "://" in str(path)


def temporary(path: Path) -> Path:
    """A name beside `path` that no other writer takes.

    The number of the process is not enough: several hosts, each with a process 7, may write to one
    shared directory.
    """
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")


class Files:
    """The small files of one directory, by name; what a dataset's book-keeping needs of a disk.

    Args:
        directory: Made when the first file is written.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)

    def __str__(self) -> str:
        return str(self.directory)

    def read(self, name: str) -> str:
        """Text of a file; FileNotFoundError or NotADirectoryError where there is none."""
        return (self.directory / name).read_text(encoding="utf-8")

    def write(self, name: str, content: str | bytes) -> None:
        """As `write_atomically`."""
        write_atomically(self.directory / name, content)

    def size(self, name: str) -> int:
        """Bytes of a file; FileNotFoundError where there is none."""
        return (self.directory / name).stat().st_size

    def count(self, folder: str, suffix: str) -> int:
        """Files of a folder whose names end in `suffix`."""
        try:
            return sum(name.endswith(suffix) for name in os.listdir(self.directory / folder))
        except FileNotFoundError:
            return 0

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        (self.directory / name).unlink(missing_ok=True)

    def tidy(self, folder: str) -> None:
        """Remove a folder and temporary files; what cannot be removed does no harm."""
        shutil.rmtree(self.directory / folder, ignore_errors=True)
        for path in self.directory.glob("*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
