"""A disk that takes nothing, however deep below it is noticed, is the user's to mend."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from jepa.errors import UserError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS,)
_WORDS = ("no space left", "disk quota exceeded", "file too large", "enospc")


def is_full(error: BaseException | None) -> bool:
    """Returns whether `error`, or what caused it, is about room on a disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return True
        if any(words in str(error).lower() for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def room_for(directory: str | Path) -> Iterator[None]:
    """Turns "no space left on device" and the like into a UserError that names the directory."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FORBIDDEN:
            raise UserError(
                f"{error.filename or directory} cannot be written ({error.strerror}); make it "
                "writable, or choose another --workdir."
            ) from error
        if not is_full(error):
            raise
        raise UserError(
            f"There is no room on the disk of {directory}; free some and start again, the run "
            "goes on from its last complete checkpoint."
        ) from error
