"""Drawn shapes have the areas of their closed forms, at any angle and off the pixel grid."""

import math

import numpy as np
import pytest

from jepa.data.world import words
from jepa.data.world.physics import FRAMES
from jepa.data.world.render import FRAME, Backdrop, Box, Track, render

AREAS = {
    "circle": math.pi,
    "square": 1.6**2,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 5 * 0.42 * math.sin(math.pi / 5),
    "cross": 8 * 0.34 - 4 * 0.34**2,
    "ring": math.pi * 0.75,
}


def black():
    return Backdrop(np.zeros(3), np.zeros(3), 0.3, np.zeros((4, 4), np.float32), 0.0)


def track(shape, radius, xy, angle=0.0):
    path = np.tile(np.asarray(xy, float), (FRAMES, 1))
    white = np.full((FRAMES, 3), 255.0)
    angles = np.full(FRAMES, angle)
    return Track("white", shape, "small", radius, path, angles, white, np.ones(FRAMES))


def cover(*tracks, boxes=(), shake=None):
    shake = np.zeros((FRAMES, 2), int) if shake is None else shake
    frames = render(black(), list(tracks), list(boxes), shake)[..., 0].astype(float)
    return (frames - 4) / 251  # the darkest background is 4


@pytest.mark.parametrize("shape", words.SHAPES)
@pytest.mark.parametrize("radius", [6.5, 12.0])
def test_areas(shape, radius):
    for angle, place in ((0.0, (32, 32)), (0.2, (30.3, 31.8)), (-0.15, (33.5, 29.1))):
        area = cover(track(shape, radius, place, angle))[0].sum()
        assert area == pytest.approx(AREAS[shape] * radius**2, rel=0.04)


@pytest.mark.parametrize("shape", words.SHAPES)
def test_shapes_fit_their_radius_and_stand_upright(shape):
    y, x = np.nonzero(cover(track(shape, 12.0, (32, 32)))[0] > 0.5)
    assert np.hypot(x + 0.5 - 32, y + 0.5 - 32).max() <= (14.1 if shape == "square" else 12.5)
    assert abs((x + 0.5).mean() - 32) < 0.2
    if shape == "triangle":  # apex up: wider below than above
        assert np.sum(y >= 35) > 3 * np.sum(y < 23)


def test_no_two_shapes_look_alike():
    drawn = {shape: cover(track(shape, 6.0, (32, 32)))[0] for shape in words.SHAPES}
    for one in words.SHAPES:
        for other in words.SHAPES:
            if one < other:
                assert np.abs(drawn[one] - drawn[other]).sum() > 14, (one, other)


def test_objects_beyond_the_frame_are_cut():
    area = cover(track("square", 10.0, (0, 32)))[0].sum()
    assert area == pytest.approx(AREAS["square"] * 100 / 2, rel=0.04)
    assert cover(track("square", 10.0, (-40, 32))).max() == pytest.approx(0, abs=1e-6)


def test_boxes_hide_what_is_behind_them():
    half = Box((0, 0, 32, 64), (4, 4, 4), front=True)
    area = cover(track("circle", 10.0, (32, 32)), boxes=[half])[0].sum()
    assert area == pytest.approx(math.pi * 50, rel=0.04)
    behind = Box((0, 0, 32, 64), (4, 4, 4), front=False)
    area = cover(track("circle", 10.0, (32, 32)), boxes=[behind])[0].sum()
    assert area == pytest.approx(math.pi * 100, rel=0.04)


def test_the_camera_shakes_by_whole_pixels():
    shake = np.zeros((FRAMES, 2), int)
    shake[1] = (1, -1)
    frames = cover(track("star", 8.0, (30.4, 31.7)), shake=shake)
    assert frames.shape == (FRAMES, FRAME, FRAME)
    assert np.array_equal(frames[1][2:, :-2], frames[0][1:-1, 1:-1])


def test_backgrounds_are_darker_than_any_object():
    from jepa.data.world import scene

    for index in range(60):
        clip = scene(0, "train", index, draw=False)
        if clip.labels["kind"] == "appear":
            empty = scene(0, "train", index).frames[0]
            assert empty.max() <= 150
            assert min(max(rgb) for rgb in words.COLOURS.values()) > 180
