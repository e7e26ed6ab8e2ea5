"""The written dataset: the same bytes however it was made, and readable as video."""

import io

import av
import numpy as np
import pytest

from jepa.data.dataset import Dataset
from jepa.data.world import encode, scene, words, write, write_world
from jepa.errors import UserError

CLIPS = {"train": 24, "hard": 8, "surprise": 4}


def digests(directory):
    return {name: Dataset.open(directory).split(name).digest for name in CLIPS}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    write_world(directory, seed=4, clips=CLIPS, progress=False)
    return directory


def decoded(video):
    with av.open(io.BytesIO(video)) as container:
        return [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]


def test_records_hold_what_the_scene_says(world):
    data = Dataset.open(world)
    assert {name: len(data.split(name)) for name in CLIPS} == CLIPS
    assert data.attributes["direction"]["left"][0] == "something moves to the left"
    assert tuple(data.caption_queries) == words.CAPTION_QUERIES
    for name in CLIPS:
        for index in range(len(data.split(name))):
            record, clip = data.split(name).record(index), scene(4, name, index)
            assert record.key == clip.key == f"{name}-{index:06d}"
            assert [(c.id, c.text, c.level) for c in record.captions] == clip.captions
            assert [q.answer for q in record.questions] == [q[2] for q in clip.questions]
            assert (record.labels, record.group) == (clip.labels, clip.group)
            frames = np.stack(decoded(record.video))
            error = frames.astype(float) - encode.to_yuv420(clip.frames)
            assert frames.shape == (16, 96, 64)
            assert 10 * np.log10(255**2 / np.mean(error**2)) > 38


def test_processes_do_not_change_the_bytes(world, tmp_path, monkeypatch):
    write_world(tmp_path / "two", seed=4, clips=CLIPS, processes=2, progress=False)
    assert digests(tmp_path / "two") == digests(world)
    write_world(tmp_path / "other", seed=5, clips=CLIPS, progress=False)
    assert digests(tmp_path / "other")["train"] != digests(world)["train"]


def test_an_interrupted_run_goes_on_with_what_is_missing(world, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "CLIPS_PER_SHARD", 8)
    whole = tmp_path / "whole"
    write_world(whole, seed=4, clips=CLIPS, progress=False)
    made = []

    def broken(task):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(task)
        return real(task)

    real = write._write
    monkeypatch.setattr(write, "_write", broken)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "torn", seed=4, clips=CLIPS, progress=False)
    rest = []
    monkeypatch.setattr(write, "_write", lambda task: (rest.append(task), real(task))[1])
    write_world(tmp_path / "torn", seed=4, clips=CLIPS, progress=False)
    assert len(rest) == 3
    assert digests(tmp_path / "torn") == digests(whole)
    write_world(tmp_path / "torn", seed=4, clips=CLIPS, progress=False)
    assert len(rest) == 3


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    write_world(tmp_path, seed=0, clips={"train": 3}, progress=True)
    assert capsys.readouterr().err == "world: 3 of 3 clips\n"


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        ({"test": 5}, "no split 'test'"),
        ({"train": 0}, "'train' has 0 clips"),
        ({"hard": 9}, "multiple of 8"),
        ({}, "names no split"),
    ],
)
def test_wrong_counts_are_refused_before_anything_is_written(tmp_path, clips, said):
    with pytest.raises(UserError, match=said):
        write_world(tmp_path / "world", clips=clips)
    assert not (tmp_path / "world").exists()


def test_another_seed_is_refused_in_the_same_directory(world):
    with pytest.raises(UserError, match="seed: 4 there, 7 asked for"):
        write_world(world, seed=7, clips=CLIPS, progress=False)


def test_encoding_is_reproducible_and_seekable():
    frames = scene(0, "train", 3).frames
    video = encode.encode(frames)
    assert video == encode.encode(frames)
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (64, 64, 16)
        assert stream.average_rate == encode.FPS
        assert stream.codec_context.name == encode.CODEC
        assert (stream.codec_context.color_range, stream.codec_context.colorspace) == (1, 6)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [k for k, packet in enumerate(packets) if packet.is_keyframe] == [0, 8]
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]


def test_colours_agree_with_ffmpegs_conversion():
    frames = scene(0, "train", 3).frames
    picture = av.VideoFrame.from_ndarray(frames[0], format="rgb24")
    theirs = picture.reformat(
        format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
    ).to_ndarray()
    gap = theirs.astype(int) - encode.to_yuv420(frames)[0]
    assert np.abs(gap).mean() < 1
    assert np.percentile(np.abs(gap), 99) <= 3
