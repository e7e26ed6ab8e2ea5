"""Stages of a command, each its own process, that are interrupted and gone on with as one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from experiments import cli
from jepa.words import duration

# A step on CPU allocates its activations anew; in small pages, faulting them in takes up to a third
# of the step. glibc reads this only when a process starts, so no stage can set it for itself.
_MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Stopped(Exception):
    """A stage ended the run: it failed, or a signal asked for it. Carries the exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Stages:
    """Runs the stages one after another and remembers how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Passes SIGINT and SIGTERM on to the stage that runs, which then saves what it has.

        A terminal that is closed (SIGHUP) ends the stage as SIGTERM does, unless nohup is about.
        """
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        old = {number: signal.signal(number, self._forward) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(_sent(number))

    def run(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Runs `python -m module arguments`.

        Raises:
          Stopped: with the stage's exit code if it failed, or 128 plus the signal's number.
        """
        print(f"== {name}", flush=True)
        begin = time.perf_counter()
        # It saves and ends when our end of this pipe is closed: by us, or with us by kill -9.
        leash, end = os.pipe()
        try:
            # A process group of its own: Ctrl-C on a terminal reaches it once, through us.
            self._child = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                process_group=0,
                env={**_MEMORY, **os.environ, cli.LEASH: str(leash)},
                pass_fds=(leash,),
            )
            if self._signal is not None:
                self._child.send_signal(_sent(self._signal))
            code = self._child.wait()
        finally:
            os.close(leash)
            os.close(end)
        self.seconds[name] = time.perf_counter() - begin
        if code:
            raise Stopped(128 - code if code < 0 else code)
        if self._signal is not None:
            raise Stopped(128 + self._signal)

    def skip(self, name: str, why: str) -> None:
        """Notes that a stage has nothing to do."""
        print(f"== {name}: {why}", flush=True)
        self.seconds[name] = 0.0

    def summary(self) -> str:
        """Returns one line with the time of each stage."""
        parts = [f"{name} {duration(seconds)}" for name, seconds in self.seconds.items()]
        return f"{', '.join(parts)}; in all {duration(sum(self.seconds.values()))}"


def _sent(number: int) -> int:
    return signal.SIGTERM if number == signal.SIGHUP else number


def hint(stopped: Stopped, stages: Stages) -> int:
    """Says where the time went and how to go on; returns the exit code."""
    text = "the same command goes on from here" if stopped.code > 2 else "see above"
    print(f"stopped ({stages.summary()}); {text}", file=sys.stderr, flush=True)
    return stopped.code
