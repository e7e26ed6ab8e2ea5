"""Random views of images and clips, drawn on the device: crops at several scales, colours, blur.

A host decodes an image once and sends it once, whatever the number of views; the draws are a
function of a key. Cropping, resizing, mirroring and blurring are linear along each axis, so a view
is `rows @ image @ columns`, two matrix products that accelerators like and that XLA fuses with the
colour operations.

What differs from torchvision, on which published recipes stand: a crop need not begin at a whole
pixel; its area is always the one that was drawn (there a crop that does not fit is drawn again, so
that large ones are rarer); colours are moved in one order, not in a random one; a blur is not cut
off after a few pixels. Crops are taken from what the loader sends, which is a square.

B images or clips, T frames, V views, H W pixels of an image, S pixels of a view's side.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jepa.errors import UserError

_GREY = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Colours:
    """How colours are moved, and blurred. The defaults do nothing.

    Attributes:
      jitter: share of views whose colours are moved, by at most:
      brightness, contrast, saturation: factors within 1 plus or minus these.
      hue: turns of the colour circle, plus or minus.
      grey: share of views without colour.
      blur: share of views that are blurred.
      blur_sigma: smallest and largest standard deviation of the blur, in pixels of the view.
      solarise: share of views whose bright half is inverted.
    """

    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    @property
    def move(self) -> bool:
        """Whether colours are ever moved."""
        return bool(self.jitter or self.grey or self.solarise)

    def check(self, section: str) -> None:
        """Checks ranges.

        Args:
          section: of the config that these come from, for the message.

        Raises:
          UserError: a number out of its range.
        """
        self._demand_range(section, "blur_sigma", math.inf, "give (low, high) above 0")
        for key in ("jitter", "grey", "blur", "solarise"):
            holds = 0 <= getattr(self, key) <= 1
            self._demand(section, holds, key, "give a share between 0 and 1")
        for key in ("brightness", "contrast", "saturation", "hue"):
            self._demand(section, getattr(self, key) >= 0, key, "give a number of at least 0")

    def _demand_range(self, section: str, key: str, most: float, mend: str) -> None:
        pair = getattr(self, key)
        holds = len(pair) == 2 and 0 < pair[0] <= pair[1] <= most
        self._demand(section, holds, key, mend)

    def _demand(self, section: str, holds: bool, key: str, mend: str) -> None:
        if not holds:
            raise UserError(f"config.{section}.{key} is {getattr(self, key)!r}; {mend}")


@dataclasses.dataclass(frozen=True)
class Views(Colours):
    """What views are like. The defaults are crops and mirrors alone.

    Attributes:
      count: V, views of an image.
      size: S.
      scale: smallest and largest share of the image's area that is cropped.
      ratio: smallest and largest ratio of a crop's width to its height.
      flip: share of views that are mirrored.
    """

    count: int
    size: int
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def check(self, section: str) -> None:
        """As `Colours.check`."""
        super().check(section)
        self._demand(section, self.count >= 0, "count", "give a number of views of at least 0")
        self._demand(section, self.size >= 1, "size", "give a number of pixels of at least 1")
        shares = "give (low, high) shares of the area within (0, 1]"
        self._demand_range(section, "scale", 1, shares)
        self._demand_range(section, "ratio", math.inf, "give (low, high) above 0")
        self._demand(section, 0 <= self.flip <= 1, "flip", "give a share between 0 and 1")


def draw_views(key: jax.Array, images: jax.Array, views: Views) -> jax.Array:
    """Draws views of images.

    Args:
      key: of all draws; fold the step into it.
      images: RGB `[B, H, W, 3]` in 0..1.
      views: what they are like.

    Returns:
      `[B, V, S, S, 3]` in 0..1.
    """

    def view(key: jax.Array, image: jax.Array) -> jax.Array:
        crop, colour = jax.random.split(key)
        return move_colours(colour, _crop(crop, image, views), views)

    keys = jax.random.split(key, (images.shape[0], views.count))
    return jax.vmap(jax.vmap(view, (0, None)))(keys, images)


def colour_clips(key: jax.Array, clips: jax.Array, colours: Colours) -> jax.Array:
    """Moves the colours of clips, and blurs them: one draw for all frames of a clip.

    Args:
      key: of all draws; fold the step into it.
      clips: RGB `[B, T, H, W, 3]` in 0..1.
      colours: how. Contrast is about the mean luminance of the clip.

    Returns:
      The same shape, in 0..1.
    """

    def one(key: jax.Array, clip: jax.Array) -> jax.Array:
        colour, blur = jax.random.split(key)
        _, height, width, _ = clip.shape
        # All frames below one another are one image.
        moved = move_colours(colour, clip.reshape(-1, width, 3), colours).reshape(clip.shape)
        if not colours.blur:
            return moved
        chosen, place = jax.random.uniform(blur, (2,), clip.dtype)
        least, most = colours.blur_sigma
        sigma = least + place * (most - least)
        rows, columns = (
            jnp.where(
                chosen < colours.blur, blur_weights(size, sigma), jnp.eye(size, dtype=clip.dtype)
            )
            for size in (height, width)
        )
        return jnp.einsum("yh,thwc,xw->tyxc", rows, moved, columns)

    return jax.vmap(one)(jax.random.split(key, clips.shape[0]), clips)


def _crop(key: jax.Array, image: jax.Array, views: Views) -> jax.Array:
    """A random crop of `[H, W, 3]`, resized to `[S, S, 3]`, mirrored and blurred at random."""
    height, width, _ = image.shape
    area, ratio, top, left, flip, blur, sigma = jax.random.uniform(key, (7,), image.dtype)
    area = (views.scale[0] + area * (views.scale[1] - views.scale[0])) * height * width
    # Only ratios whose crop fits. On a long image there may be none: the nearest is cut to fit.
    log_ratio = jnp.stack([jnp.log(area / height**2), jnp.log(width**2 / area)])
    low, high = jnp.clip(log_ratio, *map(math.log, views.ratio))
    ratio = jnp.exp(low + ratio * (high - low))
    high_pixels = jnp.minimum(jnp.sqrt(area / ratio), height)
    wide_pixels = jnp.minimum(jnp.sqrt(area * ratio), width)
    rows = _resize(height, views.size, top * (height - high_pixels), high_pixels)
    columns = _resize(width, views.size, left * (width - wide_pixels), wide_pixels)
    columns = jnp.where(flip < views.flip, columns[::-1], columns)
    if views.blur:
        least, most = views.blur_sigma
        blurred = blur_weights(views.size, least + sigma * (most - least))
        keep = jnp.eye(views.size, dtype=image.dtype)
        matrix = jnp.where(blur < views.blur, blurred, keep)
        rows, columns = matrix @ rows, matrix @ columns
    return jnp.einsum("yh,hwc,xw->yxc", rows, image, columns)


def _resize(count: int, size: int, start: jax.Array, length: jax.Array) -> jax.Array:
    """`[size, count]` weights: each output is a mean of inputs in a triangle around its place.

    The triangle is as wide as an output (antialiasing), and no narrower than two inputs (which is
    bilinear interpolation); outside the crop, and so outside the image, nothing counts.
    """
    step = length / size
    centre = start + (jnp.arange(size, dtype=start.dtype)[:, None] + 0.5) * step - 0.5
    place = jnp.arange(count, dtype=start.dtype)
    weights = jnp.maximum(1 - jnp.abs(place - centre) / jnp.maximum(step, 1.0), 0)
    inside = (place > start - 1) & (place < start + length)
    weights = jnp.where(inside, weights, 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def blur_weights(size: int, sigma: jax.Array) -> jax.Array:
    """`[size, size]` weights of a Gaussian blur; at the border what is there counts more."""
    place = jnp.arange(size, dtype=sigma.dtype)
    weights = jnp.exp(-(((place[:, None] - place) / sigma) ** 2) / 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def move_colours(key: jax.Array, image: jax.Array, views: Colours) -> jax.Array:
    """Colours of `[H, W, 3]` moved at random, always in the order of the fields of `Colours`.

    Contrast is about the mean luminance of what is given.
    """
    if not views.move:
        return image
    chosen = jax.random.uniform(key, (7,), image.dtype)
    strength = 2 * chosen[:4] - 1
    moved = jnp.clip(image * (1 + views.brightness * strength[0]), 0, 1)
    mean = jnp.mean(_luminance(moved))
    moved = jnp.clip(mean + (moved - mean) * (1 + views.contrast * strength[1]), 0, 1)
    grey = _luminance(moved)
    moved = jnp.clip(grey + (moved - grey) * (1 + views.saturation * strength[2]), 0, 1)
    moved = jnp.clip(_turn_hue(moved, views.hue * strength[3]), 0, 1)
    image = jnp.where(chosen[4] < views.jitter, moved, image)
    image = jnp.where(chosen[5] < views.grey, _luminance(image), image)
    inverted = jnp.where(image >= 0.5, 1 - image, image)
    return jnp.where(chosen[6] < views.solarise, inverted, image)


def _luminance(image: jax.Array) -> jax.Array:
    """`[S, S, 1]`."""
    return jnp.sum(image * jnp.asarray(_GREY, image.dtype), axis=-1, keepdims=True)


def _turn_hue(image: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns colours around the grey axis, by `turns` of a circle; luminance is not kept exactly.

    A rotation of RGB around (1, 1, 1). Published recipes turn the hue of HSV, which is the same
    circle with corners.
    """
    angle = 2 * jnp.pi * turns
    c, s = jnp.cos(angle), jnp.sin(angle)
    third, root = (1 - c) / 3, s / jnp.sqrt(jnp.asarray(3, image.dtype))
    a, b, d = c + third, third - root, third + root
    matrix = jnp.stack([jnp.stack([a, b, d]), jnp.stack([d, a, b]), jnp.stack([b, d, a])])
    return image @ matrix.T
