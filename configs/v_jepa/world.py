"""V-JEPA on the synthetic world's clips: configs/v_jepa_2/world.py with V-JEPA's positions.

python -m experiments.train --config=configs/v_jepa/world.py --workdir=runs/world_1
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.v_jepa_2 import world
from jepa.methods.v_jepa import default_model


def get_config() -> ConfigDict:
    """Returns the config."""
    config = world.get_config()
    config.method = "jepa.methods.v_jepa.VJEPA"
    fixed = default_model()
    for part in ("encoder", "predictor"):
        config.model[part].update(rope=fixed[part].rope, positions=fixed[part].positions)
    return config
