import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.nn import frames


def test_rgb_is_normalised_by_the_statistics_of_imagenet():
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6, 3)).astype(np.uint8)
    expected = (video / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(frames.to_float(video), expected, atol=1e-5)
    assert frames.to_float(video, "bfloat16").dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [
        # Limited-range BT.601 codes of the primaries, as published (rounded to whole codes).
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((81, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 0)),
        ((41, 240, 110), (0, 0, 255)),
    ],
)
def test_yuv_codes_of_primaries(yuv, rgb):
    y = np.full((1, 1, 2, 2), yuv[0], np.uint8)
    uv = np.full((1, 1, 1, 1, 2), yuv[1:], np.uint8)
    got = 255 * frames.yuv_to_rgb(jnp.asarray(y), jnp.asarray(uv))
    np.testing.assert_allclose(got[0, 0, 1, 1], rgb, atol=2.0)


def test_each_chroma_sample_serves_its_own_four_pixels():
    rng = np.random.default_rng(1)
    y = rng.integers(60, 190, (1, 2, 4, 6)).astype(np.uint8)
    uv = rng.integers(110, 146, (1, 2, 2, 3, 2)).astype(np.uint8)
    whole = frames.to_float({"y": y, "uv": uv})
    assert frames.frames_shape({"y": y, "uv": uv}) == (1, 2, 4, 6)
    for row in range(4):
        for column in range(6):
            one = frames.to_float(
                {
                    "y": np.repeat(
                        np.repeat(y[:, :, row : row + 1, column : column + 1], 2, 2), 2, 3
                    ),
                    "uv": uv[:, :, row // 2 : row // 2 + 1, column // 2 : column // 2 + 1],
                }
            )
            np.testing.assert_allclose(whole[:, :, row, column], one[:, :, 0, 0], atol=1e-6)


def test_matches_the_matrix_of_the_standard():
    rng = np.random.default_rng(2)
    y = rng.integers(90, 160, (1, 1, 2, 2)).astype(np.uint8)
    uv = rng.integers(118, 138, (1, 1, 1, 1, 2)).astype(np.uint8)
    # BT.601's forward matrix, applied to our result, gives the codes back.
    rgb = np.asarray(frames.yuv_to_rgb(jnp.asarray(y), jnp.asarray(uv)), np.float64)
    luma = rgb @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(16 + 219 * luma, y, atol=1e-3)
    blue = (rgb[..., 2] - luma) / 1.772
    np.testing.assert_allclose(
        128 + 224 * blue, np.full((1, 1, 2, 2), uv[0, 0, 0, 0, 0]), atol=1e-3
    )


def test_planes_as_on_a_tpu_give_the_same_pixels(monkeypatch):
    rng = np.random.default_rng(3)
    y = jnp.asarray(rng.integers(0, 256, (2, 3, 4, 6)), jnp.uint8)
    uv = jnp.asarray(rng.integers(0, 256, (2, 3, 2, 3, 2)), jnp.uint8)
    wanted = frames.yuv_to_rgb(y, uv)
    monkeypatch.setattr(frames, "platform", lambda: "tpu")
    np.testing.assert_allclose(frames.yuv_to_rgb(y, uv), wanted, atol=1e-6)
    assert np.ptp(wanted) > 0.9


def test_float64_stays_float64():
    with jax.enable_x64(True):
        assert frames.to_float(np.zeros((1, 1, 2, 2, 3), np.uint8), "float64").dtype == jnp.float64
