"""How every entry point ends: 0 when done, 2 with one `error:` sentence, 130 when interrupted.

An argparse entry point:

    if __name__ == "__main__":
        cli.run(main)                     # main() -> exit code or None

An absl entry point with `config_flags`:

    CONFIG = config_flags.DEFINE_config_file("config")
    WORKDIR = flags.DEFINE_string("workdir", None, "...", required=True)
    flags.mark_flag_as_required("config")

    if __name__ == "__main__":
        cli.run_absl(main)                # main() -> exit code or None; flags are parsed by then
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from jepa.errors import Stalled, UserError

USER_ERROR = 2
INTERRUPTED = 130
LEASH = "JEPA_LEASH"


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a bad argument is one `error:` sentence as for every other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the whole usage."""
        raise UserError(f"{message} (see --help)")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and exit the process with its code (None is 0)."""
    follow_parent()
    stalled = False

    def watched() -> int | None:
        nonlocal stalled
        try:
            return main()
        except Stalled:
            stalled = True
            raise

    code = exit_code(watched)
    if stalled:
        # Python would wait for the thread that hangs. Child processes end with their parent.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_absl(main: Callable[[], int | None]) -> NoReturn:
    """Parse absl flags, then do as `run`. Bad flags and unknown config keys are user errors."""
    # Only entry points with config files need absl; preparing data does not.
    from absl import app

    app.run(lambda _: run(main), flags_parser=_parse_flags_or_exit)
    raise AssertionError("app.run exits")


def exit_code(main: Callable[[], int | None]) -> int:
    """The exit code of `main`, its user error printed on stderr."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        return INTERRUPTED


def follow_parent() -> None:
    """End as on SIGTERM, saving what there is, once the process that holds our leash is gone.

    The leash is a pipe whose number is in the environment (`LEASH`). Nothing is written to it: a
    read returns when the other end is closed, however that process ended, kill -9 included.
    """
    handle = os.environ.pop(LEASH, None)
    if handle is None:
        return

    def wait() -> None:
        os.read(int(handle), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="leash", daemon=True).start()


def interrupt_on_terminate() -> None:
    """Let SIGTERM end the process as Ctrl-C does; for entry points that do not catch it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse absl flags and return what is left of `argv`.

    Raises:
        UserError: an unknown or malformed flag, a config file that cannot be read, or a
            `--config.key` that the config does not have.
    """
    from absl import flags
    from ml_collections import config_flags

    try:
        rest = flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        hint = ""
        if error.flagname.startswith("config."):
            hint = "; name the config first: --config=FILE"
        raise UserError(f"unknown flag --{error.flagname}{hint} (see --help)") from error
    except flags.Error as error:
        raise UserError(f"{error} (see --help)") from error
    except (KeyError, AttributeError) as error:
        # What config_flags lets through for a key that the config does not have.
        raise UserError(_unknown_key(argv, str(error))) from error
    except (IndexError, TypeError) as error:
        # And for a place that a list of the config, such as `phases`, does not have.
        indexed = [a for a in argv if a.startswith("--") and "[" in a.partition("=")[0]]
        if isinstance(error, IndexError) and not indexed:
            raise  # a mistake in the config file's own code
        raise UserError(_unknown_place(indexed)) from error
    except (OSError, ImportError) as error:
        # And for a file that is not there, where a key is given beside it.
        raise UserError(_unread("config", error)) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags look like --name=value")
    for name in flags.FLAGS:
        if isinstance(flags.FLAGS[name].parser, config_flags.config_flags.ConfigFileFlagParser):
            _check_loaded(name, flags.FLAGS[name])
    return rest


def _parse_flags_or_exit(argv: list[str]) -> list[str]:
    rest: list[str] = []
    code = exit_code(lambda: rest.extend(parse_flags(argv)))
    if code:
        sys.exit(code)
    return rest


def _unknown_key(argv: Sequence[str], quoted: str) -> str:
    # The key comes first, behind quotes of quotes or the type of what is no section. A guess at
    # what was meant may follow.
    words = re.findall(r"\w+", re.sub(r".*<class .*?>", "", quoted.replace("\\n", " ")))
    key = words[0] if words else quoted
    meant = re.search(r'mean "(\w+)"', quoted)
    mend = f"did you mean {meant[1]!r}?" if meant else "see the config file"
    for argument in argv:
        path = argument.lstrip("-").split("=")[0]
        if argument.startswith("--") and key in path.split(".")[1:]:
            return f"{argument}: the config has no key {key!r} there; {mend}"
    return f"the config has no key {key!r}; {mend}"


def _unknown_place(indexed: Sequence[str]) -> str:
    where = f"{indexed[0]}: " if indexed else ""
    return f"{where}the config has nothing in that place; places of a list count from [0]"


def _check_loaded(name: str, flag: object) -> None:
    """config_flags keeps the error of a missing file until the config is first touched."""
    value = flag.value  # type: ignore[attr-defined]
    try:
        _ = value.is_locked if value is not None else None
    except (OSError, ImportError) as error:
        raise UserError(_unread(name, error)) from error


def _unread(name: str, error: Exception) -> str:
    reason = str(error).splitlines()[-1].strip()  # the lines before say what was tried
    return f"--{name}: the config file cannot be read: {reason}"
