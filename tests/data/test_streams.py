"""What a batch has: streams asked for by name, and the classes that the stream `label` numbers."""

import json
import shutil

import jax
import numpy as np
import pytest
from loading_helpers import config, pictures, record, rows_of, same, take, write

from jepa.batch_part import BatchPart
from jepa.data import assemble
from jepa.data.evalset import EvalSet
from jepa.data.loader import make_train_loader
from jepa.errors import UserError

COLOURS = ("red", "blue", "green")


def coloured(number, **fields):
    labels = {"colour": COLOURS[number % 3]} if number < 6 else {}
    return record(number, count=4, captions=(), questions=(), labels=labels, **fields)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A set without any text; two of the eight records of `some` have no colour."""
    directory = tmp_path_factory.mktemp("data") / "set"
    records = [coloured(i) for i in range(8)]
    return write(directory, {"train": records[:6], "some": records}, attributes=None)


def unlabelled(path, **keys):
    keys = {"frames": 2, "size": 16, "streams": ("video",), "tokenizer": "/nowhere", **keys}
    return config(path, **keys)


def test_without_text_no_caption_and_no_tokenizer_is_needed(plain, monkeypatch):
    def refuse(*_):
        raise AssertionError("a tokenizer is made")

    monkeypatch.setattr(assemble, "Texts", refuse)
    loader = make_train_loader(unlabelled(plain), global_batch=4, seed=0)
    (batch,) = take(loader, 1)
    assert batch.keys() == {"video"} and loader.classes == ()
    assert loader.vocabulary == {"query": None, "text": None}
    # The other streams do not change what is seen.
    more = make_train_loader(
        unlabelled(plain, streams=("label", "video"), label="colour"), global_batch=4, seed=0
    )
    same(batch["video"], take(more, 1)[0]["video"])


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_labels_are_places_in_the_sorted_classes(plain, cache):
    keys = unlabelled(plain, streams=("video", "label"), label="colour", cache=cache)
    loader = make_train_loader(keys, global_batch=6, seed=0)
    assert loader.classes == ("blue", "green", "red")
    (batch,) = take(loader, 1)
    found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    assert found == loader.element_spec
    assert batch["label"].dtype == np.int32
    # Which clip it is, by the level of green in it.
    levels = [pictures(4, seed=i)[..., 1].mean() for i in range(6)]
    seen = batch["video"][..., 1].mean((1, 2, 3))
    clips = np.abs(seen[:, None] - np.array(levels)).argmin(axis=1)
    assert sorted(clips) == list(range(6))
    expected = [loader.classes.index(COLOURS[clip % 3]) for clip in clips]
    assert batch["label"].tolist() == expected
    parts = [
        make_train_loader(keys, global_batch=6, seed=0, part=BatchPart((h,), 2)) for h in range(2)
    ]
    for host, part in enumerate(parts):
        same(rows_of(batch, slice(3 * host, 3 * host + 3)), take(part, 1)[0])


def test_a_record_without_the_label_is_named(plain):
    keys = unlabelled(plain, streams=("video", "label"), label="colour", split="some")
    with pytest.raises(UserError, match="clip-000[67].*no label 'colour'"):
        take(make_train_loader(keys, global_batch=8, seed=0), 1)


def test_a_label_that_is_not_defined_is_named(plain, tmp_path):
    keys = unlabelled(plain, streams=("video", "label"), label="shape")
    with pytest.raises(UserError, match="data.label is 'shape'.*it has colour"):
        make_train_loader(keys, global_batch=4, seed=0)
    # A dataset whose description was edited, and one of other classes.
    other = tmp_path / "other"
    shutil.copytree(plain, other)
    description = json.loads((other / "dataset.json").read_text())
    del description["attributes"]["colour"]["red"]
    (other / "dataset.json").write_text(json.dumps(description))
    keys = {"streams": ("video", "label"), "label": "colour"}
    with pytest.raises(UserError, match="colour 'red'.*dataset.json"):
        take(make_train_loader(unlabelled(other, **keys), global_batch=6, seed=0), 1)
    mixture = unlabelled("", mixture=((str(plain), 1.0), (str(other), 1.0)), **keys)
    with pytest.raises(UserError, match="3 classes and .* 2 or others; mix datasets"):
        make_train_loader(mixture, global_batch=4, seed=0)


@pytest.mark.parametrize(
    "streams", [(), ("text",), ("video", "sound"), ("video", "video"), ("video", 3)]
)
def test_streams_are_checked(plain, streams):
    with pytest.raises(UserError, match="data.streams is"):
        make_train_loader(unlabelled(plain, streams=streams), global_batch=4, seed=0)


def test_evaluation_needs_no_text(plain):
    evaluated = EvalSet(unlabelled(plain), "train")
    assert evaluated.texts is None
    ((valid, video),) = evaluated.batches(6)
    assert valid == 6 and video.shape == (6, 2, 16, 16, 3)
