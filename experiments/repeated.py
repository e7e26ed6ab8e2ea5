"""Flags of the commands that train several configs over several seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags

from jepa.errors import UserError

SEEDS = flags.DEFINE_list("seeds", None, "Seeds that each run is trained from.")
SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE for the config of every run.")


def seeds(default: Sequence[str]) -> list[str]:
    """Returns `--seeds`, or those by default.

    Raises:
      UserError: they are none.
    """
    found = list(default if SEEDS.value is None else SEEDS.value)
    check_seeds(found)
    return found


def check_seeds(found: Sequence[str]) -> None:
    """Raises UserError for seeds that are no whole numbers, or none."""
    if not found or not all(re.fullmatch(r"\d+", seed) for seed in found):
        raise UserError(f"--seeds={','.join(found)}: give whole numbers")
