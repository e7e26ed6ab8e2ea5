import numpy as np
import pytest

from jepa.data.config import default_data_config
from jepa.data.dataset import Dataset
from jepa.data.tokenize import text_hash
from jepa.data.world import write_world
from jepa.evaluation.source import DatasetSource


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    clips = {"train": 2, "validation": 7}
    write_world(directory, seed=0, clips=clips, processes=1)
    return directory


def make(world, **changes):
    config = default_data_config()
    config.update(path=str(world), tokenizer="dataset", frames=4, size=64, cache="memory")
    config.update(changes)
    return DatasetSource(config, batch_size=3)


def test_clips_come_in_order_with_controls(world):
    source = make(world)
    assert [r.key for r in source.records("validation")] == [
        Dataset.open(world).split("validation").record(i, video=False).key for i in range(7)
    ]
    videos = {}
    for control in ("none", "blank", "single", "shuffled"):
        parts = list(source.clips("validation", control, range(7)))
        assert [valid for valid, _ in parts] == [3, 3, 1]
        assert all(np.shape(video) == (3, 4, 64, 64, 3) for _, video in parts)
        videos[control] = np.concatenate([video[:valid] for valid, video in parts])
    assert len(np.unique(videos["blank"])) == 1
    single = videos["single"]
    assert (single == single[:, :1]).all()
    trained = make(world, frame_control="single")
    assert trained.frame_control == "single"
    parts = [video[:valid] for valid, video in trained.clips("validation", "none", range(7))]
    np.testing.assert_array_equal(np.concatenate(parts), single)
    np.testing.assert_array_equal(trained.frames("validation", [2])[2], single[2])
    for clip, mixed in zip(videos["none"], videos["shuffled"], strict=True):
        assert sorted(f.tobytes() for f in clip) == sorted(f.tobytes() for f in mixed)


def test_frames_are_rgb_whatever_the_model_gets(world):
    plain, planes = make(world), make(world, pixels="yuv420")
    frames = planes.frames("validation", [5, 1])
    assert sorted(frames) == [1, 5]
    wanted = plain.frames("validation", [5])[5]
    np.testing.assert_array_equal(frames[5], wanted)
    assert wanted.dtype == np.uint8
    assert wanted.shape == (4, 64, 64, 3)
    assert planes.frames("validation", []) == {}


def test_texts_are_tokenized_to_fixed_lengths(world):
    source = make(world, query_length=5, text_length=9)
    query, text = source.encode_queries(["what?"]), source.encode_texts(["a red star", "a"])
    assert query["ids"].shape == query["mask"].shape == (1, 5)
    assert text["ids"].shape == (2, 9)
    assert text["hash"].tolist() == [text_hash("a red star"), text_hash("a")]


def test_the_dataset_brings_classes_and_the_caption_query(world):
    source = make(world)
    dataset = Dataset.open(world)
    assert source.attributes == dataset.attributes
    assert source.caption_query == dataset.caption_queries[0]
    assert make(world, caption_query=("Tell me.",)).caption_query == "Tell me."
