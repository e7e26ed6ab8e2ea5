"""What a process of its own does in the benchmark's tests; imports little."""

import dataclasses
import os
import signal

from experiments.benchmarks import machine


def peak_of_a_buffer():
    before = bytearray(64_000_000)  # freed, and must not hide what the call takes
    del before
    return machine.peak_memory(lambda: len(b"x" * 100_000_000))


def share_of_a_step():
    from experiments.benchmarks import share

    share.STEPS, share.HIDDEN = 1, 8
    found = share.times("nano", 2, 32, 16, slices=64, knots=5, rounds=2, note="tiny")
    return [dataclasses.asdict(item) for item in found]


def die():
    os.kill(os.getpid(), signal.SIGKILL)
