"""VL-JEPA on an X-encoder that V-JEPA 2 has pretrained, and what it is compared with.

    python -m experiments.demo_long        # what `make demo-long` runs

`pretrained`, the default, starts from the encoder of configs/v_jepa_2/world.py, whose file is given
as `--config.model.x_encoder.weights`, and has the two phases of the paper: the X-encoder frozen,
its features of every clip computed once, and then a short end in which it trains too. The others
take as long as that and the pretraining together, without any:

    configs/vl_jepa/quickstart_long.py:random_frozen    the X-encoder frozen as it was drawn
    configs/vl_jepa/quickstart_long.py:joint            all trained together from a random start
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.v_jepa_2 import world
from configs.vl_jepa import quickstart
from jepa.errors import UserError

# Steps of each training, so that those of `random_frozen`, those of `joint`, and those of the two
# phases with the pretraining's (`train.steps` of configs/v_jepa_2/world.py) take equally long,
# within 6 % of their mean; docs/results.md has the seconds.
STEPS = {"frozen": 400, "unfrozen": 120, "random_frozen": 2000, "joint": 880}
COMPARISONS = ("random_frozen", "joint")

# What the X-encoder shares with the pretrained one, beside its weights.
_ENCODER = ("patch", "tubelet", "width", "depth", "heads", "mlp_ratio", "rope", "positions", "gelu")
_VIEW = ("frames", "size", "pixels")
# A frozen encoder sees each clip in one way, or its features could not be kept.
_FROZEN = {
    "model.x_encoder.frozen": True,
    "model.x_encoder.cache_features": True,
    "data.sampling": "uniform",
}


def get_config(variant: str = "pretrained") -> ConfigDict:
    """Returns the config of `pretrained` or of one of `COMPARISONS`."""
    config, pretraining = quickstart.get_config(), world.get_config()
    config.model.x_encoder.update({key: pretraining.model.encoder[key] for key in _ENCODER})
    config.data.update({key: pretraining.data[key] for key in _VIEW})
    config.optimizer.warmup_steps = 60
    config.train.save_every = 200
    # The quickstart's aims are those of its own encoder and steps; here runs are compared.
    config.evaluation.bars = ()
    if variant == "pretrained":
        config.phases = (
            {"name": "frozen", "steps": STEPS["frozen"], **_FROZEN},
            {
                "name": "unfrozen",
                "steps": STEPS["unfrozen"],
                "optimizer": {"learning_rate": 1e-3, "warmup_steps": 20},
            },
        )
        config.train.steps = STEPS["frozen"] + STEPS["unfrozen"]
        return config
    if variant not in COMPARISONS:
        raise UserError(
            f"quickstart_long.py:{variant}: there is pretrained, {' and '.join(COMPARISONS)}"
        )
    if variant == "random_frozen":
        config.update_from_flattened_dict(_FROZEN)
    config.train.steps = STEPS[variant]
    config.evaluation.controls = False
    return config
