"""Prepared TFDS sets of videos: frames joined to clips, without TensorFlow."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from jepa.data import decode, tfds_video, transforms
from jepa.data.evalset import EvalSet
from jepa.data.loader import make_train_loader
from jepa.errors import UserError

FEATURES = "tensorflow_datasets.core.features."
FRAMES = 6


def level(clip, time):
    """What frame `time` of clip `clip` shows: rising in even clips, falling in odd ones."""
    return 30 * (time if clip % 2 == 0 else FRAMES - 1 - time) + 5 * clip


def features(form):
    return {
        "pythonClassName": FEATURES + "features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "clip": {
                    "pythonClassName": FEATURES + "video_feature.Video",
                    "video": {
                        "shape": {"dimensions": ["-1", "-1", "-1", "3"]},
                        "dtype": "uint8",
                        "encodingFormat": form.lower(),
                    },
                },
                "label": {
                    "pythonClassName": FEATURES + "class_label_feature.ClassLabel",
                    "classLabel": {"numClasses": "2"},
                },
            }
        },
    }


def fill(directory, form, labels):
    """A set `moves` as TFDS lays it out: two shards, clips of `FRAMES` pictures of 48 x 64."""
    from tensorflow_datasets.proto import tf_example_pb2

    directory.mkdir(parents=True)
    sizes = [2, len(labels) - 2]
    clips = iter(enumerate(labels))
    for shard, size in enumerate(sizes):
        name = f"moves-train.array_record-{shard:05d}-of-{len(sizes):05d}"
        writer = array_record_module.ArrayRecordWriter(str(directory / name), "group_size:1")
        for _, (clip, label) in zip(range(size), clips, strict=False):
            example = tf_example_pb2.Example()
            for time in range(FRAMES):
                file = io.BytesIO()
                picture = np.full((48, 64, 3), level(clip, time), np.uint8)
                Image.fromarray(picture).save(file, form)
                example.features.feature["clip"].bytes_list.value.append(file.getvalue())
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
    (directory / "features.json").write_text(json.dumps(features(form)))
    (directory / "label.labels.txt").write_text("moving_up\nmoving_down\n")
    split = {
        "name": "train",
        "numBytes": "1",
        "shardLengths": [str(size) for size in sizes],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": "moves", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (directory / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture(params=["PNG", "JPEG"])
def moves(tmp_path, monkeypatch, request):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    fill(tmp_path / "moves" / "1.0.0", request.param, [0, 1, 0, -1])
    return tmp_path


def levels(video):
    return video.astype(float).mean((-3, -2, -1))


def test_records_are_clips_of_the_frames_that_tfds_keeps(moves):
    split = pickle.loads(pickle.dumps(tfds_video.open_split("moves", "train")))
    assert len(split) == 4 and split.classes == ("moving up", "moving down")
    for clip in range(4):
        record = split.record(clip)
        assert (record.media, record.frames, record.width, record.height) == ("video", 6, 64, 48)
        times = decode.frame_times(record, np.array([4, 0, 5]))
        found = decode.decode_clip(record.video, times, transforms.Converter(32))
        shown = [frame["rgb"].mean() for frame in found]
        np.testing.assert_allclose(shown, [level(clip, t) for t in (4, 0, 5)], atol=2)
    assert split.record(1, video=False).video == b""
    assert split.record(1).labels == {"class": "moving down"}
    assert split.record(1).captions[0].text == "a photo of a moving down"
    # A class that is hidden is -1.
    assert split.record(3).labels == {} and split.record(3).captions == ()
    assert "tensorflow" not in sys.modules


def test_batches_slices_and_evaluation(moves):
    keys = {"path": "tfds:moves", "split": "train[:75%]", "frames": 3, "size": 16}
    keys |= {"streams": ("video", "label"), "sampling": "uniform"}
    with make_train_loader(keys, global_batch=3, seed=0) as loader:
        batch = next(loader)
    shown = levels(batch["video"])
    expected = np.array([[level(clip, time) for time in (1, 3, 5)] for clip in range(3)])
    clips = np.abs(shown[:, None] - expected).max(axis=2).argmin(axis=1)
    assert sorted(clips) == [0, 1, 2]
    np.testing.assert_allclose(shown, expected[clips], atol=2)
    np.testing.assert_array_equal(batch["label"], clips % 2)
    assert EvalSet(keys, "train").labels.tolist() == [0, 1, 0, -1]


def test_mistakes_are_named(moves):
    keys = {"path": "tfds:moves", "frames": 3, "size": 16, "streams": ("video",)}
    with pytest.raises(UserError, match="data.fps is 4, .*no frame rate.*tfds:moves; set it"):
        make_train_loader({**keys, "fps": 4.0}, global_batch=2, seed=0)
    with pytest.raises(UserError, match="'moves', split 'test', cannot be read"):
        make_train_loader({**keys, "split": "test"}, global_batch=2, seed=0)
    info = moves / "moves" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="its files are tfrecord.*file_format='array_record'"):
        make_train_loader(keys, global_batch=2, seed=0)


def test_the_newest_version_is_taken_unless_one_is_named(moves):
    (moves / "moves" / "1.0.10").mkdir()
    (moves / "moves" / "1.0.9").mkdir()
    assert tfds_video.prepared("moves").name == "1.0.10"
    assert tfds_video.prepared("moves:1.0.0").name == "1.0.0"
    assert tfds_video.prepared("moves:2.0.0") is None and tfds_video.prepared("nothing") is None
