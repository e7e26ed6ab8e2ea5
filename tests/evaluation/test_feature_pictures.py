import io

import av
import numpy as np
import pytest
from PIL import Image

from jepa.evaluation import neighbours, patch_pca


def planted(count=600, width=12):
    """Tokens with three strong directions, and the values along them."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (count, 3))
    values = np.linalg.qr(values - values.mean(0))[0] * count**0.5 * [9, 5, 3]  # uncorrelated
    directions = np.linalg.qr(rng.standard_normal((width, 3)))[0]
    tokens = values @ directions.T + 0.01 * rng.standard_normal((count, width)) + 4.0
    return tokens, values, directions


def test_components_are_those_that_were_planted():
    tokens, values, directions = planted()
    palette = patch_pca.fit(tokens)
    np.testing.assert_allclose(np.abs(palette.axes.T @ directions), np.eye(3), atol=0.02)
    wanted = values.var(0) / values.var(0).sum()
    np.testing.assert_allclose(palette.explained, wanted, atol=0.01)
    colours = patch_pca.paint(tokens, palette).astype(float)
    for channel in range(3):
        correlation = np.corrcoef(colours[:, channel], values[:, channel])[0, 1]
        assert abs(correlation) > 0.99
    assert colours.min() == 0 and colours.max() == 255


def test_colours_do_not_hang_on_the_order_or_the_number_of_tokens():
    tokens, _, _ = planted(4000)
    whole = patch_pca.fit(tokens)
    turned, half = patch_pca.fit(tokens[::-1]), patch_pca.fit(tokens[::2])
    np.testing.assert_allclose(turned.axes, whole.axes, atol=1e-8)
    assert (np.sum(half.axes * whole.axes, axis=0) > 0.99).all()  # no sign has flipped


def test_a_flat_axis_and_bad_tokens():
    tokens = np.zeros((50, 8))
    tokens[:, 0] = np.arange(50)
    palette = patch_pca.fit(tokens)
    assert (patch_pca.paint(tokens, palette)[:, 1:] == 128).all()
    for bad in (np.zeros((3, 8)), np.zeros((9, 2)), np.full((9, 4), np.nan)):
        with pytest.raises(ValueError):
            patch_pca.fit(bad)


def test_each_token_fills_its_own_block():
    colours = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    frames = patch_pca.enlarge(colours, 4, 24, 32)
    assert frames.shape == (4, 24, 32, 3)
    for t, y, x in np.ndindex(4, 24, 32):
        assert (frames[t, y, x] == colours[t // 2, y // 8, x // 8]).all()
    with pytest.raises(ValueError, match="does not divide"):
        patch_pca.enlarge(colours, 4, 25, 32)


def test_pictures_of_clips_and_colours():
    clips = np.full((2, 8, 16, 16, 3), 40, np.uint8)
    painted = np.full((2, 8, 16, 16, 3), 200, np.uint8)
    picture = patch_pca.grid(clips, painted, count=4, height=16)
    assert picture.shape == (2 * (16 + 2 + 16) + 8, 4 * 16 + 3 * 2, 3)
    assert (picture[:16, :16] == 40).all() and (picture[18:34, :16] == 200).all()
    clips[:, :, 0, 0] = np.arange(8)[:, None]  # a GIF leaves out frames that are all alike
    moving = patch_pca.beside(clips, painted, height=32)
    assert moving.shape == (8, 2 * 32 + 4, 2 * 32 + 4, 3)
    assert (moving[:, 2:32, 2:32] == 40).all() and (moving[:, :32, 36:] == 200).all()
    with Image.open(io.BytesIO(patch_pca.gif(moving))) as image:
        assert image.size == (68, 68)
    with av.open(io.BytesIO(patch_pca.mp4(moving))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


def test_neighbours_are_exact_and_ties_go_to_the_first():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2500, 7))
    vectors[100] = 3 * vectors[50]  # as near as each other to anything
    queries = np.concatenate([rng.standard_normal((1200, 7)), vectors[50:51]])
    places, similarities = neighbours.nearest(queries, vectors, 6)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ unit.T
    scores = np.round(scores, 12)
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :6]
    np.testing.assert_allclose(similarities, np.take_along_axis(scores, wanted, 1), atol=1e-9)
    assert (places == wanted).mean() > 0.999
    assert set(places[-1, :2].tolist()) == {50, 100}


def test_a_query_is_not_its_own_neighbour():
    vectors = np.eye(4)
    places, _ = neighbours.nearest(vectors[[2, 0]], vectors, 3, own=np.array([2, 0]))
    assert 2 not in places[0] and 0 not in places[1]
    # Equally far: in their order.
    assert places.tolist() == [[0, 1, 3], [1, 2, 3]]
    for k in (0, 4):
        with pytest.raises(ValueError, match="choose from"):
            neighbours.nearest(vectors[:1], vectors, k, own=np.array([0]))


def test_a_sheet_shows_queries_and_neighbours():
    clips = {n: np.full((4, 16, 16, 3), 30 * n + 10, np.uint8) for n in range(4)}
    places, similarities = np.array([[1, 2], [3, 0]]), np.array([[0.9, 0.8], [0.7, 0.6]])
    sheet = neighbours.sheet(
        clips, [0, 2], places, similarities, words={0: "a very long label " * 9}, height=16,
        frames=2,
    )  # fmt: skip
    found = {tuple(colour) for colour in sheet.reshape(-1, 3)}
    assert {(30 * n + 10,) * 3 for n in range(4)} <= found
    assert sheet.dtype == np.uint8
