"""Defaults of the `model` section of I-JEPA, V-JEPA, V-JEPA 2 and 2.1, for small models."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jepa.nn.views import Colours


def default_encoder(**values: Any) -> ConfigDict:
    """Fields of `VideoTransformer` that a config may set, for a small model of 64-pixel clips."""
    section = ConfigDict(
        {
            "patch": 8,
            "tubelet": 2,
            "width": 192,
            "depth": 6,
            "heads": 4,
            "mlp_ratio": 4.0,
            "rope": "rotation",
            "positions": "none",
            "pretrain_grid": placeholder(int),
            "gelu": "exact",
            "remat": "none",
        }
    )
    section.update(values)
    return section


def default_predictor(**values: Any) -> ConfigDict:
    """Fields of `MaskPredictor` that a config may set, for a small model."""
    section = ConfigDict(
        {
            "width": 96,
            "depth": 3,
            "heads": 4,
            "mlp_ratio": 4.0,
            "rope": "rotation",
            "positions": "none",
            "gelu": "exact",
            "mask_tokens": 2,
            "mask_token_init": "zeros",
            "remat": "none",
        }
    )
    section.update(values)
    return section


def default_augment(**values: Any) -> ConfigDict:
    """How the colours of clips are moved on the device (`jepa.nn.views.Colours`): not at all.

    The frames of a clip share one draw, context and targets see the same clip. None of the papers
    moves colours; crops and mirrors are the loader's (`data.crop`, `data.flip`).
    """
    section = ConfigDict(dataclasses.asdict(Colours()))
    section.update(values)
    return section
