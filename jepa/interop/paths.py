"""Where weights lie: paths in configs are relative to a directory that a user names once."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = "JEPA_WEIGHTS"


def locate(path: str | Path) -> Path:
    """Returns where a config's path of weights leads.

    A relative one begins at the directory in the environment variable `JEPA_WEIGHTS`; where that is
    not set, at the current directory.
    """
    root = os.environ.get(ROOT, "")
    return Path(root).expanduser() / Path(path).expanduser()
