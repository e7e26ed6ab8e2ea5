"""Damaged videos: refused with the library's own words, or read; see `tests.faults.fuzz`."""

import dataclasses
import io
import random

import pytest

from jepa.data import clips, decode, folder, images, transforms, verify
from jepa.data.config import DataConfig
from jepa.data.world.generate import scene
from jepa.data.world.write import record
from tests.faults import damage, fuzz

CONFIG = DataConfig.parse({"path": ".", "frames": 8, "size": 32, "sampling": "uniform"})


@pytest.fixture(scope="module")
def sound():
    return record(scene(0, "train", 0))


def read(one):
    count, rate, _ = decode.grid(one)
    indices = clips.View(CONFIG, 0).indices([count], [rate], [0])[0]
    converter = transforms.Converter(CONFIG.size, CONFIG.pixels)
    return decode.decode_clip(one.video, decode.frame_times(one, indices), converter)


def test_every_kind_of_damage_is_refused_or_read(sound):
    assert len(read(sound)) == 8
    outcomes = set()
    for number in range(270):
        kind = sorted(damage.KINDS)[number % len(damage.KINDS)]
        data = damage.KINDS[kind](sound.video, random.Random(number)) or b"\0"
        try:
            frames = read(dataclasses.replace(sound, video=data))
        except decode.DecodeError:
            outcomes.add((kind, "refused"))
        else:
            outcomes.add((kind, "read"))
            assert {frame["rgb"].shape for frame in frames} == {(32, 32, 3)}
    assert {kind for kind, _ in outcomes} == set(damage.KINDS)
    assert {outcome for _, outcome in outcomes} == {"refused", "read"}


def test_a_codec_that_nothing_decodes(sound):
    data = sound.video.replace(b"avc1", b"xxxx")
    with pytest.raises(decode.DecodeError, match="its codec"):
        read(dataclasses.replace(sound, video=data))
    with pytest.raises(verify.BadVideo, match="its codec"):
        verify.verify(data)
    with pytest.raises(ValueError, match="its codec"):
        folder._header(io.BytesIO(data), ".mp4")
    assert images.picture_size(data) == (1, 1)


@pytest.mark.slow
def test_two_hundred_in_all_formats(tmp_path):
    found = fuzz.fuzz(tmp_path, 200, 0, print)
    assert (found["crashes"], found["hangs"], found["problems"]) == (0, 0, [])
    assert found["unreadable"] == found["counted_by_the_loader"] == found["rows_replaced"] > 0
    assert found["readable"] + found["unreadable"] == 200
