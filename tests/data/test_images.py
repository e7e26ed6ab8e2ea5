"""Prepared TFDS image sets: read without TensorFlow, as clips of one frame."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from array_record.python import array_record_module
from loading_helpers import pictures

from jepa.data.evalset import EvalSet
from jepa.data.images import ImageSplit, _distinct
from jepa.data.loader import make_train_loader
from jepa.errors import UserError

CLASSES = ["cat", "acorn_tree"]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A prepared set `toy` of five PNG pictures, written as TFDS would have."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    directory = tmp_path / "toy" / "1.0.0"
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }
    )
    features.save_config(directory)
    name = "toy-train.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(directory / name), "group_size:1")
    for number, picture in enumerate(pictures(5, 48, 64)):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(data.getvalue())
        example.features.feature["label"].int64_list.value.append(number % 2)
        writer.write(example.SerializeToString())
    writer.close()
    (directory / "dataset_info.json").write_text(
        json.dumps(
            {
                "name": "toy",
                "version": "1.0.0",
                "fileFormat": "array_record",
                "moduleName": "toy",
                "splits": [
                    {
                        "name": "train",
                        "numBytes": "1",
                        "shardLengths": ["5"],
                        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    }
                ],
            }
        )
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_records_have_captions_labels_and_encoded_bytes(toy):
    split = pickle.loads(pickle.dumps(ImageSplit("toy", "train")))
    assert len(split) == 5
    first, second = split.record(0), split.record(1, video=False)
    assert first.media == "image" and first.codec == "png" and second.video == b""
    assert (first.height, first.width) == (48, 64)
    assert first.captions[0].text == "a photo of a cat"
    assert second.captions[0].text == "a photo of an acorn tree"
    assert second.labels == {"class": "acorn tree"}
    assert len({split.record(i).key for i in range(5)}) == 5


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_batches_repeat_the_image(toy, cache):
    keys = {"path": "tfds:toy", "frames": 4, "size": 32, "cache": cache, "tokenizer": "minilm"}
    with make_train_loader(keys, global_batch=5, seed=0) as loader:
        batch = next(loader)
    assert batch["video"].shape == (5, 4, 32, 32, 3)
    assert (batch["video"] == batch["video"][:, :1]).all()
    red = np.sort(batch["video"][..., 0].mean((1, 2, 3)))
    shown = np.sort(pictures(5, 48, 64)[..., 0].mean((1, 2)))
    np.testing.assert_allclose(red, shown, atol=2)


def test_what_is_not_there_is_named(toy):
    for name, split in (("toy", "test"), ("nothing", "train")):
        with pytest.raises(UserError, match=f"{name}.*TFDS_DATA_DIR"):
            ImageSplit(name, split)


def test_tensorflow_stays_out(toy):
    code = (
        "import sys; from jepa.data.images import ImageSplit; "
        "ImageSplit('toy', 'train').record(0); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_labels_are_places_in_the_order_of_the_set(toy, cache):
    keys = {"path": "tfds:toy", "frames": 1, "size": 32, "cache": cache}
    keys["streams"] = ("video", "label")
    with make_train_loader(keys, global_batch=5, seed=0) as loader:
        batch = next(loader)
        assert loader.classes == ("cat", "acorn tree")
    # The level of red tells which picture it is.
    numbers = np.argsort(np.argsort(batch["video"][..., 0].mean((1, 2, 3))))
    np.testing.assert_array_equal(batch["label"], numbers % 2)
    evaluated = EvalSet(keys, "train")
    assert evaluated.labels.tolist() == [0, 1, 0, 1, 0] and evaluated.classes == loader.classes


def test_classes_of_one_name_stay_two():
    names = _distinct(["crane", "cat", "crane", "crane 2", "crane"])
    assert names[:3] == ("crane", "cat", "crane 2") and len(set(names)) == 5


def test_a_picture_whose_class_is_hidden_has_none(toy):
    """ImageNet's test split says -1, which is no place from the end."""
    split = ImageSplit("toy", "train")
    split._source = [dict(split._source[0], label=-1)]
    record = split.record(0)
    assert record.labels == {} and record.captions == ()
    split._label = None
    assert split.record(0).labels == {}
