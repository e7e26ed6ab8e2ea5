"""From the bytes of a batch to the numbers a network reads, on the device.

B batch, T frames, H W pixels. Frames travel as uint8 because that is a quarter of the traffic; the
conversion costs one fused pass on the device.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jepa.parallel.attention import platform

Video = jax.Array | np.ndarray | Mapping[str, jax.Array | np.ndarray]

# The statistics of ImageNet's RGB pixels in 0..1, which all published JEPA encoders expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Mean and deviation by the name a config uses; "half" maps 0..1 to -1..1 (ViT, SigLIP).
NORMALISATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (MEAN, STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

# BT.601, limited range: luma 16..235, chroma 16..240 around 128. Kr = 0.299, Kb = 0.114.
_KR, _KB = 0.299, 0.114
_KG = 1.0 - _KR - _KB


def frames_shape(video: Video) -> tuple[int, int, int, int]:
    """Returns `(B, T, H, W)` of a video stream in either of its two forms."""
    batch, frames, height, width = (video["y"] if isinstance(video, Mapping) else video).shape[:4]
    return batch, frames, height, width


def yuv_to_rgb(y: jax.Array, uv: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Converts 4:2:0 frames (BT.601, limited range) to RGB in 0..1.

    Args:
      y: uint8 `[B, T, H, W]`.
      uv: uint8 `[B, T, H/2, W/2, 2]`, the chroma planes Cb and Cr; each sample serves its four
        pixels.
      dtype: of the result.

    Returns:
      `[B, T, H, W, 3]`, clipped to 0..1.
    """
    luma = (y.astype(dtype) - 16.0) / 219.0
    chroma = (uv.astype(dtype) - 128.0) / 224.0
    # The colour offsets are mixed at the chroma planes' quarter size, then spread.
    cb, cr = chroma[..., 0], chroma[..., 1]
    red = 2 * (1 - _KR) * cr
    blue = 2 * (1 - _KB) * cb
    green = -(_KR * red + _KB * blue) / _KG
    if platform() == "tpu":
        # Planes until the end: a last dimension of two or three, as in the form below, is filled up
        # to a tile's 128 lanes, and 64 frames of 384 pixels take 7 GiB.
        wide = (jnp.repeat(jnp.repeat(x, 2, axis=-1), 2, axis=-2) for x in (red, green, blue))
        return jnp.stack([jnp.clip(luma + x, 0.0, 1.0) for x in wide], axis=-1)
    offsets = jnp.stack([red, green, blue], axis=-1)
    batch, frames, rows, columns, _ = offsets.shape
    offsets = jnp.broadcast_to(
        offsets[:, :, :, None, :, None, :], (batch, frames, rows, 2, columns, 2, 3)
    ).reshape(batch, frames, 2 * rows, 2 * columns, 3)
    return jnp.clip(luma[..., None] + offsets, 0.0, 1.0)


def to_rgb(video: Video, dtype="float32") -> jax.Array:
    """Turns a batch's video stream into RGB in 0..1.

    Args:
      video: uint8 `[B, T, H, W, 3]`, or `{"y": uint8 [B, T, H, W], "uv": uint8 [B, T, H/2, W/2,
        2]}` (4:2:0, BT.601, limited range).
      dtype: of the result; float32 or wider.

    Returns:
      `[B, T, H, W, 3]`.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    if isinstance(video, Mapping):
        return yuv_to_rgb(jnp.asarray(video["y"]), jnp.asarray(video["uv"]), wide)
    return jnp.asarray(video).astype(wide) / 255.0


def normalise(rgb: jax.Array, dtype="float32", normalisation: str = "imagenet") -> jax.Array:
    """RGB `[..., 3]` in 0..1 less a mean over a standard deviation, in `dtype`.

    Args:
      rgb: the pixels.
      dtype: of the result.
      normalisation: a name in `NORMALISATIONS`.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    mean, std = (jnp.asarray(values, wide) for values in NORMALISATIONS[normalisation])
    return ((rgb - mean) / std).astype(dtype)


def to_float(video: Video, dtype="float32", normalisation: str = "imagenet") -> jax.Array:
    """Turns a batch's video stream into what networks read: `normalise(to_rgb(video))`."""
    return normalise(to_rgb(video, dtype), dtype, normalisation)
