"""Features of a frozen tower: right, found again, and never those of another tower."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from loading_helpers import record, write

from jepa.data.cache import TextFeatures
from jepa.data.config import default_data_config
from jepa.data.dataset import Dataset
from jepa.data.tokenize import Tokenizer
from jepa.errors import UserError
from jepa.training import features


class Method:
    """Its tower is the masked mean of a table of tokens."""

    def __init__(self, dtype="float32", scale=1.0):
        self.dtype, self.scale = dtype, scale
        self.table = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)

    def cached_text_tower(self):
        return {"table": self.table}, self.encode

    def encode(self, params, ids, mask):
        rows = params["table"].astype(self.dtype)[ids] * mask[..., None]
        mean = rows.sum(1) / mask.sum(1, keepdims=True).astype(self.dtype)
        return (mean * self.scale).astype(jnp.float32)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "set", {"train": [record(i, size=16) for i in range(12)]})


def config(path, **keys):
    made = default_data_config()
    made.update(path=str(path), frames=2, size=16, tokenizer="dataset", **keys)
    return made


def places(data):
    return sorted(p.name for p in (data / "cache").iterdir())


def test_each_text_has_the_towers_features(data):
    found = features.cache_text_features(config(data), Method())
    texts = Dataset.open(data).split("train").texts()
    tokens = Tokenizer(data / "tokenizer.json", 32)(texts)
    expected = [
        Method().table[ids[mask]].mean(0)
        for ids, mask in zip(tokens["ids"], tokens["mask"], strict=True)
    ]
    got = TextFeatures(found.text_features)(texts)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_they_are_found_again_and_progress_is_told(data, monkeypatch, capfd):
    first = features.cache_text_features(config(data), Method())
    told = capfd.readouterr().err.splitlines()
    assert 1 <= len(told) <= 10 and all(x.startswith("embedding the texts once") for x in told)
    monkeypatch.setattr(features, "_embed", None)
    assert features.cache_text_features(config(data), Method()) == first


@pytest.mark.parametrize("other", [Method("bfloat16"), Method(scale=2.0)])
def test_a_tower_that_computes_otherwise_has_features_of_its_own(data, other):
    paths = {
        features.cache_text_features(config(data), method).text_features
        for method in (Method(), other)
    }
    assert len(paths) == len(places(data)) == 2


def test_other_weights_or_lengths_have_features_of_their_own(data):
    changed = Method()
    changed.table[3, 3] += 1
    features.cache_text_features(config(data), Method())
    features.cache_text_features(config(data), changed)
    features.cache_text_features(config(data, text_length=2), Method())
    assert len(places(data)) == 3


@pytest.mark.parametrize("file", ["meta.json", "features.npy", "index.npy"])
def test_damaged_ones_are_computed_again(data, file):
    found = Path(features.cache_text_features(config(data), Method()).text_features)
    texts = Dataset.open(data).split("train").texts()
    before = TextFeatures(found)(texts)
    whole = (found / file).read_bytes()
    (found / file).unlink()
    (found / file).write_bytes(whole[: len(whole) // 2])
    features.cache_text_features(config(data), Method())
    np.testing.assert_array_equal(TextFeatures(found)(texts), before)


def test_of_two_processes_the_first_ones_stay(data, monkeypatch):
    embed = features._embed

    def slowly(*arguments):
        monkeypatch.setattr(features, "_embed", embed)
        inner = features.cache_text_features(config(data), Method())  # the other process
        inodes.append(Path(inner.text_features).stat().st_ino)
        return embed(*arguments)

    inodes = []
    monkeypatch.setattr(features, "_embed", slowly)
    found = features.cache_text_features(config(data), Method())
    assert inodes == [Path(found.text_features).stat().st_ino] and len(places(data)) == 1


@pytest.mark.parametrize("with_dataset", [False, True])
def test_a_tfds_set_is_left_to_the_step(data, with_dataset):
    sets = (("tfds:toy", 1.0),) + (((str(data), 1.0),) if with_dataset else ())
    given = config("", mixture=sets)
    assert features.cache_text_features(given, Method()) is given


def test_a_dataset_without_texts_is_named(tmp_path, data):
    silent = write(tmp_path / "silent", {"train": [record(0, size=16, captions=(), questions=())]})
    for given in (config(silent), config("", mixture=((str(data), 1.0), (str(silent), 1.0)))):
        with pytest.raises(UserError, match=f"{silent} has no caption"):
            features.cache_text_features(given, Method())


def test_a_directory_that_cannot_be_written_is_named_before_the_work(data, monkeypatch):
    (data / "cache").write_text("a file in the way")
    monkeypatch.setattr(features, "_embed", None)
    with pytest.raises(UserError, match=rf"{data / 'cache'} cannot be written.*make it writable"):
        features.cache_text_features(config(data), Method())


def test_a_full_disk_is_named(data, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="No space left"):
        features.cache_text_features(config(data), Method())
    assert places(data) == []


def test_a_method_without_such_a_tower_changes_nothing(data):
    given = config(data)
    assert features.cache_text_features(given, object()) is given
