"""What the faults need: runs in processes of their own, and what to compare when they are over."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jepa.data.world.write import write_world
from jepa.training import record_log

ROOT = Path(__file__).parents[2]
CLIPS, BATCH = 32, 8  # an epoch is four steps
STEPS = 48
_MARK = "JEPA_FAULTS_RUN"
_LONG = 600.0  # seconds after which a run counts as hanging


def make_data(directory: Path) -> Path:
    """The clips to train on: 32 H.264 files of 16 frames, in shards."""
    write_world(directory, clips={"train": CLIPS}, processes=1, progress=False)
    return directory


class Failure(AssertionError):
    """A fault that lost work, hung, or was not told of."""


def demand(holds: bool, said: str) -> None:
    """Raises Failure unless it holds."""
    if not holds:
        raise Failure(said)


class Run:
    """A run that can be started again and again in one workdir.

    Attributes:
        directory: the workdir.
        process: the one that was started last.
    """

    def __init__(
        self,
        directory: Path,
        data: Path,
        *,
        model: str = "linear",
        steps: int = STEPS,
        **settings: Any,
    ):
        """Notes what to run; `settings` are those of `tests.faults.child`."""
        self.directory, self.process = directory, None
        config = {"data.path": str(data), **settings.pop("config", {})}
        self.settings = {"model": model, "steps": steps, **settings, "config": config}
        self._log = directory.parent / f"{directory.name}.log"
        self._begin = 0

    def log_to(self, path: Path) -> None:
        """Lets what it writes go to another file from now on."""
        self._log = path

    def start(self, **config: Any) -> subprocess.Popen:
        """Starts it, with some keys of the config changed."""
        settings = {**self.settings, "config": {**self.settings["config"], **config}}
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            _MARK: self._mark,
            # Nothing here needs to be fast, and compiling takes most of the time.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(self.directory.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        self._begin = self._log.stat().st_size if self._log.exists() else 0
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.child", str(self.directory),
                 json.dumps(settings)],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self.process

    @property
    def _mark(self) -> str:
        return str(self.directory.absolute())

    def said(self) -> str:
        """What the last process has written."""
        return self._log.read_bytes()[self._begin :].decode(errors="replace")

    def alive(self) -> bool:
        """Whether the last process runs."""
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds: float = _LONG) -> int:
        """Its exit code; Failure if it hangs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.directory} hung for {seconds:.0f} s:\n{self.said()}") from None

    def kill(self) -> None:
        """kill -9, of the process alone: what it started has to notice by itself."""
        self.process.kill()
        self.process.wait()

    def finish(self, **config: Any) -> None:
        """Runs it to its end; Failure if it does not get there."""
        self.start(**config)
        code = self.wait()
        demand(code == 0, f"{self.directory} ended with {code}:\n{self.said()}")

    def until(
        self, holds: Callable[[], bool], seconds: float = _LONG, pause: float = 0.001
    ) -> bool:
        """Waits until something holds; False if the process ended before."""
        end = time.monotonic() + seconds
        while not holds():
            if not self.alive():
                return False
            demand(time.monotonic() < end, f"nothing happened for {seconds} s:\n{self.said()}")
            time.sleep(pause)
        return True

    def last_logged(self) -> int:
        """The step whose records were logged last; 0 if none were."""
        path = self.directory / record_log.DIRECTORY / "00000.jsonl"
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(json.loads(path.read_bytes().splitlines()[-1])["step"])
        return 0

    def records(self) -> int:
        """How many steps were logged by all processes of this run, repeated ones included."""
        path = self.directory / record_log.DIRECTORY / "00000.jsonl"
        with contextlib.suppress(OSError):
            return path.read_bytes().count(b"\n")
        return 0

    def saving(self) -> bool:
        """Whether a checkpoint is half written."""
        return any((self.directory / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def saved(self) -> list[int]:
        """Steps of the checkpoints."""
        found = (self.directory / "checkpoints").glob("*")
        return sorted(int(path.name) for path in found if path.name.isdigit())

    def survivors(self, seconds: float = 10.0) -> list[int]:
        """Processes of this run that are still there after a while; there should be none."""
        end = time.monotonic() + seconds
        while (found := processes(self._mark)) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def digest(self) -> dict[str, str]:
        """The SHA-256 of every array at the end."""
        return json.loads((self.directory / "digest.json").read_text())

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every line of metrics.jsonl."""
        lines = (self.directory / "metrics.jsonl").read_text().splitlines()
        return [(each["step"], each["loss"]) for each in map(json.loads, lines)]


def processes(mark: str, besides: tuple[int, ...] = ()) -> list[int]:
    """Processes that carry a run's mark in their environment (Linux)."""
    wanted, found = f"{_MARK}={mark}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [number for number in found if number not in besides and number != os.getpid()]


def same_end(run: Run, undisturbed: Run) -> None:
    """Demands that two runs ended alike, bit for bit, by way of the same records."""
    ours, theirs = run.digest(), undisturbed.digest()
    other = [name for name in theirs if ours.get(name) != theirs[name]]
    demand(ours.keys() == theirs.keys() and not other, f"other final values: {other[:5]}")
    demand(run.losses() == undisturbed.losses(), "metrics.jsonl has other losses or steps")
    same_records(run, undisturbed)


def same_records(run: Run, undisturbed: Run) -> None:
    """Demands that no record was seen twice or skipped: each once an epoch, in the same order."""
    ours, theirs = (record_log.read(each.directory) for each in (run, undisturbed))
    steps = run.settings["steps"]
    demand(list(theirs) == list(range(1, steps + 1)), "the undisturbed run logged other steps")
    demand(ours == theirs, "the steps were made of other records")
    seen = [key for step in range(1, steps + 1) for key in ours[step]]
    for begin in range(0, len(seen) - CLIPS + 1, CLIPS):
        epoch = seen[begin : begin + CLIPS]
        demand(len(set(epoch)) == CLIPS, f"an epoch has {len(set(epoch))} records of {CLIPS}")
