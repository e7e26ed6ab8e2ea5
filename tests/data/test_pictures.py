"""Crops of many pictures at once, against Pillow's one at a time."""

import numpy as np
import pytest
from PIL import Image

from jepa.data import pictures


@pytest.mark.parametrize(("height", "width"), [(28, 28), (40, 31)])
@pytest.mark.parametrize("size", [28, 9, 50])
def test_crops_are_those_of_pillow(height, width, size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, height, width), np.uint8)
    boxes = np.empty((6, 4))
    boxes[:, 2:] = rng.uniform(0.3, 1, (6, 2))
    boxes[:, :2] = rng.uniform(0, 1, (6, 2)) * (1 - boxes[:, 2:])
    boxes[0] = 0, 0, 1, 1
    made = pictures.crop_resize(images, boxes, size)
    for image, (top, left, tall, wide), found in zip(images, boxes, made, strict=True):
        box = (left * width, top * height, (left + wide) * width, (top + tall) * height)
        shown = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
        # Pillow rounds between its two passes.
        assert np.abs(np.asarray(shown, int) - found).max() <= 1


def test_the_whole_at_its_own_size_is_what_it_was():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20), np.uint8)
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    np.testing.assert_array_equal(pictures.crop_resize(images, whole, 20), images)
    assert pictures.centre(images, 20) is images


def test_the_centre_is_the_square_in_the_middle(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (5, 10, 16), np.uint8)
    monkeypatch.setattr(pictures, "_CHUNK", 2)
    np.testing.assert_array_equal(pictures.centre(images, 10), images[:, :, 3:13])
    small = pictures.centre(images, 7)
    for image, found in zip(images, small, strict=True):
        shown = Image.fromarray(image).resize((7, 7), Image.Resampling.BILINEAR, (3, 0, 13, 10))
        assert np.abs(np.asarray(shown, int) - found).max() <= 1
