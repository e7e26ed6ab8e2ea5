"""VL-JEPA on a dataset of your own, made by `experiments.prepare_data` with two splits.

    python -m experiments.train --config=configs/vl_jepa/own_data.py --config.data.path=DIR \
        --workdir=runs/mine

The quickstart's model on larger frames (short side to 96 pixels, the middle cut out), with
MiniLM's tokenizer on both sides, so that no vocabulary has to be known. Evaluation looks captions
up among those of the split `validation`; a dataset with class labels, questions with candidates or
groups can have more of it, see `jepa.evaluation.suite.default_evaluation`.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.vl_jepa import quickstart


def get_config() -> ConfigDict:
    """Returns the config; `data.path` has to be given."""
    config = quickstart.get_config()
    config.data.path = placeholder(str)
    config.data.size = 96
    config.data.pixels = "rgb"  # any video: other colours than 4:2:0, odd sizes
    config.data.cache = "none"  # decode as it goes; "disk" pays for some thousand short clips
    config.data.pairs_per_clip = 1
    config.data.query_tokenizer = "minilm"
    config.data.query_length = 16
    config.model.x_encoder.patch = 12  # as many tokens as the quickstart has
    config.model.predictor.vocab = 30_522  # MiniLM's
    with config.evaluation.ignore_type():
        for task in ("zero_shot", "questions", "hard", "novel"):
            config.evaluation[task] = None
    config.evaluation.retrieval.level = (
        ""  # a manifest's column `caption`; LEVEL of `caption.LEVEL`
    )
    config.evaluation.controls = False
    config.evaluation.bars = ()
    return config
