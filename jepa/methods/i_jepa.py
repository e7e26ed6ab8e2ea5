"""I-JEPA: images, four target blocks and one large context block (arXiv 2301.08243).

Targets are the layer-normed tokens of the moving average, the loss is smooth L1 (the paper says the
mean squared distance; its code, and this, smooth L1). Positions are fixed sines and cosines.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jepa.methods.masked_model import default_encoder, default_predictor
from jepa.methods.masked_prediction import MaskedPrediction


def default_model() -> ConfigDict:
    """The `model` section with its defaults: a small model for small images."""
    fixed = {"rope": "none", "positions": "sincos_2d"}
    return ConfigDict(
        {
            "encoder": default_encoder(tubelet=1, **fixed),
            "predictor": default_predictor(mask_tokens=1, mask_token_init="normal", **fixed),
            # Published, converted or exported weights to start from.
            "weights": "",
        }
    )


def default_loss() -> ConfigDict:
    """The `loss` section with its defaults."""
    return ConfigDict({"kind": "smooth_l1"})


class IJEPA(MaskedPrediction):
    """The method; masks come from the sampler `multiblock`."""

    default_model = staticmethod(default_model)
    default_loss = staticmethod(default_loss)
