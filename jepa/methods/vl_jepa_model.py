"""VL-JEPA's configuration: defaults, and the predictor that it describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jepa.interop import starting
from jepa.methods import x_encoders
from jepa.models.vl_jepa import Predictor
from jepa.nn.rotary import LongContext

_WEIGHTS = "config.model.predictor.weights"
# Keys of the predictor's section that are no fields of the module.
_NO_FIELDS = ("weights", "layers", "frozen_table")


def default_model() -> ConfigDict:
    """The `model` section with its defaults: a small model for 64-pixel clips."""
    return ConfigDict(
        {
            "shared_dim": 256,
            "x_encoder": x_encoders.default(),
            "predictor": {
                "width": 256,
                "depth": 2,
                "heads": 4,
                "kv_heads": 4,
                "mlp_width": 704,
                "vocab": 1024,
                "pool": "all",
                "causal": False,
                "theta": 10000.0,
                # Llama 3's rescaling of slow frequencies; none at factor 1.
                "scaling": {"factor": 1.0, "low": 1.0, "high": 4.0, "original_length": 8192},
                "eps": 1e-5,
                "remat": "none",
                # Directory of a Llama to start from; "" for a random start.
                "weights": "",
                # Which of its layers: the first and the one behind the last; () for all.
                "layers": (),
                "frozen_table": False,
            },
            "y_encoder": {
                # A name in `text_towers.TOWERS`, or "transformer", trained from scratch.
                "tower": "minilm",
                # Directory of its weights; "" for a random start, or MiniLM's own package.
                "weights": "",
                # EmbeddingGemma's two maps behind the mean.
                "dense_layers": True,
                "remat": "none",
                "frozen": True,
                # Embed every training text once before the first step; for a frozen tower.
                "cache_features": True,
                "learning_rate_factor": 0.05,
                # The linear map into the shared space; without it `shared_dim` is the tower's
                # width, as where the paper compares losses.
                "head": True,
                "head_learning_rate_factor": 1.0,
                # Sizes of the "transformer" tower; the others bring their own.
                "vocab": 1024,
                "width": 256,
                "depth": 2,
                "heads": 4,
            },
        }
    )


def make_predictor(model: ConfigDict, types: Mapping[str, Any]) -> Predictor:
    """Returns the predictor of the section `model`.

    Args:
      model: as `default_model` gives it.
      types: `dtype` and `param_dtype`.
    """
    fields = dict(model.predictor)
    for key in _NO_FIELDS:
        del fields[key]
    scaling = LongContext(**fields.pop("scaling"))
    return Predictor(
        **fields,
        scaling=scaling if scaling.factor != 1.0 else None,
        features=model.shared_dim,
        **types,
    )


def predictor_weights(config: ConfigDict, predictor: Predictor) -> dict[str, Any]:
    """Returns the weights of a Llama for parts of the predictor, by their names in it.

    Args:
      config: the section `model.predictor`.
      predictor: made of it.

    Returns:
      `table` and `llama`, nested dicts of `loading.Pending`; nothing where no weights are named.

    Raises:
      UserError: there are none, or the config describes another network.
    """
    if not config.weights:
        return {}
    start = starting.find_llama(config.weights, tuple(config.layers), _WEIGHTS)
    theirs = start.fields["stack"]
    same = ("width", "depth", "heads", "kv_heads", "mlp_width", "theta", "eps")
    pairs = {
        f"config.model.predictor.{name}": (getattr(predictor, name), theirs[name]) for name in same
    }
    pairs["config.model.predictor.vocab"] = (predictor.vocab, start.fields["vocab"])
    pairs["config.model.predictor.scaling"] = (_plain(predictor.scaling), theirs["scaling"])
    pairs["head_dim"] = (predictor.width // predictor.heads, theirs["head_dim"])
    starting.agree(start, _WEIGHTS, pairs)
    return {name: start.params[name] for name in ("table", "llama")}


def _plain(scaling: LongContext | None) -> dict[str, Any] | None:
    return None if scaling is None else dataclasses.asdict(scaling)
