"""V-JEPA 2: V-JEPA with rotary positions, a constant moving average and long clips at the end.

Source: arXiv 2506.09985. `rope` is "rotation" by default; "tiled" is what the released weights were
trained with (see `jepa.nn.rotary`). Images are clips that stand still: the loader repeats them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jepa.errors import UserError
from jepa.methods.masked_model import default_augment, default_encoder, default_predictor
from jepa.methods.masked_prediction import MaskedPrediction


def default_model() -> ConfigDict:
    """The `model` section with its defaults: a small model for 64-pixel clips."""
    return ConfigDict(
        {
            "encoder": default_encoder(),
            "predictor": default_predictor(),
            "augment": default_augment(),
            # Published, converted or exported weights to start from.
            "weights": "",
        }
    )


def default_loss() -> ConfigDict:
    """The `loss` section with its defaults."""
    return ConfigDict({"kind": "l1"})


class VJEPA2(MaskedPrediction):
    """The method; masks come from the sampler `tubes`."""

    default_model = staticmethod(default_model)
    default_loss = staticmethod(default_loss)

    def check(self, config: ConfigDict) -> None:
        """Checks what must fit the rest of the config.

        Raises:
          UserError: as in `MaskedPrediction`, or two forms of rotary positions.
        """
        super().check(config)
        check_rope(config)


def check_rope(config: ConfigDict) -> None:
    """Checks that encoder and predictor turn alike.

    Raises:
      UserError: they do not.
    """
    encoder, predictor = (config.model[name].rope for name in ("encoder", "predictor"))
    if encoder != predictor:
        raise UserError(
            f"config.model.encoder.rope is {encoder!r} and config.model.predictor.rope is "
            f"{predictor!r}; set both to 'rotation', or both to 'tiled' for released weights"
        )
