"""The k-NN probe during training, against the one afterwards, on the same clips."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import online_knn, probes, probes_features
from jepa.evaluation.online_knn import OnlineKnn, Settings, default_knn
from jepa.methods.base import Outputs
from jepa.nn.frames import to_float
from jepa.parallel import mesh as meshes
from tests.evaluation import probe_toy


class Shades:
    """Pools the means of the left and of the right half, times a parameter each."""

    def embed(self, params, state, batch):
        video = to_float(batch["video"])[:, 0]
        halves = video.reshape(-1, 8, 2, 4, 3).mean(axis=(1, 3, 4)) * params["scale"]
        return Outputs(tokens={"video": halves[:, None]}, pooled={"video": halves})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "set"
    probe_toy.write(path, train=60, test=40)
    return path


def data_of(pictures):
    return DataConfig.parse({"path": f"idx:{pictures}", "frames": 1, "size": 8, "cache": "memory"})


def small(**changes):
    return default_knn(**{"test_split": "test", "batch_size": 9, "k": 5, **changes})


def mesh_of(devices):
    return meshes.make_mesh({"data": devices}, jax.devices()[:devices])


def test_it_finds_what_the_probe_afterwards_finds(pictures, tmp_path):
    measure = OnlineKnn(Shades(), data_of(pictures), small(train_count=30, seed=1), mesh_of(2))
    mesh = mesh_of(1)
    store = probes_features.FeatureStore(tmp_path, mesh, batch_size=16, storage="float32")
    section = probe_toy.section(train_labels=30, seed=1)
    section.update(seeds=1, knn=ConfigDict({"k": 5, "temperature": 0.07}))
    suite = probes.Suite(data_of(pictures), section, store, mesh=mesh)
    accuracies = set()
    for scale in ((1.0, 1.0), (0.0, 1.0), (-1.0, 0.05)):
        params = {"scale": np.array(scale, np.float32)}
        found = measure(params, {})
        encoder = probes_features.of_method(
            Shades(), params, {}, [scale], pooling="mean", name="shades"
        )
        accuracy = suite.measure(encoder, "class", "knn")[0]["accuracy"]
        assert found == {"class": accuracy["value"], "class_chance": accuracy["chance"]}
        accuracies.add(found["class"])
    assert len(accuracies) > 1 and max(accuracies) > 0.9
    assert measure._embed._cache_size() == 1  # one program for both splits and all checkpoints
    nowhere = measure({"scale": np.array([np.nan, 1], np.float32)}, {})
    assert np.isnan(nowhere["class"]) and nowhere["class_chance"] == 14 / 40


def test_clips_are_drawn_once_in_turns_of_the_classes(pictures):
    data = data_of(pictures)
    one, again, other = (
        online_knn.draw(Settings.parse(small(train_count=12, test_count=10, seed=seed)), data)[
            "class"
        ]
        for seed in (0, 0, 1)
    )
    for drawn in (one, other):
        assert np.bincount(drawn.train_ids).tolist() == [4, 4, 4]
        assert len(set(drawn.test)) == 10 and max(drawn.test) > 20  # not the first ones only
        np.testing.assert_array_equal(drawn.train_ids, drawn.train % 3)
        np.testing.assert_array_equal(drawn.test_ids, drawn.test % 3)
    np.testing.assert_array_equal(one.train, again.train)
    np.testing.assert_array_equal(one.test, again.test)
    assert set(one.train) != set(other.train) and set(one.test) != set(other.test)
    # All of them, where there are fewer.
    every = online_knn.draw(Settings.parse(small()), data)["class"]
    assert (len(every.train), len(every.test)) == (60, 40)


def test_labels_count_only_the_clips_drawn_for_them(monkeypatch, pictures):
    # The second label says of the dark pictures only whether their number is even.
    def read(data, names, **options):
        numbers = [np.arange(count, dtype=np.int32) for count in (60, 40)]
        sides = {
            "class": [each % 3 for each in numbers],
            "even": [np.where(each % 3 == 0, each % 2, -1) for each in numbers],
        }
        return {
            name: online_knn.probes_labels.Labelled(name, ("a", "b", "c"), *sides[name], None, "")
            for name in names
        }

    monkeypatch.setattr(online_knn.probes_labels, "read", read)
    section = small(labels=("class", "even"), train_count=6, test_count=7)
    measure = OnlineKnn(Shades(), data_of(pictures), section, mesh_of(1))
    assert measure.keys == ["class", "class_chance", "even", "even_chance"]
    together = measure({"scale": np.ones(2, np.float32)}, {})
    assert list(together) == measure.keys
    alone = {}
    for label in ("class", "even"):
        section.labels = (label,)
        one = OnlineKnn(Shades(), data_of(pictures), section, mesh_of(1))
        alone |= one({"scale": np.ones(2, np.float32)}, {})
    assert together == alone
    drawn = measure._drawn["even"]
    assert set(drawn.train % 3) == set(drawn.test % 3) == {0}
    assert np.bincount(drawn.train_ids).tolist() == [3, 3] and len(drawn.test) == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "test"}, "'evaluation.knn.split' does not exist; did you mean 'test_split'"),
        ({"train_split": "test"}, "has 'test' for both train_split and test_split"),
        ({"test_split": ""}, "test_split is ''; give the name"),
        ({"labels": "class"}, "labels is 'class'; give a tuple"),
        ({"labels": ("class", "class")}, "name each label once"),
        ({"train_count": 0}, "train_count is 0; give a whole number of at least 1"),
        ({"test_count": None}, "test_count is None; give a whole number"),
        ({"k": True}, "k is True"),
        ({"temperature": 1.0}, "temperature is 1.0; make it above 0"),
    ],
)
def test_a_bad_value_is_named(changes, words):
    with pytest.raises(UserError, match="evaluation.knn") as found:
        Settings.parse(small(**changes))
    assert words in str(found.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_split": "validation"}, "validation"),
        ({"labels": ("colour",)}, "evaluation.knn.labels .*'colour', which .* it has: class"),
        ({"train_count": 2}, "train_count is 2, and 'class' has 3 classes"),
    ],
)
def test_what_the_data_has_not_is_named(pictures, changes, words):
    with pytest.raises(UserError, match=words):
        OnlineKnn(Shades(), data_of(pictures), small(**changes), mesh_of(1))
