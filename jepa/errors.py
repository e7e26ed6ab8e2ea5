"""The one exception that means "the user can mend this", and the check for keys that are not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake in a config, a file or a command line.

    The message is one sentence that names the key or file, the value found and the mend. Entry
    points print it after `error:` and exit with code 2; nothing has been written by then.
    """


class Stalled(UserError):
    """Something outside of the library keeps a thread waiting for ever.

    Nothing can end such a thread, so an entry point leaves without waiting for it.
    """


def check_known(section: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Checks that the keys `given` in a section of the config are all `known`.

    Raises:
      UserError: names the first one that is not, and suggests the nearest that is.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            path = f"{section}.{key}" if section else key
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise UserError(f"The config key {path!r} does not exist; {hint}")


def check_keys(section: str, given: Any, known: Any) -> None:
    """Checks the keys of a section of the config, and of the sections within it.

    Args:
      section: its path, for the message.
      given: the section, a `ConfigDict` or dict.
      known: the same with its defaults.

    Raises:
      UserError: as `check_known`.
    """
    check_known(section, given, known)
    for key, value in given.items():
        if hasattr(known[key], "items"):
            check_keys(f"{section}.{key}", value, known[key])
