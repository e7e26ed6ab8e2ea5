"""I-JEPA on ImageNet by the paper's recipe (arXiv 2301.08243), in every size that it trains.

    python -m experiments.train --config=configs/i_jepa/pretrain.py:huge14 --workdir=runs/i_jepa \
        --config.data.path=folder:/data/imagenet

The size is `base16`, `large16`, `huge14` (the default), `huge16_448`, `huge14_in22k` or
`giant16_in22k`; see `SIZES`. Where paper and published code disagree, the numbers are the code's,
and comments say what the paper has. `tiny16` and `small16` are not the paper's.
"""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from jepa.data.config import default_data_config
from jepa.errors import UserError
from jepa.methods.i_jepa import default_loss, default_model
from jepa.models.vit import VITS
from jepa.training.config import (
    default_ema_config,
    default_mesh_config,
    default_optimizer_config,
    default_train_config,
)

IN1K, IN22K = 1_281_167, 14_197_122
BATCH = 2048


class Size(NamedTuple):
    """What differs between sizes.

    Attributes:
      vit: a name in `VITS`.
      patch, size: of images, in pixels.
      depth: of the predictor.
      epochs, warmup: lengths, over `images` pictures.
      heads: of the encoder, where they are not those of `VITS`; the predictor has as many.
    """

    vit: str
    patch: int = 16
    size: int = 224
    depth: int = 12
    epochs: int = 300
    # 15 epochs from 1e-4 on in the paper, 40 from 2e-4 on in the published configs.
    warmup: int = 40
    images: int = IN1K
    heads: int | None = None


SIZES = {
    "tiny16": Size("tiny", depth=6),
    "small16": Size("small", depth=6),
    # The paper's B and L, for which no config was published.
    "base16": Size("base", depth=6, epochs=600),
    "large16": Size("large", epochs=600),
    "huge14": Size("huge", patch=14),
    "huge16_448": Size("huge", size=448),
    "huge14_in22k": Size("huge", patch=14, epochs=66, warmup=3, images=IN22K),
    # 16 heads as published, of 88 numbers each; the 22 of V-JEPA 2's giant would not divide the
    # predictor's width.
    "giant16_in22k": Size("giant", depth=16, epochs=44, warmup=3, images=IN22K, heads=16),
}


def get_config(size: str = "huge14") -> ConfigDict:
    """Returns the config of a size in `SIZES`."""
    if size not in SIZES:
        raise UserError(
            f"configs/i_jepa/pretrain.py has no size {size!r}; use one of {', '.join(SIZES)}"
        )
    chosen = SIZES[size]
    epoch = chosen.images // BATCH
    config = ConfigDict()
    config.seed = 0
    config.method = "jepa.methods.i_jepa.IJEPA"
    config.dtype = "bfloat16"
    config.mesh = default_mesh_config()
    if chosen.vit in ("huge", "giant"):
        config.mesh.update(data=1, fsdp=-1)

    config.data = default_data_config()
    config.data.path = "folder:data/imagenet"
    config.data.streams = ("video", "masks")
    config.data.frames = 1
    config.data.patch = chosen.patch
    config.data.size = chosen.size
    # Nothing else: no flip, no colours, no blur.
    config.data.crop = "random_resized"
    config.data.crop_scale = (0.3, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.masks = ConfigDict(
        {
            "sampler": "multiblock",
            "targets": 4,
            "target_scale": (0.15, 0.2),
            "target_aspect": (0.75, 1.5),
            "context_scale": (0.85, 1.0),
        }
    )
    config.data.workers = 16

    config.model = default_model()
    config.model.encoder.update(VITS[chosen.vit], patch=chosen.patch, remat="dots")
    if chosen.heads is not None:
        config.model.encoder.heads = chosen.heads
    heads = config.model.encoder.heads
    config.model.predictor.update(width=384, depth=chosen.depth, heads=heads, remat="dots")

    # The paper says the mean squared distance; its code is smooth L1.
    config.loss = default_loss()

    config.optimizer = default_optimizer_config()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = chosen.warmup * epoch
    config.optimizer.start_factor = 0.2  # from 2e-4
    config.optimizer.final_factor = 1e-3  # to 1e-6
    config.optimizer.weight_decay = 0.04
    config.optimizer.final_weight_decay = 0.4
    config.optimizer.b2 = 0.999  # torch's default
    config.optimizer.clip_norm = None

    config.ema = default_ema_config()
    config.ema.update(momentum=0.996, final_momentum=1.0, schedule="linear")

    config.train = default_train_config()
    config.train.steps = chosen.epochs * epoch
    config.train.global_batch = BATCH
    config.train.log_every = 100
    config.train.save_every = 5000
    return config
