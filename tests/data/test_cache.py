"""Cached features of texts: exact, atomic, and loud where one is missing."""

import pickle

import numpy as np
import pytest
from loading_helpers import record, same, write

from jepa.data import cache, decode, stores
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
    for text in ("text 50", "", "zzz"):
        with pytest.raises(UserError, match=repr(text)):
            found(["text 0", text])


def test_writing_others_replaces_and_a_failed_writing_leaves_the_old(tmp_path, monkeypatch):
    one = np.ones((1, 2), np.float32)
    TextFeatures.write(tmp_path / "f", ["a"], one, "1")
    TextFeatures.write(tmp_path / "f", ["b"], one, "2")
    assert TextFeatures(tmp_path / "f").fingerprint == "2"

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(cache, "write_meta", fail)
    with pytest.raises(UserError, match="cannot write .*disk full"):
        TextFeatures.write(tmp_path / "f", ["c"], one, "3")
    assert TextFeatures(tmp_path / "f").fingerprint == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="text_features"):
        TextFeatures(tmp_path)
    for features in (np.ones((2, 3), np.float32), np.ones((1, 3)), np.full((1, 3), np.nan, "f4")):
        with pytest.raises(UserError):
            TextFeatures.write(tmp_path / "f", ["a"], features, "")


@pytest.mark.parametrize(("stays", "left"), [(True, "one"), (False, "two")])
def test_the_first_of_several_writers_stays_if_it_is_whole(tmp_path, stays, left):
    for said in ("one", "two"):
        with cache.new_directory(tmp_path / "d", stays=lambda: stays) as directory:
            (directory / "f").write_text(said)
    assert (tmp_path / "d" / "f").read_text() == left
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_the_same_features_are_not_replaced_under_their_readers(tmp_path):
    one = np.ones((1, 2), np.float32)
    TextFeatures.write(tmp_path / "f", ["a"], one, "1")
    before = (tmp_path / "f").stat().st_ino
    TextFeatures.write(tmp_path / "f", ["a"], one, "1")
    assert (tmp_path / "f").stat().st_ino == before


def spoil_meta(path):
    (path / "meta.json").write_text("{")


def drop_meta(path):
    (path / "meta.json").unlink()


def truncate(name, keep=2 / 3):
    def spoil(path):
        data = (path / name).read_bytes()
        (path / name).unlink()  # a new file: an earlier loader may still read the old one's memory
        (path / name).write_bytes(data[: int(len(data) * keep)])

    return spoil


def empty(name):
    return truncate(name, keep=0)


@pytest.mark.parametrize(
    "spoil",
    [spoil_meta, drop_meta, truncate("features.npy"), truncate("index.npy"), empty("index.npy")],
)
def test_damaged_features_are_named_and_written_anew(tmp_path, spoil):
    path = tmp_path / "f"
    features = np.ones((9, 300), np.float32)
    TextFeatures.write(path, [f"text {i}" for i in range(9)], features, "1")
    assert TextFeatures.whole(path, "1") and not TextFeatures.whole(path, "2")
    spoil(path)
    with pytest.raises(UserError, match=f"{path}.*compute them"):
        TextFeatures(path)
    assert not TextFeatures.whole(path, "1")
    TextFeatures.write(path, [f"text {i}" for i in range(9)], features, "1")
    assert TextFeatures.whole(path, "1")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("crop", ["none", "random_resized"])
@pytest.mark.parametrize(
    "spoil",
    [spoil_meta, drop_meta, truncate("y.npy"), truncate("uv.npy"), empty("clips.npy")],
)
def test_a_damaged_cache_of_clips_heals_once(tmp_path, monkeypatch, caplog, spoil, crop):
    path = write(tmp_path / "d", {"train": [record(i, size=16) for i in range(2)]})
    keys = {"path": str(path), "frames": 2, "size": 16, "tokenizer": "dataset", "cache": "disk"}
    keys |= {"pixels": "yuv420", "crop": crop}

    def first():
        with make_train_loader(keys, global_batch=2, seed=0) as loader:
            return next(loader)

    batch = first()
    (directory,) = (path / "cache").iterdir()
    spoil(directory)
    same(batch, first())
    assert f"{directory} is damaged" in caplog.text
    monkeypatch.setattr(decode, "decode_clip", None)  # it lies there whole again
    same(batch, first())
    assert list((path / "cache").iterdir()) == [directory]


def test_decoding_once_is_told_in_a_few_lines(tmp_path, capfd):
    path = write(tmp_path / "d", {"train": [record(i, size=16) for i in range(20)]})
    keys = {"path": str(path), "frames": 2, "size": 16, "tokenizer": "dataset", "cache": "disk"}
    make_train_loader(keys, global_batch=2, seed=0)
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("decoding train once")]
    assert len(lines) == 10 and lines[-1] == "decoding train once: 20 of 20 clips"


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
    path = write(tmp_path / "d", {"train": [record(i, size=16) for i in range(2)]})
    monkeypatch.setattr(stores.Memory, "room", lambda self: 1000.0)
    keys = {"path": str(path), "frames": 2, "size": 64, "tokenizer": "dataset", "cache": "memory"}
    with pytest.raises(UserError, match=r"data\.cache"):
        make_train_loader(keys, global_batch=2, seed=0)


def test_a_full_disk_leaves_no_cache(tmp_path, monkeypatch):
    path = write(tmp_path / "d", {"train": [record(i, size=16) for i in range(2)]})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.Files, "add", full)
    keys = {"path": str(path), "frames": 2, "size": 16, "tokenizer": "dataset", "cache": "disk"}
    with pytest.raises(UserError, match="No space left"):
        make_train_loader(keys, global_batch=2, seed=0)
    assert list((path / "cache").iterdir()) == []
