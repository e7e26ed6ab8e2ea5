"""V-JEPA 2.1 on the synthetic world's clips: configs/v_jepa_2/world.py with its losses.

    python -m experiments.train --config=configs/v_jepa_2_1/world.py --workdir=runs/world_2_1

There are no images, hence no tokenizer of theirs. The weight of the visible tokens does not rise
from zero: the published ramp begins at step 15,000, which such a run never reaches.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.v_jepa_2 import world
from jepa.methods.v_jepa_2_1 import default_loss, default_model


def get_config() -> ConfigDict:
    """Returns the config."""
    config = world.get_config()
    config.method = "jepa.methods.v_jepa_2_1.VJEPA21"
    small, config.model = config.model, default_model()
    config.model.encoder.update(small.encoder.to_dict(), taps=(1, 2, 3, 4), image_tokenizer=False)
    config.model.predictor.update(small.predictor.to_dict())
    config.loss = default_loss()
    return config
