"""The batches of a config, as shapes alone: no dataset, no tokenizer, no file is touched.

What the loader gives (`TrainLoader.element_spec`) follows from the config, so that a program can be
compiled for a pod where there is no data.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jepa.data.clips import planes
from jepa.data.config import DataConfig
from jepa.data.joint import STREAM, images_config
from jepa.masks import config as masks_config


def batch_spec(config: DataConfig, rows: int) -> dict[str, Any]:
    """Returns `jax.ShapeDtypeStruct` of every array of a batch of `rows` clips.

    Texts are token ids and clips are frames, also where features of them would be read instead.

    Raises:
      UserError: masks that the grid of tokens cannot hold, or images without a number.
    """
    found = _stream(config, rows)
    if config.images:
        images, count = images_config(config)
        found[STREAM] = _stream(images, count)
    return found


def _stream(config: DataConfig, rows: int) -> dict[str, Any]:
    video = {name: _array((rows, *shape), dtype) for name, (shape, dtype) in planes(config).items()}
    found: dict[str, Any] = {"video": video.get("rgb", video)}
    if "text" in config.streams:
        pairs = rows * config.pairs_per_clip
        found["query"] = _tokens(pairs, config.query_length)
        found["text"] = {**_tokens(pairs, config.text_length), "hash": _array((pairs,), "int32")}
    if "label" in config.streams:
        found["label"] = _array((rows,), "int32")
    if "masks" in config.streams:
        masks = masks_config.from_config(config.masks, config.grid, "data.masks").spec(rows)
        found["masks"] = _arrays(masks)
    return found


def _tokens(rows: int, length: int) -> dict[str, Any]:
    return {"ids": _array((rows, length), "int32"), "mask": _array((rows, length), "bool")}


def _arrays(spec: Any) -> Any:
    if isinstance(spec, dict):
        return {name: _arrays(inner) for name, inner in spec.items()}
    return _array(*spec)


def _array(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
