import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jepa.nn import views as module
from jepa.nn.views import Views, draw_views


def images(count=2, height=40, width=56):
    """Smooth pictures, so that resampling schemes can be compared."""
    rng = np.random.default_rng(0)
    small = rng.random((count, 5, 7, 3)).astype("float32")
    return np.asarray(jax.image.resize(small, (count, height, width, 3), "cubic")).clip(0, 1)


def test_views_have_their_sizes_and_depend_on_the_key_alone():
    views = Views(count=3, size=16, jitter=0.8, grey=0.2, blur=0.5, solarise=0.2)
    draw = jax.jit(lambda key, x: draw_views(key, x, views))
    first = draw(jax.random.key(0), images())
    assert first.shape == (2, 3, 16, 16, 3) and first.dtype == jnp.float32
    assert np.isfinite(first).all() and first.min() >= 0 and first.max() <= 1 + 1e-6
    np.testing.assert_array_equal(first, draw(jax.random.key(0), images()))
    other = draw(jax.random.key(1), images())
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
    square = images(1, 32, 32)
    views = Views(count=8, size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    drawn = np.asarray(draw_views(jax.random.key(0), square, views))[0]
    mirrored = np.array([np.abs(v - square[0, :, ::-1]).max() < 1e-5 for v in drawn])
    same = np.array([np.abs(v - square[0]).max() < 1e-5 for v in drawn])
    assert (mirrored ^ same).all() and mirrored.any() and same.any()


def test_crops_have_the_area_that_was_asked_for():
    """The mean distance of two pixels says how much was cropped, seen on a ramp."""
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype="float32")[:, None, None], (1, 64, 64, 3))
    views = Views(count=200, size=8, scale=(0.25, 0.25), ratio=(1.0, 1.0), flip=0.0)
    drawn = np.asarray(draw_views(jax.random.key(0), ramp, views))[0, :, :, 0, 0]
    np.testing.assert_allclose(drawn[:, -1] - drawn[:, 0], 7 / 8 * 32 / 63, atol=0.02)
    starts = drawn[:, 0]
    assert starts.min() < 0.06 and starts.max() > 0.46  # from one border to the other


def test_colours():
    x = images(1, 16, 16)[0]
    grey = module._colours(jax.random.key(0), x, Views(1, 16, grey=1.0))
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-6)
    inverted = module._colours(jax.random.key(0), x, Views(1, 16, solarise=1.0))
    np.testing.assert_allclose(inverted, np.where(x >= 0.5, 1 - x, x), atol=1e-6)
    # A third of a turn makes red green; a whole one changes nothing.
    red = jnp.array([[[1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(
        module._turn_hue(red, jnp.float32(1 / 3))[0, 0], [0, 1, 0], atol=1e-6
    )
    np.testing.assert_allclose(module._turn_hue(x, jnp.float32(1.0)), x, atol=1e-5)
    np.testing.assert_allclose(np.asarray(module._blur(9, jnp.float32(1.5))).sum(1), 1, rtol=1e-6)
