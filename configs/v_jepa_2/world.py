"""V-JEPA 2 on the synthetic world's clips, without their texts, on two CPU cores.

    python -m experiments.train --config=configs/v_jepa_2/world.py --workdir=runs/v_jepa_2

16 frames of 64 pixels in tubelets of 4 x 16 x 16 (64 tokens). What differs from the paper's recipe,
because a run has minutes: Muon in place of AdamW at twenty times its rate, tanh in the GELU, a
moving average that forgets faster, one phase, and the masks.

The encoder sees a moment, all of the first or of the last tubelet, and the rest of the clip is
predicted. What stands still can be copied from there; where a body will be or has been has to be
told from its motion within the moment, and by the encoder, for the predictor has one layer. The
paper's tubes (`"--config.data.masks={'sampler':'tubes'}"`) hide a body's whole way, or show it;
docs/results.md has both.

No absolute positions, unlike in configs/vl_jepa/quickstart.py: most of a clip stands still, and
where positions can be told from targets, places alone predict nearly all of them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jepa.data.config import default_data_config
from jepa.evaluation.held_out import default_held_out
from jepa.evaluation.probes_config import default_probe
from jepa.methods.v_jepa_2 import default_loss, default_model
from jepa.training.config import (
    default_ema_config,
    default_mesh_config,
    default_optimizer_config,
    default_train_config,
)


def get_config() -> ConfigDict:
    """Returns the config."""
    config = ConfigDict()
    config.seed = 0
    config.method = "jepa.methods.v_jepa_2.VJEPA2"
    config.dtype = "float32"
    config.mesh = default_mesh_config()

    config.data = default_data_config()
    config.data.path = "data/world"
    config.data.streams = ("video", "masks")
    config.data.frames = 16
    config.data.size = 64
    config.data.pixels = "yuv420"
    config.data.cache = "disk"
    config.data.patch = 16
    config.data.tubelet = 4
    moment = {"blocks": 1, "scale": 1.0, "temporal_scale": 0.75, "masked": 0.75}
    config.data.masks = ConfigDict({"sampler": "tubes", "kinds": {"moment": moment}})

    config.model = default_model()
    config.model.encoder.update(patch=16, tubelet=4, width=128, depth=4, heads=2, gelu="tanh")
    config.model.predictor.update(width=64, depth=1, heads=2, gelu="tanh")

    config.loss = default_loss()

    config.optimizer = default_optimizer_config()
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 100
    config.optimizer.schedule = "wsd"
    config.optimizer.decay_steps = 400

    config.ema = default_ema_config()
    config.ema.update(momentum=0.998, final_momentum=0.998)

    config.train = default_train_config()
    config.train.steps = 1500
    config.train.global_batch = 64
    config.train.log_every = 20
    config.train.save_every = 500

    # For train.eval_every above 0.
    config.evaluation = ConfigDict({"held_out": default_held_out()})

    config.probe = default_probe()
    # `first` is rare elsewhere; clips of a group of this split differ in nothing but the answer.
    # The mean over tokens, the default, tells `direction`; for `first` set `pooling` to "all".
    config.probe.update(labels=("direction", "first"), test_split="hard", train_labels=500)
    return config
