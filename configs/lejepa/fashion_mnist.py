"""LeJEPA on Fashion-MNIST, in some ten minutes on one CPU core.

    python -m experiments.train --config=configs/lejepa/fashion_mnist.py --workdir=runs/fashion
    python -m experiments.train --config=configs/lejepa/fashion_mnist.py:vicreg --workdir=runs/v

The argument is `lejepa` (the default) or a baseline, which differs in the loss alone: `vicreg` or
`barlow_twins` (which compares two views, and so gets two in place of four). The pictures are those
of Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jepa.data.config import default_data_config
from jepa.errors import UserError
from jepa.evaluation.held_out import default_held_out
from jepa.evaluation.probes_config import default_probe
from jepa.methods.lejepa import default_loss, default_model
from jepa.methods.views_loss import KINDS
from jepa.models.vit import VITS
from jepa.training.config import (
    default_mesh_config,
    default_optimizer_config,
    default_train_config,
)


def get_config(kind: str = "lejepa") -> ConfigDict:
    """Returns the config with the loss of a kind."""
    if kind not in KINDS:
        raise UserError(
            f"configs/lejepa/fashion_mnist.py has no loss {kind!r}; use one of {', '.join(KINDS)}"
        )
    config = ConfigDict()
    config.seed = 0
    config.method = "jepa.methods.lejepa.LeJEPA"
    config.dtype = "float32"
    config.mesh = default_mesh_config()

    config.data = default_data_config()
    config.data.path = "idx:/usr/share/datasets/fashion-mnist"
    config.data.streams = ("video",)
    config.data.frames = 1
    config.data.size = 28

    config.model = default_model()
    # 0.8 million parameters; 16 tokens of a whole picture.
    config.model.encoder.update(VITS["nano"], patch=7, gelu="tanh", scan=False)
    config.model.feature_layers = 2  # 256 numbers
    # Grey pictures: no colours, and no blur, of which 28 pixels have enough.
    plain = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
    # Equal views, as in the authors' minimal recipe: small crops of so few pixels are often black
    # and nothing else.
    views = 2 if kind == "barlow_twins" else 4
    config.model.global_views.update(plain, count=views, size=28, scale=(0.3, 1.0))
    config.model.local_views.update(plain, count=0)
    config.model.projector.update(features=64, hidden=(512, 512))

    config.loss = default_loss()
    config.loss.kind = kind
    config.loss.sigreg.slices = 256

    config.optimizer = default_optimizer_config()
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50

    config.train = default_train_config()
    config.train.steps = 1000
    config.train.global_batch = 128
    config.train.log_every = 50
    config.train.save_every = 500

    # For train.eval_every above 0.
    config.evaluation = ConfigDict({"held_out": default_held_out(split="test")})

    config.probe = default_probe()
    # All 60,000 labels fit, so drawing them again changes little: seeds are those of the training.
    config.probe.update(test_split="test", most_features=256, seeds=1)
    return config
