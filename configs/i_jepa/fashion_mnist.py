"""I-JEPA on Fashion-MNIST, in some ten minutes on one CPU core.

    python -m experiments.train --config=configs/i_jepa/fashion_mnist.py --workdir=runs/fashion

The pictures are those of Debian's package dataset-fashion-mnist. What differs from the paper's
recipe, because a run has minutes: Muon in place of AdamW, tanh in the GELU, and no weight decay
that rises.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jepa.data.config import default_data_config
from jepa.evaluation.held_out import default_held_out
from jepa.evaluation.probes_config import default_probe
from jepa.methods.i_jepa import default_loss, default_model
from jepa.models.vit import VITS
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
    config.method = "jepa.methods.i_jepa.IJEPA"
    config.dtype = "float32"
    config.mesh = default_mesh_config()

    config.data = default_data_config()
    config.data.path = "idx:/usr/share/datasets/fashion-mnist"
    config.data.streams = ("video", "masks")
    config.data.frames = 1
    config.data.size = 28
    config.data.patch = 4
    config.data.crop = "random_resized"
    config.data.crop_scale = (0.3, 1.0)
    config.data.masks = ConfigDict({"sampler": "multiblock"})

    config.model = default_model()
    # 0.8 million parameters; 49 tokens of a whole picture.
    config.model.encoder.update(VITS["nano"], patch=4, gelu="tanh")
    config.model.predictor.update(width=64, depth=2, heads=4, gelu="tanh")

    config.loss = default_loss()

    config.optimizer = default_optimizer_config()
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100

    config.ema = default_ema_config()
    config.ema.update(momentum=0.996, final_momentum=1.0, schedule="linear")

    config.train = default_train_config()
    config.train.steps = 1500
    config.train.global_batch = 128
    config.train.log_every = 50
    config.train.save_every = 500

    # For train.eval_every above 0.
    config.evaluation = ConfigDict({"held_out": default_held_out(split="test")})

    config.probe = default_probe()
    # All 60,000 labels fit, so drawing them again changes little: seeds are those of the training.
    config.probe.update(test_split="test", most_features=256, seeds=1)
    return config
