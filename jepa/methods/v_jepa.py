"""V-JEPA: clips, tubes of short and of long range (arXiv 2404.08471).

The loss is L1, each kind of mask has a token of its own in the predictor, and positions are fixed
sines and cosines, a third of the width for each axis.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jepa.methods.masked_model import default_augment, default_encoder, default_predictor
from jepa.methods.masked_prediction import MaskedPrediction


def default_model() -> ConfigDict:
    """The `model` section with its defaults: a small model for 64-pixel clips."""
    fixed = {"rope": "none", "positions": "sincos_uniform"}
    return ConfigDict(
        {
            "encoder": default_encoder(**fixed),
            "predictor": default_predictor(**fixed),
            "augment": default_augment(),
            # Published, converted or exported weights to start from.
            "weights": "",
        }
    )


def default_loss() -> ConfigDict:
    """The `loss` section with its defaults."""
    return ConfigDict({"kind": "l1"})


class VJEPA(MaskedPrediction):
    """The method; masks come from the sampler `tubes`."""

    default_model = staticmethod(default_model)
    default_loss = staticmethod(default_loss)
