"""Evaluation sees every clip once, in order, the same way every time."""

import numpy as np
import pytest
from loading_helpers import mp4, pictures, record, same, write

from jepa.batch_part import BatchPart
from jepa.data.evalset import EvalSet
from jepa.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [record(i) for i in range(10)]
    return write(tmp_path_factory.mktemp("data") / "set", {"validation": records}, shards=1)


def config(path, /, **keys):
    base = {"path": str(path), "frames": 4, "size": 64, "tokenizer": "dataset"}
    return {**base, **keys}


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
@pytest.mark.parametrize("pixels", ["rgb", "yuv420"])
def test_batches_come_in_order_and_the_last_is_padded_with_grey(data, cache, pixels):
    # Crops and mirroring belong to training only.
    keys = {"crop": "random_resized", "flip": True}
    evaluated = EvalSet(config(data, cache=cache, pixels=pixels, **keys), "validation")
    assert [r.key for r in evaluated.records] == [f"clip-{i:04d}" for i in range(10)]
    assert all(r.video == b"" and r.captions for r in evaluated.records)
    batches = list(evaluated.batches(4))
    assert [count for count, _ in batches] == [4, 4, 2]
    for number in range(10):
        video = batches[number // 4][1]
        luma = video[number % 4, ..., 0] if pixels == "rgb" else video["y"][number % 4]
        assert luma.shape == (4, 64, 64)
        assert (np.diff(luma.mean((1, 2))) > 0).all()
    last = batches[2][1]
    grey = {"rgb": 128} if pixels == "rgb" else {"y": 126, "uv": 128}
    for name, plane in ({"rgb": last} if pixels == "rgb" else last).items():
        assert plane.shape[0] == 4 and (plane[2:] == grey[name]).all()
    again = list(EvalSet(config(data, pixels=pixels), "validation").batches(4))
    for (_, one), (_, other) in zip(batches, again, strict=True):
        same(one, other)


def test_frames_are_the_middles_of_equal_stretches(data):
    ((_, video),) = EvalSet(config(data), "validation", limit=1).batches(1)
    shown = pictures(12, seed=0)[[1, 4, 7, 10], ..., 0].mean((1, 2))
    np.testing.assert_allclose(video[0, ..., 0].mean((1, 2)), shown, atol=3)


def test_limit(data):
    evaluated = EvalSet(config(data), "validation", limit=3)
    assert len(evaluated) == 3 and [n for n, _ in evaluated.batches(2)] == [2, 1]


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_are_the_rows_of_the_batches(data, parts):
    # 10 clips in batches of 4: of the last one, the later parts have nothing but grey.
    whole = list(EvalSet(config(data), "validation").batches(4))
    for part in range(parts):
        own = list(EvalSet(config(data), "validation").batches(4, part=BatchPart((part,), parts)))
        assert [valid for valid, _ in own] == [4, 4, 2]
        rows = slice(part * 4 // parts, (part + 1) * 4 // parts)
        for (_, mine), (_, video) in zip(own, whole, strict=True):
            np.testing.assert_array_equal(mine, video[rows])


@pytest.mark.parametrize("control", ["single", "shuffled", "blank"])
def test_frame_controls_do_not_depend_on_the_batches(data, control):
    evaluated = EvalSet(config(data, frame_control=control), "validation")
    one = np.concatenate([v[:n] for n, v in evaluated.batches(3)])
    other = np.concatenate([v[:n] for n, v in evaluated.batches(7)])
    np.testing.assert_array_equal(one, other)
    red = one[..., 0].mean((2, 3))
    rising = (np.diff(red, axis=1) > 0).all()
    assert not rising and (control == "shuffled") == (np.ptp(red) > 100 and np.ptp(red[0]) > 50)


def test_an_unreadable_clip_is_grey_counted_and_limited(tmp_path, caplog):
    clips = [record(i) for i in range(9)] + [record(9, video=mp4(pictures(12))[:900])]
    path = write(tmp_path / "d", {"validation": clips}, shards=1)
    evaluated = EvalSet(config(path, max_bad_fraction=0.1), "validation")
    batches = list(evaluated.batches(10))
    assert (batches[0][1][9] == 128).all() and (batches[0][1][8] != 128).any()
    assert list(evaluated.unreadable) == [9] and "clip-0009" in caplog.text
    with pytest.raises(UserError, match="clip-0009"):
        list(EvalSet(config(path), "validation").batches(10))


def test_the_limit_of_unreadable_clips_is_not_relative_to_a_few_first_ones(tmp_path):
    # 2 of 400 are unreadable, half a percent; among the first 20 they are ten percent.
    whole = mp4(pictures(2, 16, 16))
    clips = [record(i, count=2, size=16, video=whole[: 300 if i < 2 else None]) for i in range(400)]
    path = write(tmp_path / "d", {"validation": clips}, shards=1)
    keys = config(path, frames=1, size=16)
    evaluated = EvalSet(keys, "validation", limit=20)
    assert len(list(evaluated.batches(10))) == 2 and len(evaluated.unreadable) == 2
    with pytest.raises(UserError, match="2 of 400 records"):
        list(EvalSet({**keys, "max_bad_fraction": 0.001}, "validation", limit=20).batches(10))


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_set_without_texts_has_labels_in_order(tmp_path, cache):
    colours = ["red", "blue", None, "red", "green"]
    clips = [
        record(i, count=4, captions=(), questions=(), labels={"colour": c} if c else {})
        for i, c in enumerate(colours)
    ]
    path = write(tmp_path / "d", {"validation": clips}, shards=1, attributes=None)
    keys = config(path, streams=("video", "label"), label="colour", cache=cache, frames=2)
    evaluated = EvalSet({**keys, "tokenizer": "/nowhere"}, "validation")
    assert evaluated.texts is None and evaluated.classes == ("blue", "green", "red")
    assert evaluated.labels.dtype == np.int32 and evaluated.labels.tolist() == [2, 0, -1, 2, 1]
    assert [n for n, _ in evaluated.batches(3)] == [3, 2]
    assert EvalSet(keys, "validation", limit=2).labels.tolist() == [2, 0]
    with pytest.raises(UserError, match="add 'label'"):
        EvalSet({**keys, "streams": ("video",)}, "validation").labels  # noqa: B018
