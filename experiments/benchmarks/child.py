"""One part of a benchmark in a process of its own.

A part decides how many CPU devices JAX shows, and what is in memory; neither can be undone within
a process. The child gets its work as arguments and hands back JSON through a pipe; what it prints
goes to stderr. It ends when its parent does.

    python -m experiments.benchmarks.child module:function JSON HANDLE
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from experiments import cli
from jepa.errors import UserError


def call(function: str, arguments: Mapping[str, Any], *, platform: str | None = "cpu") -> Any:
    """Calls `module:function` with JSON arguments in a new process; returns its JSON result.

    Args:
        function: Such as "experiments.benchmarks.infonce:memory".
        arguments: For the function, by name.
        platform: What JAX may use there; None for whatever the environment says.

    Raises:
        UserError: The function's own, or the process was killed.
        RuntimeError: It failed in another way; its traceback is on stderr.
    """
    leash, end = os.pipe()
    result, answer = os.pipe()
    environment = {**os.environ, cli.LEASH: str(leash)}
    if platform is not None:
        environment["JAX_PLATFORMS"] = platform
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, function, json.dumps(arguments), str(answer)],
            env=environment,
            stdout=2,  # a number: the stream itself may have been replaced
            pass_fds=(leash, answer),
        )
        os.close(answer)
        with os.fdopen(result, encoding="utf-8") as pipe:
            text = pipe.read()
        code = child.wait()
    finally:
        os.close(leash)
        os.close(end)
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; most likely the memory did not suffice" if name == "SIGKILL" else ""
        raise UserError(f"{function} was ended by {name}{hint}")
    found = json.loads(text) if text else {}
    if "error" in found:
        raise UserError(found["error"])
    if code or "result" not in found:
        raise RuntimeError(f"{function} failed with exit code {code}; see above")
    return found["result"]


def main() -> None:
    """Runs the function named by the arguments; see `call`."""
    function, arguments, handle = sys.argv[1:]
    module, _, name = function.partition(":")
    with os.fdopen(int(handle), "w", encoding="utf-8") as pipe:
        try:
            result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
            json.dump({"result": result}, pipe)
        except UserError as error:
            json.dump({"error": str(error)}, pipe)


if __name__ == "__main__":
    cli.run(main)
