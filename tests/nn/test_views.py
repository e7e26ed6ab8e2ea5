import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jepa.errors import UserError
from jepa.nn import views as module
from jepa.nn.views import Colours, Views, colour_clips, draw_views

# Compiling is nearly all the time these tests take, and speed is not what they are about.
QUICK = {"xla_backend_optimization_level": 0}


def images(count=2, height=40, width=56):
    """Smooth pictures, so that resampling schemes can be compared: sums of a few waves."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 56
    waves = rng.uniform(-12, 12, (2, 3, count, 3, 1, 1))
    phases = np.sin(waves[0] * y + waves[1] * x + 7 * waves[0])
    return np.moveaxis(phases.mean(0) / 2 + 0.5, 1, -1).astype("float32")


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile(compiler_options=QUICK)


def draw(key, x, views):
    program = compiled(lambda key, x: draw_views(key, x, views), jax.random.key(0), x)
    return np.asarray(program(jax.random.key(key), x))


def test_views_have_their_sizes_and_depend_on_the_key_alone():
    views = Views(count=3, size=8, jitter=0.8, grey=0.2, blur=0.5, solarise=0.2)
    x = images(2, 20, 28)
    program = compiled(lambda key, x: draw_views(key, x, views), jax.random.key(0), x)
    first, again, other = (np.asarray(program(jax.random.key(k), x)) for k in (0, 0, 1))
    assert first.shape == (2, 3, 8, 8, 3) and first.dtype == np.float32
    assert np.isfinite(first).all() and first.min() >= 0 and first.max() <= 1 + 1e-6
    np.testing.assert_array_equal(first, again)
    # No two views are alike, of an image or between keys.
    flat = np.concatenate([first.reshape(6, -1), other.reshape(6, -1)])
    distances = np.abs(flat[:, None] - flat).mean(-1)
    assert distances[~np.eye(12, dtype=bool)].min() > 1e-3


@pytest.mark.parametrize(("size", "box"), [(16, (4, 2, 36, 34)), (64, (10, 5, 30, 25))])
def test_a_crop_is_that_of_pillow(size, box):
    """PIL's bilinear filter is the same triangle; it reads 8 bits, so they differ by a rounding."""
    picture = images(1)[0]
    left, top, right, bottom = box
    rows = module._resize(40, size, jnp.float32(top), jnp.float32(bottom - top))
    columns = module._resize(56, size, jnp.float32(left), jnp.float32(right - left))
    got = np.einsum("yh,hwc,xw->yxc", rows, picture, columns)
    image = Image.fromarray((picture * 255).round().astype("uint8"))
    # PIL looks beyond the border of a box; a picture that ends there it cannot look beyond.
    wanted = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(got * 255, np.asarray(wanted, np.float32), atol=1.6)


def test_the_whole_image_at_its_own_size_is_the_image_or_its_mirror():
    square = images(1, 12, 12)
    drawn = draw(0, square, Views(count=8, size=12, scale=(1.0, 1.0), ratio=(1.0, 1.0)))[0]
    mirrored = np.array([np.abs(v - square[0, :, ::-1]).max() < 1e-5 for v in drawn])
    same = np.array([np.abs(v - square[0]).max() < 1e-5 for v in drawn])
    assert (mirrored ^ same).all() and mirrored.any() and same.any()


def extents(height, width, views):
    """(heights, widths, tops, lefts) `[V]` of crops as shares of the image, measured on a ramp.

    Its red rises from 0 to 1 downwards, its green to the right.
    """
    y, x = np.mgrid[:height, :width].astype("float32")
    ramp = np.stack([y / height, x / width, 0 * x], axis=-1)[None]
    drawn = draw(0, ramp, views)[0]
    size, step = views.size, views.size / (views.size - 1)
    down, right = drawn[:, :, size // 2, 0], drawn[:, size // 2, :, 1]
    return (
        (down[:, -1] - down[:, 0]) * step,
        (right[:, -1] - right[:, 0]) * step,
        down[:, 0],
        right[:, 0],
    )


@pytest.mark.parametrize("scale", [(0.25, 0.25), (0.95, 0.95)])
def test_crops_have_the_area_that_was_asked_for_and_all_ratios_that_fit(scale):
    heights, widths, tops, lefts = extents(32, 48, Views(100, 8, scale=scale, flip=0.0))
    np.testing.assert_allclose(heights * widths, scale[0], rtol=0.08)
    ratios = widths * 48 / (heights * 32)
    low, high = max(3 / 4, scale[0] * 1.5), min(4 / 3, 1.5 / scale[0])
    if low < high:
        assert low * 0.95 < ratios.min() < low * 1.15 and high * 0.85 < ratios.max() < high * 1.05
        for starts, lengths in ((tops, heights), (lefts, widths)):
            # From one border to the other.
            free = starts / (1 - lengths)
            assert free.min() < 0.15 and free.max() > 0.85
    else:  # no ratio fits: the nearest, cut
        np.testing.assert_allclose(ratios, 4 / 3, rtol=0.08)


def test_colours():
    x = images(1, 8, 8)[0]
    grey = module.move_colours(jax.random.key(0), x, Views(1, 8, grey=1.0))
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-6)
    inverted = module.move_colours(jax.random.key(0), x, Views(1, 8, solarise=1.0))
    np.testing.assert_allclose(inverted, np.where(x >= 0.5, 1 - x, x), atol=1e-6)
    # A third of a turn makes red green; a whole one changes nothing.
    red = jnp.array([[[1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(
        module._turn_hue(red, jnp.float32(1 / 3))[0, 0], [0, 1, 0], atol=1e-6
    )
    np.testing.assert_allclose(module._turn_hue(x, jnp.float32(1.0)), x, atol=1e-5)


def test_a_blur_is_a_gaussian_and_keeps_the_mean_brightness():
    matrix = np.asarray(module.blur_weights(41, jnp.float32(1.5)))
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    wanted = np.exp(-(((np.arange(41) - 20) / 1.5) ** 2) / 2)
    np.testing.assert_allclose(matrix[20], wanted / wanted.sum(), atol=1e-6)


def clips(count):
    """[B, 3, 10, 10, 3]: a frame, its mirror image, the frame upside down."""
    x = images(count, 10, 10)
    return np.stack([x, x[:, :, ::-1], x[:, ::-1]], axis=1)


def coloured(key, x, colours):
    program = compiled(lambda key, x: colour_clips(key, x, colours), jax.random.key(0), x)
    return np.asarray(program(jax.random.key(key), x))


ALL = Colours(jitter=0.7, grey=0.3, blur=0.5, blur_sigma=(0.5, 2.0), solarise=0.2)


def test_the_frames_of_a_clip_share_one_draw_and_clips_do_not():
    x = clips(12)
    x[1] = x[0]
    made = coloured(0, x, ALL)
    assert made.shape == x.shape and made.dtype == np.float32
    assert made.min() >= 0 and made.max() <= 1 + 1e-6
    # Moving colours and blurring know no left and right, nor above and below.
    np.testing.assert_allclose(made[:, 1], made[:, 0, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(made[:, 2], made[:, 0, ::-1], atol=1e-5)
    # Equal clips are not made alike, the same clip is by the same key only.
    assert np.abs(made[0] - made[1]).max() > 1e-2
    np.testing.assert_array_equal(made, coloured(0, x, ALL))
    changed = np.abs(made - coloured(1, x, ALL)).max(axis=(1, 2, 3, 4))
    assert (changed > 1e-2).sum() > 8


def test_contrast_keeps_the_mean_of_the_clip_and_not_of_each_frame():
    x = np.full((1, 2, 4, 4, 3), 0.4, np.float32)
    x[:, 1] = 0.6
    only = {"brightness": 0.0, "saturation": 0.0, "hue": 0.0, "contrast": 0.5}
    made = coloured(0, x, Colours(jitter=1.0, **only))
    np.testing.assert_allclose(made.mean(), 0.5, atol=1e-6)
    # By each frame's own mean, frames of one colour would stay as they are.
    assert abs((made[0, 1] - made[0, 0]).mean() - 0.2) > 0.01


def test_no_strength_changes_nothing():
    x = clips(4)
    np.testing.assert_array_equal(coloured(0, x, Colours()), x)
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    weak = Colours(jitter=1.0, blur=1.0, blur_sigma=(1e-3, 1e-3), **none)
    np.testing.assert_allclose(coloured(0, x, weak), x, atol=1e-5)


def test_shares_are_of_clips():
    x = clips(400)[:, :, :4, :4]
    made = coloured(0, x, Colours(grey=0.25))
    grey = np.ptp(made, axis=-1).max(axis=(1, 2, 3)) < 1e-6
    assert abs(grey.mean() - 0.25) < 0.09  # four deviations
    np.testing.assert_array_equal(made[~grey], x[~grey])


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale", (0.5, 0.2)), ("ratio", (0.0, 1.0)), ("flip", 1.5), ("hue", -0.1), ("count", -1)],
)
def test_a_number_out_of_range_is_named(key, value):
    views = Views(**{"count": 1, "size": 8, key: value})
    with pytest.raises(UserError, match=rf"config\.model\.local_views\.{key} is"):
        views.check("model.local_views")
