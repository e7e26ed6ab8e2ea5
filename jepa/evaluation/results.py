"""`evaluation.json`: written whole, and known to be of a checkpoint, a config and baselines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa.data import storage

FILE = "evaluation.json"
REPORT = "report.html"
HISTORY = "metrics.jsonl"
VERSION = 2


def identity(
    config: Mapping[str, Any],
    step: int,
    data: str | Path | None,
    baselines: Mapping[str, str] | None = None,
) -> str:
    """Returns a digest of what decides the numbers: config, checkpoint, dataset, baselines.

    Args:
      config: plain, as in the workdir's config.json.
      step: of the checkpoint.
      data: directory of the dataset, or None where it has none.
      baselines: the identity of the evaluation of each baseline, by name.
    """
    said = [VERSION, config, step, dict(baselines or {})]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    described = Path(data) / "dataset.json" if data else None
    if described is not None and described.is_file():
        digest.update(described.read_bytes())
    return digest.hexdigest()[:16]


def is_current(workdir: str | Path, wanted: str) -> bool:
    """Returns whether the workdir holds the evaluation of this identity and its report."""
    path = Path(workdir) / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found.get("identity") == wanted and (Path(workdir) / REPORT).is_file()


def write(workdir: str | Path, numbers: Mapping[str, Any]) -> Path:
    """Writes `evaluation.json` so that it is there whole or not at all, and returns its path.

    Raises:
      UserError: the disk is full or may not be written.
    """
    path = Path(workdir) / FILE
    storage.write_atomically(path, json.dumps(numbers, indent=2, allow_nan=False) + "\n")
    return path


def history(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl` in order of step; none where there is no such file."""
    path = Path(workdir) / HISTORY
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # A killed run can leave its last line half written.
    return sorted(rows, key=lambda row: row["step"])


def training(rows: Sequence[Mapping[str, Any]], batch_at: Callable[[int], int]) -> dict[str, Any]:
    """Returns what the log says of the training: steps, clips, seconds in steps, mean throughput.

    Args:
      rows: of `history`.
      batch_at: clips of a step, by its number.
    """
    timed = [row for row in rows if row.get("clips_per_second")]
    seconds, clips, before = 0.0, 0, 0
    for row in timed:
        # A phase logs its last step, so that these are all of one batch size.
        since = (row["step"] - before) * batch_at(row["step"])
        seconds += since / row["clips_per_second"]
        clips, before = clips + since, row["step"]
    if not timed:
        return {}
    return {
        "steps": before,
        "clips": clips,
        "seconds": seconds,
        "clips_per_second": clips / seconds,
        "final_loss": timed[-1].get("loss"),
    }
