"""The paper's ablations (arXiv 2512.10942 v2, table 7) as far as they run small on the world.

    python -m experiments.ablation     # all of them, three seeds each, and the table

What follows the colon is one of `VARIANTS`; those of a group differ in one thing. Each is the
quickstart's recipe for as many steps as take at most four minutes on one CPU core, the same number
in a group; groups differ in more, and do not compare (nor do the paper's). As in the paper the
X-encoder is frozen; here it is as it was drawn, which docs/results.md shows to be enough for this
world, and sees what that of configs/v_jepa_2/world.py sees. What differs beside that and the size:
the predictor starts at random, and the rate falls by a half cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.vl_jepa import quickstart_long
from jepa.errors import UserError

# The Y-encoder is MiniLM in the place of EmbeddingGemma, 384 numbers wide.
_WIDTH = 384

# (b) The rate of a Y-encoder that is trained. Its texts cost more than all else, so there is one
# for each clip. At 0 its features are computed once, which is the same and quicker.
_RATES: dict[str, Any] = {
    "model.y_encoder.frozen": False,
    "model.y_encoder.cache_features": False,
    "data.pairs_per_clip": 1,
    "data.text_length": 24,  # no text of the world is longer
    "train.steps": 80,
}
# (c) The Y-encoder is frozen and has no head, so that no loss can be met by making all texts alike.
_LOSSES: dict[str, Any] = {
    "model.y_encoder.head": False,
    "model.shared_dim": _WIDTH,
    "train.steps": 300,
}
_REGRESSION = {**_LOSSES, "loss.info_nce": 0.0, "loss.regression": 1.0}
# (d) The Y-encoder is frozen and has a head, as in the quickstart.
_PREDICTORS: dict[str, Any] = {
    "model.predictor.depth": 2,
    "data.pairs_per_clip": 1,
    "train.steps": 200,
}

# (e) Y-encoders. The paper's are published ones, of which one comes with this library; the other is
# trained from a random start on the world's own words, which has to be at the full rate.
_TOWERS: dict[str, Any] = {"data.text_length": 24, "train.steps": 200}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    **{
        f"rate_{rate}": {**_RATES, "model.y_encoder.learning_rate_factor": float(rate)}
        for rate in ("1", "0.1", "0.05", "0.01")
    },
    "rate_0": {**_RATES, "model.y_encoder.frozen": True, "model.y_encoder.cache_features": True},
    "info_nce": _LOSSES,
    **{kind: {**_REGRESSION, "loss.regression_kind": kind} for kind in ("cosine", "l1", "l2")},
    "depth_1": {**_PREDICTORS, "model.predictor.depth": 1},
    "depth_2": _PREDICTORS,
    "depth_4": {**_PREDICTORS, "model.predictor.depth": 4},
    "causal": {**_PREDICTORS, "model.predictor.causal": True},
    "minilm": _TOWERS,
    "scratch": {
        **_TOWERS,
        "model.y_encoder.tower": "transformer",
        "model.y_encoder.frozen": False,
        "model.y_encoder.cache_features": False,
        "model.y_encoder.learning_rate_factor": 1.0,
        "data.tokenizer": "dataset",
    },
}


def get_config(variant: str = "rate_0.05") -> ConfigDict:
    """Returns the config of a variant in `VARIANTS`."""
    if variant not in VARIANTS:
        raise UserError(
            f"configs/vl_jepa/ablation.py has no variant {variant!r}; use one of "
            f"{', '.join(VARIANTS)}"
        )
    config = quickstart_long.get_config("random_frozen")
    # Muon makes the updates of the blocks that start at random orthogonal; MiniLM's get Adam's.
    config.optimizer.muon_matrices = tuple(
        (f"(x_encoder|predictor)/{pattern}", inputs, outputs)
        for pattern, inputs, outputs in config.optimizer.muon_matrices
    )
    config.update_from_flattened_dict(VARIANTS[variant])
    config.optimizer.warmup_steps = 20
    config.train.save_every = 0
    config.evaluation.controls = False
    with config.evaluation.ignore_type():
        for task in ("hard", "novel"):
            config.evaluation[task] = None
    return config
