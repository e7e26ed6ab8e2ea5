"""VL-JEPA's X-encoders: a video transformer, or an image tower that sees frames one by one.

B clips, T frames, H W pixels, N visual tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jepa.errors import UserError
from jepa.interop import parameters
from jepa.models.image_tower import ImageTower
from jepa.models.vit import VideoTransformer
from jepa.nn.frames import NORMALISATIONS, to_float

XEncoder = VideoTransformer | ImageTower

# Class by `config.model.x_encoder.kind`.
KINDS: Mapping[str, Any] = {"video": VideoTransformer, "image": ImageTower}
# Fields that change what an encoder computes and the shape of no parameter.
FUNCTION: Mapping[str, tuple[str, ...]] = {
    "video": ("heads", "rope", "positions", "table_grid", "pretrain_grid", "gelu"),
    "image": (
        "heads",
        "table_grid",
        "gelu",
        "class_token",
        "registers",
        "layer_scale",
        "gated",
        "eps",
        "resize",
        "normalisation",
        "temporal",
    ),
}
_KEY = "config.model.x_encoder"
# Keys of the section that are no fields of a module.
_NO_FIELDS = ("kind", "weights", "frozen", "learning_rate_factor", "cache_features", "cache_dtype")


def default() -> dict[str, Any]:
    """The section `model.x_encoder` with its defaults."""
    return {
        # "video", or "image": frames one by one through a `models.image_tower.ImageTower`.
        "kind": "video",
        "patch": 16,
        "width": 256,
        "depth": 4,
        "heads": 4,
        "mlp_ratio": 4.0,
        # What V-JEPA's and I-JEPA's weights have, and every image tower: tubelets (1 of images),
        # rows and columns.
        "table_grid": (),
        "gelu": "exact",
        "remat": "none",
        # Of kind "video" alone.
        "tubelet": 2,
        "rope": "rotation",
        "positions": "none",
        "pretrain_grid": placeholder(int),  # 16 for V-JEPA 2.1's
        "taps": (),  # as in 2.1's, whose norms of them are loaded too
        "image_tokenizer": False,
        # Of kind "image" alone; `models.image_tower.IMAGE_TOWERS` has them for published towers.
        "class_token": False,
        "registers": 0,
        "layer_scale": False,
        "gated": False,
        "eps": 1e-6,
        "resize": "cubic",
        "normalisation": "imagenet",
        # Or "sincos": the frame's number, added to its tokens. Without it they are the published
        # tower's, and the predictor's rotary positions tell their order.
        "temporal": "none",
        # File of `experiments.export`, directory of `experiments.convert` or published
        # directory to start from (docs/weights.md); "" for a random start.
        "weights": "",
        "frozen": False,
        "learning_rate_factor": 1.0,  # where it is trained
        # Encode every training clip once, in `cache_dtype`, before the first step; for a
        # frozen encoder and one view of each clip.
        "cache_features": False,
        "cache_dtype": "float16",
    }


def make(config: ConfigDict, types: Mapping[str, Any]) -> XEncoder:
    """Returns the X-encoder that the section `model.x_encoder` describes.

    Args:
      config: the section.
      types: `dtype` and `param_dtype`.

    Raises:
      UserError: there is no such kind or normalisation, a key is set that this kind has no use for,
        or an image tower has no table of positions.
    """
    if config.kind not in KINDS:
        raise UserError(f"{_KEY}.kind is {config.kind!r}; it can be {' or '.join(KINDS)}")
    module = KINDS[config.kind]
    known = {field.name for field in dataclasses.fields(module)}
    fields = {name: value for name, value in config.items() if name in known}
    usual = ConfigDict(default())
    for name in config:
        if name not in known and name not in _NO_FIELDS and config[name] != usual[name]:
            raise UserError(
                f"{_KEY}.{name} is {config[name]!r}, for which kind={config.kind!r} has no use; "
                f"leave it at {usual[name]!r}"
            )
    fields["table_grid"] = tuple(fields["table_grid"]) or None
    if config.kind == "image":
        _check_image(fields)
    else:
        fields["taps"] = tuple(fields["taps"])
    made: XEncoder = module(**fields, **types)
    return made


def _check_image(fields: Mapping[str, Any]) -> None:
    grid, normalisation = fields["table_grid"], fields["normalisation"]
    if grid is None or len(grid) != 3 or grid[0] != 1:
        raise UserError(
            f"{_KEY}.table_grid is {grid or ()}, but an image tower learns a table of positions; "
            "name its grid as (1, rows, columns), such as (1, 14, 14) for 224 pixels in patches of "
            "16"
        )
    if normalisation not in NORMALISATIONS:
        raise UserError(
            f"{_KEY}.normalisation is {normalisation!r}; it can be {' or '.join(NORMALISATIONS)}"
        )


def read(encoder: XEncoder, video: Any, dtype: Any) -> jax.Array:
    """Turns a clip stream into the float pixels `[B, T, H, W, 3]` that an encoder takes."""
    if isinstance(encoder, ImageTower):
        return to_float(video, dtype, encoder.normalisation)
    return to_float(video, dtype)


def cell(encoder: XEncoder) -> jax.Array:
    """Returns the smallest clip, from which every shape of the encoder's parameters follows."""
    frames = 1 if isinstance(encoder, ImageTower) else encoder.tubelet
    return jnp.zeros((1, frames, encoder.patch, encoder.patch, 3), jnp.uint8)


def weights(config: ConfigDict, encoder: XEncoder) -> dict[str, Any] | None:
    """Returns the weights that a config names, to be read when their place is known.

    Args:
      config: the section `model.x_encoder`.
      encoder: made of it.

    Raises:
      UserError: they are of another network.
    """
    if not config.weights:
        return None
    clip = read(encoder, cell(encoder), encoder.dtype)
    wanted = jax.eval_shape(encoder.init, jax.random.key(0), clip)["params"]
    fields = {name: getattr(encoder, name) for name in FUNCTION[config.kind]}
    fields["kind"] = config.kind
    return parameters.load_into(config.weights, wanted, fields, f"{_KEY}.weights")
