"""VL-JEPA on the synthetic world, in minutes on two CPU cores.

    python -m experiments.train --config=configs/vl_jepa/quickstart.py --workdir=runs/quickstart

A small X-encoder (patch 16, 64 tokens for 8 frames of 64 pixels) and a one-layer predictor are
trained together against the frozen all-MiniLM-L6-v2, whose features of the training texts are
computed once. Each clip comes with two queries: one that asks for a caption, one for an attribute.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jepa.data.config import default_data_config
from jepa.evaluation.suite import default_evaluation
from jepa.methods.vl_jepa import default_loss, default_model
from jepa.training.config import (
    default_mesh_config,
    default_optimizer_config,
    default_train_config,
)


def get_config() -> ConfigDict:
    """Returns the config."""
    config = ConfigDict()
    config.seed = 0
    config.method = "jepa.methods.vl_jepa.VLJEPA"
    config.dtype = "float32"
    config.mesh = default_mesh_config()

    config.data = default_data_config()
    config.data.path = "data/world"
    config.data.frames = 8
    config.data.size = 64
    config.data.pixels = "yuv420"
    config.data.cache = "disk"
    config.data.query_tokenizer = "dataset"
    config.data.query_length = 12
    config.data.pairs_per_clip = 2

    config.model = default_model()
    config.model.x_encoder.update(width=192, depth=4, heads=3)
    config.model.predictor.update(width=192, depth=1, heads=3, kv_heads=3, mlp_width=512)

    config.loss = default_loss()

    config.optimizer = default_optimizer_config()
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.b2 = 0.98

    config.train = default_train_config()
    config.train.steps = 700
    config.train.global_batch = 64
    config.train.log_every = 25
    config.train.eval_every = 0
    config.train.save_every = 100

    config.evaluation = default_evaluation()
    return config
