"""Checks of the sections of a config that a network is built of, before anything is traced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jepa.errors import UserError
from jepa.models.mask_predictor import MASK_TOKEN_INITS
from jepa.models.vit import ROPES
from jepa.nn.positions import POSITIONS, SHARES

# What counts something, and so is a whole number of at least 1.
_COUNTS = ("patch", "tubelet", "width", "depth", "heads", "mask_tokens", "pretrain_grid")
_CHOICES = {
    "rope": ROPES,
    "positions": POSITIONS,
    "mask_token_init": tuple(MASK_TOKEN_INITS),
}


def check_network(section: str, fields: Mapping[str, Any]) -> None:
    """Checks what a transformer can be built of; keys that it does not have are not asked.

    Args:
      section: its path in the config, such as `model.encoder`.
      fields: the section, with `width`, `heads` and `mlp_ratio` at least.

    Raises:
      UserError: a name that an option does not know, a number out of range, heads that do not
        divide the width, or a width that positions do not fit.
    """

    def wrong(key: str, mend: str) -> UserError:
        return UserError(f"config.{section}.{key} is {fields[key]!r}; {mend}")

    for key, known in _CHOICES.items():
        if key in fields and fields[key] not in known:
            raise wrong(key, f"use one of {', '.join(known)}")
    for key in _COUNTS:
        if key not in fields or (key == "pretrain_grid" and fields[key] is None):
            continue
        value = fields[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise wrong(key, "give a whole number of at least 1")
    ratio = fields["mlp_ratio"]
    if not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
        raise wrong("mlp_ratio", "give a number above 0")
    width, heads = fields["width"], fields["heads"]
    if width % heads:
        raise wrong("heads", f"use a number that divides config.{section}.width={width}")
    size = width // heads
    if fields.get("rope", "none") != "none" and (size % 2 or size < 6):
        raise wrong(
            "heads",
            f"that leaves {size} of config.{section}.width={width} numbers to a head, and rotary "
            "positions need an even number of at least 6",
        )
    positions = fields.get("positions", "none")
    if positions != "none" and sum(2 * (part // 2) for _, part in SHARES[positions](width)) < width:
        raise wrong(
            "width", f"make it a multiple of 8, which config.{section}.positions={positions!r} fill"
        )
