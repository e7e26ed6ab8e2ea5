"""Geometry and mirroring of planes."""

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading_helpers import pictures

from jepa.data import transforms
from jepa.data.transforms import Box, Converter, random_boxes

unit = st.floats(0, 1, exclude_max=True)


@given(st.lists(unit, min_size=4, max_size=4), st.floats(0.3, 3))
def test_a_random_box_lies_inside_and_has_area_and_shape_as_asked(uniforms, aspect):
    box = Box(*random_boxes(np.array(uniforms), aspect, (0.3, 1.0), (0.75, 1.35)))
    assert box.top >= 0 and box.top + box.height <= 1 + 1e-9
    assert box.left >= 0 and box.left + box.width <= 1 + 1e-9
    area, shape = box.height * box.width, box.width * aspect / box.height
    if max(box.height, box.width) < 1:
        assert 0.3 - 1e-9 <= area <= 1 + 1e-9
        assert 0.75 - 1e-9 <= shape <= 1.35 + 1e-9
    else:
        assert area <= 1 + 1e-9


@given(st.builds(Box, unit, unit, unit, unit), st.integers(1, 40), st.integers(1, 40))
def test_boxes_in_pixels_are_even_and_inside(box, half_height, half_width):
    height, width = 2 * half_height, 2 * half_width
    top, left, tall, wide = box.pixels(height, width)
    assert all(value % 2 == 0 for value in (top, left, tall, wide))
    assert tall >= 2 and wide >= 2 and top >= 0 and left >= 0
    assert top + tall <= height and left + wide <= width


@pytest.mark.parametrize("pixels", ["rgb", "yuv420"])
def test_a_crop_of_everything_at_the_same_size_changes_nothing(pixels):
    frame = av.VideoFrame.from_ndarray(pictures(2)[1], "rgb24").reformat(format="yuv420p")
    whole = Converter(64, pixels)(frame)
    cropped = Converter(64, pixels, Box(0, 0, 1, 1))(frame)
    for name in whole:
        np.testing.assert_array_equal(whole[name], cropped[name])


@pytest.mark.parametrize("pixels", ["rgb", "yuv420"])
def test_a_crop_shows_its_part(pixels):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[32:, :32] = 255
    frame = av.VideoFrame.from_ndarray(picture, "rgb24")
    for box, bright in ((Box(0.5, 0, 0.5, 0.5), True), (Box(0, 0, 0.5, 1), False)):
        planes = Converter(16, pixels, box)(frame)
        luma = planes["rgb" if pixels == "rgb" else "y"]
        assert luma.shape[:2] == (16, 16)
        assert (luma.min() > 220) if bright else (luma.max() < 30)


@pytest.mark.parametrize("pixels", ["rgb", "yuv420"])
def test_mirroring_twice_is_nothing_and_once_swaps_sides(pixels):
    planes = Converter(32, pixels)(av.VideoFrame.from_ndarray(pictures(1)[0], "rgb24"))
    once = transforms.flip(planes)
    for name, plane in planes.items():
        np.testing.assert_array_equal(once[name][:, 0], plane[:, -1])
        np.testing.assert_array_equal(transforms.flip(once)[name], plane)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (18, 34), (50, 98)])
def test_planes_are_the_frame_without_the_padding_of_its_lines(height, width):
    frame = av.VideoFrame.from_ndarray(pictures(2, height, width)[1], "rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=5, dst_color_range=1)
    planes = transforms.native(frame)
    joined = frame.to_ndarray().reshape(-1)
    y, u, v = np.split(joined, [height * width, height * width * 5 // 4])
    shape = height // 2, width // 2
    np.testing.assert_array_equal(planes["y"], y.reshape(height, width))
    np.testing.assert_array_equal(planes["uv"][..., 0], u.reshape(shape))
    np.testing.assert_array_equal(planes["uv"][..., 1], v.reshape(shape))
