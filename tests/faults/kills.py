"""kill -9 and SIGTERM at random moments, and what the run has to show for it at its end."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.harness import Run, demand, same_end

PER_RUN = 5  # interruptions of one run; then it may finish, and another one begins
# Of ten interruptions so many each: while the process starts, in a step, during a save.
_MOMENTS = ["start"] * 2 + ["step"] * 4 + ["save"] * 4


def _moment(run: Run, kind: str, rng: random.Random, startup: float) -> bool:
    """Waits for a moment of a kind; False if the run was over before."""
    if kind == "start":
        end = time.monotonic() + rng.uniform(0, startup)
        return run.until(lambda: time.monotonic() > end)
    if kind == "step":
        # The log still ends with the process before, so its first new line says where we are.
        begin, steps = run.records(), rng.randint(1, 9)
        if not run.until(lambda: run.records() >= begin + steps):
            return False
        time.sleep(rng.uniform(0, 0.1))
        return run.alive()
    for _ in range(rng.randint(1, 2)):
        if not (run.until(lambda: not run.saving()) and run.until(run.saving)):
            return False
    time.sleep(rng.choice((0.0, rng.uniform(0, 0.05))))
    return run.alive()


def interrupt(
    make: Callable[[int], Run],
    undisturbed: Run,
    *,
    count: int,
    seed: int,
    startup: float,
    how: Callable[[Run], Any],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Interrupts runs `count` times, lets them finish and compares them with the undisturbed one.

    Args:
        make: a fresh run by its number.
        undisturbed: how it should end.
        count: interruptions.
        seed: of their moments.
        startup: seconds from the start of a process to its first step.
        how: interrupts; returns what to note.
        tell: takes a line of progress.

    Returns:
        Figures: interruptions, by their moment, runs, steps done twice.
    """
    rng, noted, number = random.Random(seed), [], 0
    repeated = 0
    while len(noted) < count:
        run, number = make(number), number + 1
        kinds = rng.sample(_MOMENTS, PER_RUN)
        while kinds and len(noted) < count:
            run.start()
            kind = kinds.pop()
            if not _moment(run, kind, rng, startup):
                demand(run.wait() == 0, f"it failed by itself:\n{run.said()}")
                break
            step, saving = run.last_logged(), run.saving()
            said = how(run)
            saving = saving and (run.saving() or "not known")
            noted.append({"run": number, "kind": kind, "step": step, "saving": saving, **said})
            left = run.survivors()
            demand(not left, f"processes {left} outlived their run")
            tell(f"{len(noted)} of {count}: {kind}, step {step}, checkpoints {run.saved()}")
        run.finish()
        same_end(run, undisturbed)
        repeated += run.records() - run.settings["steps"]
        tell(f"run {number} ended like the undisturbed one, bit for bit")
    return {
        "interruptions": len(noted),
        "by_moment": {k: sum(each["kind"] == k for each in noted) for k in set(_MOMENTS)},
        "left_a_torn_checkpoint": sum(each["saving"] is True for each in noted),
        "runs": number,
        "runs_with_identical_end": number,
        "steps_done_again": repeated,
        "all": noted,
    }


def kill(run: Run) -> dict[str, Any]:
    """kill -9."""
    run.kill()
    return {}


class Terminate:
    """SIGTERM, and kill -9 after a deadline, as a cluster does."""

    def __init__(self, deadline: float):
        """`deadline` in seconds."""
        self.deadline = deadline

    def __call__(self, run: Run) -> dict[str, Any]:
        """Demands that the run ends within the deadline, saved, or before it has begun."""
        started = run.records()
        begin = time.monotonic()
        run.process.send_signal(signal.SIGTERM)
        code = run.wait(self.deadline)
        # Python itself ends on SIGTERM while it still imports.
        demand(code in (0, -signal.SIGTERM), f"it ended with {code}:\n{run.said()}")
        last = run.last_logged()
        if run.records() > started or code == 0:
            saved = run.saved()
            demand(code == 0, f"it ended with {code} though it had begun")
            demand(not last or (saved and saved[-1] == last), f"step {last} not among {saved}")
        return {"seconds": round(time.monotonic() - begin, 2)}


def measure_startup(run: Run) -> float:
    """Runs it undisturbed; seconds from the start of the process to its first step."""
    begin = time.monotonic()
    run.start()
    run.until(lambda: run.records() > 0)
    seconds = time.monotonic() - begin
    demand(run.wait() == 0, f"the undisturbed run failed:\n{run.said()}")
    return seconds


def runs(directory: Path, name: str, data: Path, model: str) -> Callable[[int], Run]:
    """Makes fresh runs by number; every fourth one reads its data in worker processes."""

    def make(number: int) -> Run:
        workers = {"data.workers": 2} if number % 4 == 3 else {}
        return Run(directory / f"{name}_{number}", data, model=model, config=workers)

    return make
