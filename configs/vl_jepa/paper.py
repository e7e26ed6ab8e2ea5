"""VL-JEPA by the paper's recipe (arXiv 2512.10942 v2, ICLR 2026), from published weights.

    export JEPA_WEIGHTS=DIR     # with the three directories of WEIGHTS
    python -m experiments.train --config=configs/vl_jepa/paper.py:stage_1 --workdir=runs/vl_jepa
    python -m experiments.train --config=configs/vl_jepa/paper.py:stage_2 --workdir=runs/vl_jepa

What follows the colon is the last stage to train: `stage_1` (images), `stage_2` (8 frames),
`stage_3` (32 frames), `sft` (questions; the default). The stages are phases of one run, so that in
a workdir where the stages before are done only the new one is trained. docs/vl_jepa.md goes through
it, with a table of all that the paper leaves open.

Frames, batches, steps and rates of the stages before SFT are not in the paper, which refers to the
Action100M paper (arXiv 2601.10592); here they are from a summary of that one. They fit the paper:
with its 3.3 billion samples of pretraining and 3.6 with SFT.
"""

from __future__ import annotations

import copy
from typing import Any

from ml_collections import ConfigDict

from jepa.data.config import default_data_config
from jepa.errors import UserError
from jepa.evaluation.suite import default_evaluation
from jepa.methods.vl_jepa import default_loss, default_model
from jepa.models.llama import LLAMAS, VOCAB
from jepa.models.vit import VITS
from jepa.training.config import (
    default_mesh_config,
    default_optimizer_config,
    default_train_config,
)

# Published directories, or what `experiments.convert` made of them, below JEPA_WEIGHTS.
WEIGHTS = {
    "x_encoder": "vjepa2-vitl-fpc64-256",
    "predictor": "Llama-3.2-1B",
    "y_encoder": "embeddinggemma-300m",
}
LAYERS = (8, 16)  # of Llama-3.2-1B's sixteen; table 7 (d) has it better with all, (0, 16)

_ACTION100M: dict[str, Any] = {
    "mixture": (("data/action100m", 1.0),),
    # The set's four fields, detailed ones half as often. Captions of segments by PLM-3B are a fifth
    # level, whose weight is not stated.
    "caption_weights": {"detailed_action": 0.5, "detailed_caption": 0.5},
}
# By section, so that a flag can reach each: --config.phases[2].train.gradient_cache=True.
STAGES: dict[str, dict[str, Any]] = {
    "stage_1": {
        "steps": 100_000,
        "train": {"global_batch": 24_576},
        "data": {
            "frames": 1,
            # Not stated: how often each set is drawn. Here by their sizes.
            "mixture": (("data/datacomp_1b", 0.93), ("data/yfcc100m", 0.07)),
            "caption_weights": {},  # all alike
        },
        # 512 KiB an image: 640 TB for these samples, were each image read twice.
        "model": {"x_encoder": {"cache_features": False}},
        # Not stated: whether there is a warm-up. New projections and a new head meet pretrained
        # towers, whose first gradients would be noise at the full rate.
        "optimizer": {"warmup_steps": 2_000},
    },
    "stage_2": {
        "steps": 60_000,
        "train": {"global_batch": 12_288},
        "data": {"frames": 8, **_ACTION100M},
        # The rate of the stage before goes on.
        "optimizer": {"warmup_steps": 0},
    },
    "stage_3": {
        "steps": 10_000,
        "train": {
            # 3,072 examples four times, and one update.
            "global_batch": 12_288,
            "accumulate": 4,
            # Not stated: what an example is compared with. Accumulation as it is commonly meant
            # leaves it the 3,072 of its micro-batch; True compares with all 12,288 for one more
            # forward pass.
            "gradient_cache": False,
        },
        "data": {"frames": 32, **_ACTION100M},
        # Here the sources differ. v2 of the paper has the X-encoder frozen throughout; the summary
        # of the Action100M paper trains it in this stage, and the same headline row (52.5) stands
        # in both papers. It has the stage's own rate, which for the X-encoder is not stated. To
        # stay with v2: frozen=True, and cache_features=True if there is room.
        "model": {
            "x_encoder": {"frozen": False, "cache_features": False, "learning_rate_factor": 1.0}
        },
        # The X-encoder's moments begin here.
        "optimizer": {"warmup_steps": 500},
    },
    "sft": {
        "steps": 83_000,
        "train": {"global_batch": 3_072},
        "data": {
            # Not stated: frames, and whether the X-encoder is trained. The mix is mostly images,
            # which stand still for a clip and cost as much as one; v2 calls the X-encoder frozen.
            "frames": 8,
            # Millions of examples; how much pretraining data is kept is not stated.
            "mixture": (
                ("data/plm_questions", 25.0),
                ("data/plm_captions", 2.8),
                ("data/plm_classes", 1.8),
                ("data/action100m", 3.0),
            ),
            "caption_weights": {},
            "tasks": {"caption": 1.0, "question": 1.0},
            "query_length": 512,
            "caption_query": (),  # those of each dataset
        },
        "model": {"x_encoder": {"frozen": True}},
        # Not stated: the peak, the warm-up and the end.
        "optimizer": {
            "schedule": "cosine",
            "learning_rate": 5e-5,
            "warmup_steps": 1_000,
            "final_factor": 0.0,
        },
    },
}


def get_config(stage: str = "sft") -> ConfigDict:
    """Returns the config of the stages up to one of `STAGES`."""
    if stage not in STAGES:
        raise UserError(
            f"configs/vl_jepa/paper.py has no stage {stage!r}; use one of {', '.join(STAGES)}"
        )
    names = list(STAGES)[: list(STAGES).index(stage) + 1]
    config = ConfigDict()
    config.seed = 0
    config.method = "jepa.methods.vl_jepa.VLJEPA"
    config.dtype = "bfloat16"  # EmbeddingGemma's activations leave the range of float16
    config.mesh = default_mesh_config()
    config.mesh.update(data=1, fsdp=-1)
    config.data = _data()
    config.model = _model()
    config.loss = _loss()
    config.optimizer = _optimizer()
    config.train = default_train_config()
    config.train.update(log_every=100, save_every=1_000)
    config.train.global_batch = STAGES["stage_1"]["train"]["global_batch"]
    config.phases = tuple({"name": name, **copy.deepcopy(STAGES[name])} for name in names)
    config.train.steps = sum(STAGES[name]["steps"] for name in names)
    config.evaluation = _evaluation()
    return config


def _data() -> ConfigDict:
    data = default_data_config()
    data.mixture = STAGES["stage_1"]["data"]["mixture"]
    data.frames = STAGES["stage_1"]["data"]["frames"]
    data.size = 256
    # Frames evenly over the clip. No augmentation is stated, so each clip has one view, and
    # features of it can be kept.
    data.sampling = "uniform"
    data.crop = "none"
    data.tokenizer = WEIGHTS["y_encoder"]
    data.query_tokenizer = WEIGHTS["predictor"]
    # Not stated: whether texts get one of EmbeddingGemma's prompts; "document" is another choice.
    data.text_prompt = ""
    data.text_length = 512  # EmbeddingGemma's context in the paper; a shorter one costs less
    # Pretraining is "query-free", which may be an empty query or a fixed one ("Describe the
    # video."). Empty, it is the one token with which Llama's tokenizer begins every text, and the
    # length does not matter: pads count for nothing. SFT has the paper's 512.
    data.caption_query = ("",)
    data.query_length = 8
    data.tasks = {"caption": 1.0, "question": 0.0}
    data.workers = 16
    return data


def _model() -> ConfigDict:
    model = default_model()
    model.shared_dim = 1536
    # V-JEPA 2's released weights were trained with "tiled" rotary positions.
    model.x_encoder.update(
        VITS["large"],
        patch=16,
        tubelet=2,
        rope="tiled",
        remat="full",
        weights=WEIGHTS["x_encoder"],
        frozen=True,
        # Of stage 2 and SFT, 2 MiB a clip of 8 frames: ten million clips take 21 TB, and free room
        # is checked first. False where there is none.
        cache_features=True,
    )
    sizes = {**LLAMAS["llama-3.2-1b"], "depth": LAYERS[1] - LAYERS[0], "vocab": VOCAB}
    long_context = sizes.pop("scaling")
    del sizes["head_dim"]  # width / heads
    model.predictor.update(
        **sizes,
        causal=False,
        # The paper averages over tokens that are no pads; "query" leaves the visual ones out.
        pool="all",
        remat="full",
        weights=WEIGHTS["predictor"],
        layers=LAYERS,
        # Not stated. Its 262.7 million are not among the paper's 490 million trainable ones.
        frozen_table=True,
    )
    model.predictor.scaling.factor = long_context.factor
    model.y_encoder.update(
        tower="embedding_gemma",
        weights=WEIGHTS["y_encoder"],
        # Not stated: whether the two maps behind the mean are used. They are part of the published
        # embedding, and 4.7 of its 307.6 million parameters.
        dense_layers=True,
        remat="full",
        frozen=False,
        # "All text encoder parameters". Whether that includes the head is not stated; it starts at
        # random, so here it learns at the full rate.
        learning_rate_factor=0.05,
        head_learning_rate_factor=1.0,
    )
    return model


def _loss() -> ConfigDict:
    loss = default_loss()  # InfoNCE both ways
    # Not stated: its value, and whether it is learnt. CLIP's choice.
    loss.temperature = 0.07
    loss.learnable_temperature = True
    loss.maximum_inverse_temperature = 100.0
    # Not stated. "yes" stands in a batch of SFT hundreds of times, and is no negative of itself.
    loss.equal_targets = "masked"
    return loss


def _optimizer() -> ConfigDict:
    optimizer = default_optimizer_config()
    optimizer.learning_rate = 5e-5
    optimizer.schedule = "constant"
    # None of the rest is stated. A short memory of squares is steadier in large batches; at this
    # rate a decay of .01 takes 8 % off a weight that nothing pulls, over 170,000 steps.
    optimizer.name = "adamw"
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 1.0
    optimizer.warmup_steps = 0
    return optimizer


def _evaluation() -> ConfigDict:
    """Captions looked up in the split `validation` of a stage's first dataset."""
    evaluation = default_evaluation()
    evaluation.retrieval.level = ""
    evaluation.controls = False
    with evaluation.ignore_type():
        for task in ("zero_shot", "questions", "hard", "novel"):
            evaluation[task] = None
    return evaluation
