"""V-JEPA 2.1's small models, taught by its gigantic one (arXiv 2603.14482).

    python -m experiments.export --config=configs/v_jepa_2_1/pretrain.py:gigantic \
        --workdir=runs/v_jepa_2_1 --to=runs/gigantic.safetensors
    python -m experiments.train --config=configs/v_jepa_2_1/distillation.py:large \
        --workdir=runs/distilled --config.model.teacher.weights=runs/gigantic.safetensors

The size is `base` or `large` (the default), the paper's, or `small`. The student predicts the
teacher's last layer, through a predictor of 12 blocks. (A config that the authors published for
these sizes says 24, of which half are then filled from a checkpoint of 12, without a word.)

What differs: the authors keep a moving average of the student, and publish that.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.v_jepa_2_1 import pretrain
from jepa.errors import UserError
from jepa.methods.v_jepa_2_1 import default_distillation
from jepa.models.vit import VITS

SIZES = ("small", "base", "large")


def get_config(size: str = "large") -> ConfigDict:
    """Returns the config of a size in `SIZES`; `model.teacher.weights` has to be given."""
    if size not in SIZES:
        raise UserError(
            f"configs/v_jepa_2_1/distillation.py has no size {size!r}; use one of "
            f"{', '.join(SIZES)}"
        )
    config = pretrain.get_config()
    config.method = "jepa.methods.v_jepa_2_1.Distillation"
    # The teacher, which is most of the parameters, is cut over all devices.
    config.mesh.update(data=1, fsdp=-1)
    teacher = config.model.encoder.to_dict()
    config.model = default_distillation()
    config.model.teacher.update(teacher)
    config.model.encoder.update(VITS[size], patch=16, tubelet=2, pretrain_grid=16, remat="full")
    config.model.predictor.update(width=384, depth=12, heads=12, mask_tokens=3, remat="full")
    del config.ema
    return config
