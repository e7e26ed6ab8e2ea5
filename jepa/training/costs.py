"""What a run cost before its steps: how long its start was trained, and features were computed.

`WORKDIR/costs.json`: {"pretraining_seconds": s, "feature_seconds": {phase: s}}, each where there is
any. Together with the seconds of the steps it is what runs are compared by at equal time. Features
that another run left on disk count too: with what it took to compute them.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from jepa.data.storage import write_atomically
from jepa.errors import UserError
from jepa.interop import parameters
from jepa.interop.paths import locate
from jepa.training.phases import Phase

FILE = "costs.json"
_PRETRAINING, _FEATURES = "pretraining_seconds", "feature_seconds"


def note(directory: str | Path, phase: Phase, features: float) -> None:
    """Notes what a phase cost before its first step; nothing where it cost nothing.

    Args:
      directory: the workdir.
      phase: that begins, or goes on.
      features: seconds that it took to compute the features that it reads.
    """
    said = _read(directory)
    now = copy.deepcopy(said)
    weights = phase.config.model.get("x_encoder", {}).get("weights", "")
    # A run that goes on needs the file no more, and it may be another by now.
    if phase.index == 0 and weights and _PRETRAINING not in said and locate(weights).is_file():
        seconds = parameters.about(weights).get("seconds")
        if seconds is not None:
            now[_PRETRAINING] = float(seconds)
    if features:
        now.setdefault(_FEATURES, {})[phase.name] = features
    if now != said:
        write_atomically(Path(directory) / FILE, json.dumps(now, indent=2) + "\n")


def read(directory: str | Path) -> dict[str, float]:
    """Returns `pretraining_seconds` and `feature_seconds`, summed over phases, where noted."""
    said = _read(directory)
    found = {_PRETRAINING: said[_PRETRAINING]} if _PRETRAINING in said else {}
    if _FEATURES in said:
        found[_FEATURES] = sum(said[_FEATURES].values())
    return found


def _read(directory: str | Path) -> dict[str, Any]:
    path = Path(directory) / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it.") from error
