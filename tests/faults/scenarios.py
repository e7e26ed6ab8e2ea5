"""Disks, workers, clocks, second runs and NaN: one function a fault; see `tests.faults.soak`."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.harness import Run, demand, processes, same_end

Make = Callable[..., Run]
_DISK_MIB = 32


def one_sentence(run: Run, *words: str) -> str:
    """The error of a run that ended with 2; demands that it is one line and has the words."""
    code = run.wait()
    lines = [line for line in run.said().splitlines() if line.startswith("error: ")]
    demand(code == 2 and len(lines) == 1, f"it ended with {code}:\n{run.said()}")
    for word in words:
        demand(word in lines[0], f"{word!r} is not in {lines[0]!r}")
    return lines[0]


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Callable[[str], None]]:
    """A disk of its own in a directory; yields what mounts it anew with other options (root)."""
    directory.mkdir(parents=True)

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
        subprocess.run(command, check=True, capture_output=True)

    mount(f"size={_DISK_MIB}m")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def can_mount() -> bool:
    """Whether this user may mount a disk."""
    return os.name == "posix" and os.geteuid() == 0 and os.path.exists("/proc/mounts")


def fill(directory: Path) -> Path:
    """Takes all the room that is left on a disk."""
    ballast = directory / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast


@contextlib.contextmanager
def held(run: Run) -> Iterator[None]:
    """Lets a run stand still meanwhile."""
    run.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        run.process.send_signal(signal.SIGCONT)


def full_disk(make: Make, undisturbed: Run, directory: Path) -> dict[str, Any]:
    """The disk is full in the middle of a run, then it has room again."""
    if not can_mount():
        return {"skipped": "mounting a small disk needs root"}
    with small_disk(directory / "disk"):
        run = make("disk/full")
        run.start()
        demand(run.until(lambda: len(run.saved()) >= 2), f"it ended early:\n{run.said()}")
        ballast = fill(directory / "disk")
        said = one_sentence(run, "start again")
        saved = run.saved()
        ballast.unlink()
        run.finish()
        same_end(run, undisturbed)
    return {"said": said, "checkpoints_left": saved}


def read_only_disk(make: Make, undisturbed: Run, directory: Path) -> dict[str, Any]:
    """A run is started again on a disk that takes nothing any more, then it does."""
    if not can_mount():
        return {"skipped": "mounting a small disk needs root"}
    with small_disk(directory / "read_only") as mount:
        run = make("read_only/run")
        run.start()
        demand(run.until(lambda: bool(run.saved())), f"it ended early:\n{run.said()}")
        run.kill()
        demand(not run.survivors(), "a process outlived its run")
        log = directory / "read_only.log"
        run.log_to(log)  # the old one lies on the disk
        mount("remount,ro")
        run.start()
        said = one_sentence(run, "writable")
        mount("remount,rw")
        run.finish()
        same_end(run, undisturbed)
    return {"said": said}


def _workers(run: Run) -> list[int]:
    found = []
    for number in processes(str(run.directory.absolute()), besides=(run.process.pid,)):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes():
                found.append(number)
    return found


def worker_killed(make: Make, undisturbed: Run, directory: Path) -> dict[str, Any]:
    """kill -9 for one worker of a run, twice: the run goes on with the same batches."""
    run = make("worker_killed", config={"data.workers": 2})
    run.start()
    for step in (5, 20):
        demand(run.until(lambda step=step: run.records() >= step), f"ended:\n{run.said()}")
        with held(run):
            os.kill(random.Random(step).choice(_workers(run)), signal.SIGKILL)
    code = run.wait()
    demand(code == 0, f"it ended with {code}:\n{run.said()}")
    same_end(run, undisturbed)
    told = run.said().count("a data worker was killed")
    demand(told >= 1, f"nobody was told:\n{run.said()}")
    return {"killed": 2, "restarts": told}


def worker_hangs(make: Make, undisturbed: Run, directory: Path) -> dict[str, Any]:
    """The workers stop for ever: the run ends in a bounded time, saved, and can go on."""
    run = make("worker_hangs", config={"data.workers": 2})
    run.start(**{"data.timeout": 40.0})  # the first batch waits for the workers to come up
    demand(run.until(lambda: run.records() >= 8), f"it ended early:\n{run.said()}")
    begin = time.monotonic()
    for number in _workers(run):
        os.kill(number, signal.SIGSTOP)
    said = one_sentence(run, "data.timeout", "The last checkpoint is step")
    seconds, last, saved = time.monotonic() - begin, run.last_logged(), run.saved()
    demand(bool(saved) and saved[-1] == last, f"step {last} is not among {saved}")
    left = run.survivors()
    demand(not left, f"processes {left} outlived their run")
    run.finish()
    same_end(run, undisturbed)
    return {"said": said, "seconds": round(seconds, 1)}


def clock_jumps(make: Make, undisturbed: Run, directory: Path) -> dict[str, Any]:
    """`time.time` jumps to and fro by up to a year, and files have random dates."""
    run = make("clock", clock=1)
    run.start()
    demand(run.until(lambda: len(run.saved()) >= 2), f"it ended early:\n{run.said()}")
    run.kill()
    demand(not run.survivors(), "a process outlived its run")
    rng, now = random.Random(0), time.time()
    for path in [run.directory, *run.directory.rglob("*")]:
        date = now + rng.uniform(-1, 1) * 365 * 24 * 3600
        os.utime(path, (date, date))
    run.settings["clock"] = 2
    run.finish()
    same_end(run, undisturbed)
    return {"runs": 1}


def two_runs(make: Make, undisturbed: Run, directory: Path) -> dict[str, Any]:
    """A second run in a workdir is refused, also when both start at the same moment."""
    run = make("two")
    second = make("two")
    second.log_to(directory / "second.log")
    run.start()
    demand(run.until(lambda: run.records() > 0), f"it ended early:\n{run.said()}")
    with held(run):  # it would be over before the second one has come up
        second.start()
        said = one_sentence(second, "Another run is training")
    demand(run.wait() == 0, f"the first one failed:\n{run.said()}")
    same_end(run, undisturbed)
    pair = [make("both"), make("both")]
    pair[1].log_to(directory / "both_second.log")
    for each in pair:
        each.start()
    codes = sorted(each.wait() for each in pair)
    demand(codes in ([0, 2], [0, 0]), f"they ended with {codes}")
    same_end(pair[0], undisturbed)
    return {"said": said, "codes_at_the_same_moment": codes}


SCENARIOS = {
    f.__name__: f
    for f in (
        full_disk,
        read_only_disk,
        worker_killed,
        worker_hangs,
        clock_jumps,
        two_runs,
    )
}
