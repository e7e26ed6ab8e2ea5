"""The working directory of a run: whose it is, and its log of numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.errors import UserError

# What may change between the start of a run and its resumption: how it is watched and kept, where
# it runs and how long. Everything else decides the numbers.
HARMLESS = (
    "evaluation",
    "mesh",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.keep_last",
    "train.keep_best_metric",
    "train.keep_best_mode",
    "train.profile_steps",
    "train.max_consecutive_skipped",
    "data.workers",
    "data.threads",
    "data.cache",
)


def plain(value: Any) -> Any:
    """Returns a config as what JSON can hold: mappings as dicts, tuples as lists."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        parts = {}
        for key, item in value.items():
            parts.update(_flat(item, f"{path}.{key}" if path else key))
        return parts
    return {path: value}


def _harmless(path: str) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in HARMLESS)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns `key (old -> new)` for what may not differ; `train.steps` may only grow."""
    old_flat, new_flat = _flat(plain(old)), _flat(plain(new))
    found = []
    for path in sorted({*old_flat, *new_flat}):
        before, after = old_flat.get(path, "absent"), new_flat.get(path, "absent")
        if before == after or _harmless(path):
            continue
        if path == "train.steps" and isinstance(after, int) and after > before:
            continue
        found.append(f"{path} ({before!r} -> {after!r})")
    return found


def read_config(workdir: str | Path) -> dict[str, Any] | None:
    """Returns the config that made the directory, or None if no run began there."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); use another --workdir.") from error


def check(workdir: str | Path, config: Any) -> None:
    """Raises UserError if the directory belongs to a run with another config. Writes nothing."""
    old = read_config(workdir)
    found = differences(old, plain(config)) if old is not None else []
    if found:
        raise UserError(
            f"{workdir} belongs to a run with another config: {'; '.join(found)}; use another "
            "--workdir, or the old values."
        )


def claim(workdir: str | Path, config: Any) -> None:
    """Makes the directory and writes its config.json."""
    write_atomically(Path(workdir) / "config.json", json.dumps(plain(config), indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def forget_after(workdir: str | Path, step: int) -> None:
    """Drops lines of metrics.jsonl beyond `step`, which the resumed run will write again.

    A last line that a killed run left half written is dropped too.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step:
            kept.append(line)
    write_atomically(path, "".join(f"{line}\n" for line in kept))
