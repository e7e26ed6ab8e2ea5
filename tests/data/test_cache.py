"""Cached features of texts: exact, atomic, and loud where one is missing."""

import pickle

import numpy as np
import pytest
from loading_helpers import record, write

from jepa.data import cache
from jepa.data.cache import TextFeatures
from jepa.data.loader import make_train_loader
from jepa.data.tokenize import text_hashes
from jepa.errors import UserError


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_was_written_is_read(tmp_path, dtype):
    texts = [f"text {i}" for i in range(50)] + ["text 3"]
    features = np.random.default_rng(0).normal(size=(51, 7)).astype(dtype)
    features[50] = features[3]
    TextFeatures.write(tmp_path / "f", texts, features, "tower 1")
    found = pickle.loads(pickle.dumps(TextFeatures(tmp_path / "f")))
    assert (found.width, found.fingerprint, len(found)) == (7, "tower 1", 50)
    order = [9, 0, 49, 9]
    rows = found([texts[i] for i in order])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, features[order].astype(np.float32))
    np.testing.assert_array_equal(found.lookup("text 3"), features[3])
    for text in ("text 50", "", "zzz"):
        with pytest.raises(UserError, match=repr(text)):
            found(["text 0", text])


def test_writing_again_replaces_and_a_failed_writing_leaves_the_old(tmp_path, monkeypatch):
    one = np.ones((1, 2), np.float32)
    TextFeatures.write(tmp_path / "f", ["a"], one, "1")
    TextFeatures.write(tmp_path / "f", ["b"], one, "2")
    assert TextFeatures(tmp_path / "f").fingerprint == "2"

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(cache, "write_meta", fail)
    with pytest.raises(OSError, match="disk full"):
        TextFeatures.write(tmp_path / "f", ["c"], one, "3")
    assert TextFeatures(tmp_path / "f").fingerprint == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="text_features"):
        TextFeatures(tmp_path)
    for features in (np.ones((2, 3), np.float32), np.ones((1, 3)), np.full((1, 3), np.nan, "f4")):
        with pytest.raises(UserError):
            TextFeatures.write(tmp_path / "f", ["a"], features, "")


def test_the_first_of_several_writers_stays(tmp_path):
    for said in ("one", "two"):
        with cache.new_directory(tmp_path / "d", replace=False) as directory:
            (directory / "f").write_text(said)
    assert (tmp_path / "d" / "f").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_loader_gives_features_in_place_of_tokens(tmp_path):
    path = write(tmp_path / "d", {"train": [record(i, size=16) for i in range(4)]})
    from jepa.data.dataset import Dataset

    texts = Dataset.open(path).texts()
    features = text_hashes(texts)[:, None].astype(np.float32) * np.ones((1, 3), np.float32)
    TextFeatures.write(tmp_path / "f", texts, features, "")
    keys = {"path": str(path), "frames": 2, "size": 16, "tokenizer": "dataset"}
    with make_train_loader(
        {**keys, "text_features": str(tmp_path / "f")}, global_batch=4, seed=0
    ) as loader:
        batch = next(loader)
    assert set(batch["text"]) == {"features", "hash"}
    np.testing.assert_array_equal(
        batch["text"]["features"][:, 0], batch["text"]["hash"].astype(np.float32)
    )
    assert loader.element_spec["text"]["features"].shape == (4, 3)


def test_a_cache_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    from jepa.data import clips

    path = write(tmp_path / "d", {"train": [record(i, size=16) for i in range(2)]})
    monkeypatch.setattr(clips._Memory, "room", lambda self: 1000.0)
    keys = {"path": str(path), "frames": 2, "size": 64, "tokenizer": "dataset", "cache": "memory"}
    with pytest.raises(UserError, match=r"data\.cache"):
        make_train_loader(keys, global_batch=2, seed=0)


def test_a_full_disk_leaves_no_cache(tmp_path, monkeypatch):
    from jepa.data import clips

    path = write(tmp_path / "d", {"train": [record(i, size=16) for i in range(2)]})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clips._Files, "add", full)
    keys = {"path": str(path), "frames": 2, "size": 16, "tokenizer": "dataset", "cache": "disk"}
    with pytest.raises(UserError, match="No space left"):
        make_train_loader(keys, global_batch=2, seed=0)
    assert list((path / "cache").iterdir()) == []
