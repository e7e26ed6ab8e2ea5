"""Every loss over two processes of four devices each, against NumPy: value and gradient."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "losses"))
from loss_cases import all_cases, assert_close, value_and_gradients  # noqa: E402

SCRIPT = Path(__file__).with_name("losses_script.py")
TIMEOUT = 300


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_two(folder):
    """Runs the script twice at once; a process that fails tells its log."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), env.get("PYTHONPATH")]))
    address = f"127.0.0.1:{free_port()}"
    logs = [open(folder / f"log{i}", "w+") for i in range(2)]  # noqa: SIM115
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), address, str(i), str(folder)],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for i, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.seek(0)
    assert codes == [0, 0], "\n".join(log.read() for log in logs)
    for log in logs:
        log.close()


def put_together(case, files, inputs):
    """The value that each process computed, and the gradients from the rows that each holds."""
    values = [file[f"{case}/value"] for file in files]
    assert values[0] == values[1]
    gradients = {name: np.full(inputs[name].shape, np.nan) for name in case.learnt(inputs)}
    for file in files:
        for key in file.files:
            if key.startswith(f"{case}/") and not key.endswith("/value"):
                name, ranges = key.removeprefix(f"{case}/").split("/")
                parts = [r.split(":") for r in ranges.split(",") if r]
                index = tuple(slice(int(a), int(b) if b else None) for a, b in parts)
                gradients[name][index] = file[key]
    return values[0], gradients


def test_losses_over_two_processes(tmp_path):
    run_two(tmp_path)
    files = [np.load(tmp_path / f"process{i}.npz") for i in range(2)]
    for case in all_cases():
        inputs = case.inputs()
        wanted = value_and_gradients(case.reference, inputs, case.learnt(inputs))
        assert_close(put_together(case, files, inputs), wanted, case.tolerance)
