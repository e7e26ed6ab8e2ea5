"""VL-JEPA on the synthetic world, in minutes on two CPU cores.

    python -m experiments.train --config=configs/vl_jepa/quickstart.py --workdir=runs/quickstart

A small X-encoder (8 frames of 64 pixels in tubelets of 4 x 8 x 8: 128 tokens) and a one-layer
predictor are trained together against the frozen all-MiniLM-L6-v2, whose features of the training
texts are computed once. Each clip comes with three queries that ask for a caption or an attribute.

What differs from the paper's recipe, because a run has minutes and not weeks: Muon in place of
AdamW, absolute positions beside the rotary ones, tanh in the GELU, and a Y-head at the full rate.
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
    config.data.pairs_per_clip = 3

    config.model = default_model()
    config.model.x_encoder.update(
        patch=8, tubelet=4, width=128, depth=4, heads=2, positions="sincos", gelu="tanh"
    )
    config.model.predictor.update(width=128, depth=1, heads=2, kv_heads=2, mlp_width=352)

    config.loss = default_loss()

    config.optimizer = default_optimizer_config()
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 30
    config.optimizer.b2 = 0.98

    config.train = default_train_config()
    config.train.steps = 440
    config.train.global_batch = 64
    config.train.log_every = 20
    config.train.save_every = 110

    config.evaluation = default_evaluation()
    with config.evaluation.ignore_type():
        # As in training, a query says what is asked for: a thing, or a motion.
        config.evaluation.zero_shot.query = ConfigDict(
            {
                "colour": "What is in the clip?",
                "shape": "What is in the clip?",
                "size": "What is in the clip?",
                "direction": "What moves, and how?",
            }
        )
    config.evaluation.bars = (
        ("retrieval.text_to_video.recall_at_1", 0.50),
        ("retrieval.text_to_video.recall_at_10", 0.95),
        ("zero_shot.labels.colour.accuracy", 0.95),
        ("zero_shot.labels.size.accuracy", 0.95),
        ("zero_shot.labels.shape.accuracy", 0.45),
        ("zero_shot.labels.direction.accuracy", 0.65),
        ("questions.balanced", 0.70),
        ("gains.questions_over_blank", 0.20),
        # Over models of their own, which `make demo-baselines` trains.
        ("gains.hard_over_single_frame_model", 0.10),
        ("gains.hard_over_shuffled_frames_model", 0.10),
    )
    return config
