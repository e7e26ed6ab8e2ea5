"""Losses over two processes of four devices each equal those of one process, value and gradient."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from jepa.losses.infonce import info_nce
from jepa.losses.sigreg import sigreg

SCRIPT = Path(__file__).with_name("losses_script.py")
TIMEOUT = 120


def inputs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 6, 16).astype(np.int32)
    return *(rng.standard_normal((16, 6)).astype(np.float32) for _ in range(2)), hashes


def step(p, t, hashes, key):
    """`{name: (value, gradients)}` of both losses."""

    def contrast(p, t):
        return info_nce(p, t, inverse_temperature=9.0, target_hash=hashes)[0]

    return {
        "info_nce": jax.value_and_grad(contrast, (0, 1))(p, t),
        "sigreg": jax.value_and_grad(sigreg)(p, key, slices=32),
    }


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_losses_over_two_processes(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), env.get("PYTHONPATH")]))
    address = f"127.0.0.1:{free_port()}"
    logs = [open(tmp_path / f"log{i}", "w+") for i in range(2)]  # noqa: SIM115
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), address, str(i), str(tmp_path)],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for i, log in enumerate(logs)
    ]
    wanted = jax.jit(step)(*inputs(), jax.random.key(5))
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.seek(0)
    assert codes == [0, 0], "\n".join(log.read() for log in logs)
    for i in range(2):
        with np.load(tmp_path / f"process{i}.npz") as got:
            for j, leaf in enumerate(jax.tree.leaves(wanted)):
                np.testing.assert_allclose(got[f"leaf{j}"], leaf, rtol=1e-5, atol=1e-6)
    for log in logs:
        log.close()
