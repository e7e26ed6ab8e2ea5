"""The probes' protocol from end to end, on pictures of which the answer is known."""

import json

import jax
import numpy as np
import pytest

from experiments import cli, probe, restoring
from jepa import methods
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import probes, probes_config, probes_features, probes_labels, probes_results
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training.checkpoints import Checkpoints
from tests.evaluation import probe_toy


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh({}, jax.devices()[:1])


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "set"
    probe_toy.write(path)
    return path


def suite(tmp_path, pictures, mesh, **changes):
    data = DataConfig.parse({"path": f"idx:{pictures}", "frames": 1, "size": 8})
    store = probes_features.FeatureStore(
        tmp_path / "features", mesh, batch_size=16, storage="float32"
    )
    return probes.Suite(data, probe_toy.section(**changes), store, mesh=mesh)


def test_labels_are_drawn_in_turns():
    ids = np.array([0] * 50 + [1] * 3 + [-1] * 20 + [2] * 10)
    for seed in range(3):
        drawn = probes_labels.draw(ids, 12, seed=seed)
        assert list(drawn) == sorted(set(drawn))
        assert np.bincount(ids[drawn]).tolist() in ([5, 3, 4], [4, 3, 5])
    assert not np.array_equal(
        probes_labels.draw(ids, 12, seed=0), probes_labels.draw(ids, 12, seed=1)
    )
    for all_of_them in (None, 63, 100):
        drawn = probes_labels.draw(ids, all_of_them, seed=0)
        np.testing.assert_array_equal(drawn, np.flatnonzero(ids >= 0))


def test_every_class_of_two_is_held_out_in_part():
    ids = np.array([0] * 20 + [1] * 2 + [2])
    fit, held = probes_labels.hold_out(ids, 0.2, seed=4)
    assert sorted([*fit, *held]) == list(range(23))
    assert np.bincount(ids[held], minlength=3).tolist() == [4, 1, 0]
    with pytest.raises(UserError, match="no class has two"):
        probes_labels.hold_out(np.array([0, 1, 2]), 0.2, seed=0)


def test_known_features_give_known_accuracies(tmp_path, pictures, mesh):
    found = suite(tmp_path, pictures, mesh, train_labels=30)
    pixels = probes_features.of_pixels(8, grey=True)
    for name in ("knn", "linear"):
        numbers, hits = found.measure(pixels, "class", name)
        assert numbers["accuracy"]["value"] > 0.95
        assert numbers["accuracy"]["chance"] == pytest.approx(14 / 40)
        assert numbers["balanced_accuracy"]["chance"] == pytest.approx(1 / 3)
        assert numbers["labels"] == {"train": 30, "test": 40, "train_without": 0, "test_without": 0}
        assert len(numbers["by_seed"]) == 2 and len(hits) == 40
        assert numbers["features"] == [64]
    assert numbers["chosen"][0]["l2"] in (1e-3, 1e-1)
    # Nothing is drawn where all labels train, so neighbours do not depend on the seed.
    whole = suite(tmp_path, pictures, mesh)
    assert len(whole.measure(pixels, "class", "knn")[0]["by_seed"]) == 1


def test_settings_are_chosen_without_the_test_labels(tmp_path, pictures, mesh):
    one, other = (suite(tmp_path, pictures, mesh) for _ in range(2))
    label = other.labels["class"]
    label.test[:] = (label.test + 1) % 3  # every test label is wrong
    pixels = probes_features.of_pixels(8, grey=True)
    right, _ = one.measure(pixels, "class", "linear")
    wrong, _ = other.measure(pixels, "class", "linear")
    assert right["chosen"] == wrong["chosen"]
    assert right["accuracy"]["value"] > 0.95 and wrong["accuracy"]["value"] < 0.05


def test_held_out_labels_choose_and_do_not_fit(tmp_path, pictures, mesh):
    found = suite(tmp_path, pictures, mesh)
    (fold,) = found.folds("class", [0])
    assert not set(fold.fit) & set(fold.held)
    np.testing.assert_array_equal(fold.train, np.arange(60))
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 3)), rng.normal(size=(40, 3))
    _, before = found._linear(train, test, fold)
    assert 0.1 < before["held_out_accuracy"] < 0.7  # noise


def test_wide_features_and_a_test_split_that_trains_are_refused(tmp_path, pictures, mesh):
    config = probe_toy.config(pictures)
    method = methods.from_config(config)
    params, state = method.init(jax.random.key(0), None)
    encoder = probes_features.of_method(method, params, state, [], pooling="all", name="x")
    with pytest.raises(UserError, match="24 numbers, and config.probe.most_features allows 10"):
        suite(tmp_path, pictures, mesh, most_features=10).measure(encoder, "class", "linear")
    with pytest.raises(UserError, match="measures its memory"):
        suite(tmp_path, pictures, mesh, train_split="test")
    with pytest.raises(UserError, match="probe.labels .*'colour', which .* it has: class"):
        suite(tmp_path, pictures, mesh, labels=("colour",))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pooling", "max", "use one of"),
        ("held_out", 1.0, "above 0 and below 1"),
        ("seeds", 0, "at least 1"),
        ("train_labels", 1, "at least 2"),
        ("linear.l2", ("a",), "positive numbers"),
        ("linear.l2", (float("nan"),), "positive numbers"),
        ("attentive.weight_decays", ("x",), "at least 0"),
        ("finetune.learning_rates", (), "positive numbers"),
    ],
)
def test_a_bad_value_is_named(key, value, words):
    section = probes_config.default_probe()
    section.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"config.probe.{key} .*{words}"):
        probes_config.check(section)


def save(config, directory, mesh):
    """A checkpoint of step 3 whose moving average differs from the parameters."""
    config = configs.resolve(config)
    method = methods.from_config(config)
    state = restoring.initializer(config, method, mesh).create()
    state = state.replace(target_params=jax.tree.map(lambda x: x[::-1] * 2, state.params))
    kept = Checkpoints(directory / "checkpoints")
    kept.save(3, state, {}, {})
    kept.close()


def test_one_table_has_the_checkpoint_and_its_controls(
    tmp_path, pictures, mesh, capsys, monkeypatch
):
    monkeypatch.setattr(probe.meshes, "make_mesh", lambda shape: mesh)
    config = probe_toy.config(pictures, train_labels=30)
    save(config, tmp_path, mesh)
    kinds = ("knn", "linear", "attentive")
    wanted = probe.Wanted(probes=kinds)
    first = probe.main(config, tmp_path, wanted)
    assert first["encoders"]["trained"]["checkpoint_step"] == 3
    assert first["encoders"]["trained"]["parameters"] == "moving average"
    assert capsys.readouterr().out.count("measuring") == 3

    probe.main(config, tmp_path, wanted)
    assert "measuring" not in capsys.readouterr().out  # all of it is known

    probe.main(config, tmp_path, probe.Wanted(online=True))
    control = probe.Wanted(random_init=True, pixels=True)
    probe.main(config, tmp_path, control)
    blank = probe.Wanted(probes=("linear",), frame_control="blank")
    numbers = probe.main(config, tmp_path, blank)
    assert json.loads((tmp_path / "probes.json").read_text()) == numbers
    names = ["trained", "trained_blank", "trained_online", "pixels", "random_init"]
    assert list(numbers["encoders"]) == names
    # This state's parameters are those of the random start; the moving average is another.
    online, start = (numbers["encoders"][name]["labels"] for name in ("trained_online", names[-1]))
    assert online == start != first["encoders"]["trained"]["labels"]
    shown = numbers["encoders"]["trained_blank"]["labels"]["class"]["linear"]["accuracy"]
    assert shown["value"] < 0.4  # nothing is left to be seen
    gain = numbers["gains"]["class"]["linear"]["over_trained_blank"]
    assert gain["low"] > 0
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("label") and "trained (step 3)" in line for line in table)
    row = next(line for line in table if line.startswith("class  attentive"))
    assert row.endswith("-")  # of pixels and of the random start it was not asked

    # By another protocol nothing is comparable but what is measured now.
    config.probe.train_labels = 12
    numbers = probe.main(config, tmp_path, control)
    assert list(numbers["encoders"]) == ["pixels", "random_init"]


def test_another_encoder_begins_its_file_anew(tmp_path):
    said = {"identity": "i", "protocol": "p", "numbers": {"n": 1}, "hits": [1]}
    one = probes_results.Measured(tmp_path, "trained", {"digest": "a"})
    one.add("class", "knn", **said)
    again = probes_results.Measured(tmp_path, "trained", {"digest": "a"})
    assert again.has("class", "knn", "i") and not again.has("class", "linear", "i")
    assert not probes_results.Measured(tmp_path, "trained", {"digest": "b"}).entries
    one.path.write_text('{"version": 1')
    assert not probes_results.read(tmp_path)["trained"].entries


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": ("cnn",)}, "give one or more of knn, linear, attentive, finetune"),
        ({"probes": ()}, "give one or more of"),
        ({"pixels": True, "probes": ("attentive",)}, "has no network"),
        ({"random_init": True, "checkpoint": "7"}, "measure no checkpoint"),
        ({}, "holds no checkpoint; train first"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_with_two(tmp_path, pictures, capsys, options, words):
    config = probe_toy.config(pictures)
    code = cli.exit_code(lambda: probe.main(config, tmp_path, probe.Wanted(**options)))
    said = capsys.readouterr().err
    assert code == 2 and words in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
