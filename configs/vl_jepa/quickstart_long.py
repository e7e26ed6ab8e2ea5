"""The quickstart with more of everything, for at most an hour on two CPU cores (`make demo-long`).

A wider X-encoder and four times as many steps over the same clips.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.vl_jepa import quickstart


def get_config() -> ConfigDict:
    """Returns the config."""
    config = quickstart.get_config()
    config.model.x_encoder.update(width=192, heads=3)
    config.model.predictor.update(width=192, heads=3, kv_heads=3, mlp_width=512)
    config.optimizer.warmup_steps = 60
    config.train.steps = 1600
    config.train.save_every = 200
    return config
