"""Starts the processes of a run on this machine, as a launcher does on several."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 900  # seconds that the tests wait for a run


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(index=None, count=None, port=None):
    """Returns the environment of one process; without an index, of a run of one."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_FLAGS", "JAX_"))}
    # Most of the time goes into compiling, and nothing here needs to be fast.
    env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if index is not None:
        env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
        env |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    return env


class Run:
    """Processes of one run: `processes`, and what each has said in `log(index)`."""

    def __init__(self, folder, arguments, count):
        self._logs = [Path(folder) / f"log{free_port()}-{i}" for i in range(count)]
        several = count > 1
        port = free_port()
        self.processes = []
        for i, path in enumerate(self._logs):
            env = environment(i, count, port) if several else environment()
            with open(path, "w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *arguments, *(["--distributed"] if several else [])],
                        env=env,
                        cwd=ROOT,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )  # fmt: skip
                )

    def log(self, index=0):
        return self._logs[index].read_text()

    def logs(self):
        return "\n".join(f"== {i}\n{self.log(i)}" for i in range(len(self._logs)))

    def wait(self, timeout=TIMEOUT):
        """Returns the exit codes; a process that has not ended by then is killed, and told of."""
        try:
            return [process.wait(timeout) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s\n{self.logs()}") from None
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()

    def until(self, words, index=0, timeout=TIMEOUT):
        """Waits until a process has said some words."""
        import time

        end = time.monotonic() + timeout
        while words not in self.log(index):
            alive = self.processes[index].poll() is None and time.monotonic() < end
            assert alive or words in self.log(index), self.logs()
            time.sleep(0.05)


def run(folder, arguments, count):
    """Runs to the end and returns the `Run`; every process must have ended with 0."""
    started = Run(folder, arguments, count)
    codes = started.wait()
    assert codes == [0] * count, started.logs()
    return started
