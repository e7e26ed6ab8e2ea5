"""VL-JEPA over a published image tower, frozen, on a dataset of your own.

    export JEPA_WEIGHTS=DIR     # with the tower's directory as Hugging Face publishes it
    python -m experiments.train --config=configs/vl_jepa/image_tower.py:dinov2_base \
        --config.data.path=DATASET --workdir=runs/dinov2

What follows the colon is a name in `jepa.models.image_tower.IMAGE_TOWERS`: ViT, DINOv2 (with
registers or without) or SigLIP 2. The tower encodes each of eight frames by itself; every clip is
encoded once, before the first step, and its features are kept beside the dataset (of dinov2_base
2,048 tokens of 768 numbers, 3 MiB a clip in float16). The predictor, which is trained from nothing,
sees the tokens of all frames in a row; `model.x_encoder.temporal="sincos"` adds the frame's number
to them too, and `frozen=False, cache_features=False` trains the tower with it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.vl_jepa import own_data
from jepa.errors import UserError
from jepa.methods import x_encoders
from jepa.models.image_tower import IMAGE_TOWERS

# DINOv2's tables of positions are of 37 x 37 patches, for the large images at the end of its
# training; 224 pixels, of which it saw more, are 16 x 16.
_MOST_PATCHES = {"dinov2": 16}


def get_config(tower: str = "dinov2_base") -> ConfigDict:
    """Returns the config over one of `IMAGE_TOWERS`; `data.path` has to be given."""
    if tower not in IMAGE_TOWERS:
        raise UserError(
            f"configs/vl_jepa/image_tower.py has no tower {tower!r}; use one of "
            f"{', '.join(IMAGE_TOWERS)}"
        )
    fields = IMAGE_TOWERS[tower]
    config = own_data.get_config()
    config.data.size = fields["patch"] * _patches(tower)
    # One view of a clip, so that its features can be kept.
    config.data.sampling = "uniform"
    config.data.crop = "none"
    config.data.flip = False
    config.model.x_encoder = x_encoders.default()
    config.model.x_encoder.update(
        fields,
        kind="image",
        weights=tower.replace("_", "-"),
        frozen=True,
        cache_features=True,
        remat="full",
    )
    config.model.predictor.update(width=256, depth=2, heads=4, kv_heads=4, mlp_width=704)
    return config


def _patches(tower: str) -> int:
    """Returns how many patches a row of a frame has."""
    columns: int = IMAGE_TOWERS[tower]["table_grid"][2]
    return min(columns, _MOST_PATCHES.get(tower.split("_")[0], columns))
