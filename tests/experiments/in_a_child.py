"""What a process of its own does in the benchmark's tests; imports little."""

import os
import signal

from experiments.benchmarks import machine


def peak_of_a_buffer():
    before = bytearray(64_000_000)  # freed, and must not hide what the call takes
    del before
    return machine.peak_memory(lambda: len(b"x" * 100_000_000))


def die():
    os.kill(os.getpid(), signal.SIGKILL)
