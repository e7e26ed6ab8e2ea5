import pytest
from ml_collections import ConfigDict

from jepa.errors import UserError
from jepa.training import config as configs
from jepa.training import workdir
from tests.training import toy


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("optimizer__learning_rat", 1.0, "optimizer.learning_rat.*did you mean 'learning_rate'"),
        ("train__step", 5, "train.step'.*did you mean 'steps'"),
        ("mesh__dat", 1, "mesh.dat'.*did you mean 'data'"),
        ("optimiser", {}, "optimiser.*did you mean 'optimizer'"),
        ("train__steps", 2.5, "train.steps.*2.5.*integer"),
        ("train__steps", True, "train.steps.*integer"),
        ("train__global_batch", 0, "global_batch.*at least 1"),
        ("seed", -1, "'seed' is -1; give one from 0 to 4294967295"),
        ("seed", 2**32, "'seed' is 4294967296; give one from 0"),
        ("train__keep_best_mode", "most", "keep_best_mode.*'max' or 'min'"),
        ("train__keep_best_metric", "a/b", "keep_best_metric.*eval_every"),
        ("train__profile_steps", (5, 2), "profile_steps"),
        ("train__gradient_cache", True, "gradient_cache' is True.*accumulate is 1.*set"),
        ("train__gradient_cache", 1, "gradient_cache.*True or False"),
        ("optimizer__learning_rate", "fast", "learning_rate.*'fast'.*number"),
        ("optimizer__learning_rate", float("nan"), "learning_rate.*finite"),
        ("optimizer__learning_rate", -1.0, "learning_rate.*positive"),
        ("optimizer__b2", 1.0, "optimizer.b2"),
        ("optimizer__muon_momentum", 5.0, "optimizer.muon_momentum.*less than 1"),
        ("optimizer__clip_norm", 0.0, "clip_norm.*None"),
        ("optimizer__no_decay", "bias", "no_decay.*tuple"),
        ("optimizer__start_factor", -0.1, "start_factor.*at least 0"),
        ("optimizer__schedule_scale", 0.5, "schedule_scale.*at least 1"),
        ("optimizer__final_weight_decay", -1.0, "final_weight_decay.*at least 0"),
        ("optimizer__clip_from", 1.5, "clip_from.*integer"),
        ("ema", {"schedule_scale": 0.5}, "ema.schedule_scale.*at least 1"),
        ("ema", {"steps": 0}, "ema.steps.* is 0; make it at least 1"),
        ("phases", "main", "'phases' is 'main'; give a tuple"),
        ("dtype", "float16", "dtype.*float16"),
        ("ema", {"momentun": 0.9}, "ema.momentun.*did you mean 'momentum'"),
    ],
)
def test_mistakes_are_named(key, value, words):
    with pytest.raises(UserError, match=words):
        configs.resolve(toy.config(**{key: value}))


def test_defaults_are_filled_in_and_the_original_is_left_alone():
    short = ConfigDict({"method": "m", "data": {}, "model": {}, "train": {"steps": 7}})
    full = configs.resolve(short)
    assert full.train.steps == 7
    assert full.train.log_every == configs.default_train_config().log_every
    assert full.optimizer.schedule == "cosine" and full.ema is None and full.seed == 0
    assert "optimizer" not in short
    assert configs.resolve(full).to_dict() == full.to_dict()


def test_what_is_needed_is_asked_for():
    with pytest.raises(UserError, match="'method'"):
        configs.resolve(ConfigDict({"data": {}, "model": {}}))


def check(devices=8, **overrides):
    config = configs.resolve(toy.config(**overrides))
    configs.check_run(config, toy.Toy(config), devices)


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"train__global_batch": 20}, "global_batch.* 20.*multiple of 8"),
        ({"mesh__tensor": 3}, "does not fit 8 devices"),
        ({"mesh__data": 2}, "does not fit 8 devices"),
        ({"mesh__fsdp": -1}, "does not fit 8 devices"),
        ({"train__accumulate": 3}, "accumulate.* 3.*2 examples"),
        ({"model__ema": True}, "'ema' is None.*target encoder"),
        ({"ema": configs.default_ema_config()}, "'ema' is set"),
        ({"model__widht": 3}, "model.widht"),
        ({"model__hidden": 9, "mesh__tensor": 2}, "hidden does not divide"),
    ],
)
def test_a_run_is_checked_against_method_and_machine(overrides, words):
    check()
    with pytest.raises(UserError, match=words):
        check(**overrides)


def test_mesh_sizes_fill_the_rest():
    config = configs.resolve(toy.config(mesh__tensor=2))
    assert configs.mesh_sizes(config, 8) == {"data": 4, "fsdp": 1, "tensor": 2, "context": 1}


def test_a_workdir_knows_its_config(tmp_path):
    config = configs.resolve(toy.config())
    workdir.check(tmp_path, config)
    workdir.claim(tmp_path, config)
    workdir.check(tmp_path, config)
    assert workdir.read_config(tmp_path)["loss"] == {"scale": 1.0}
    for harmless in ({"train__log_every": 1}, {"mesh__fsdp": 2}, {"train__steps": 21}):
        workdir.check(tmp_path, configs.resolve(toy.config(**harmless)))
    other = configs.resolve(toy.config(seed=9, model__hidden=16))
    with pytest.raises(UserError, match=r"model.hidden \(8 -> 16\); seed \(3 -> 9\)"):
        workdir.check(tmp_path, other)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        workdir.check(tmp_path, config)
    with pytest.raises(UserError, match=r"--workdir: .*config.json is a file; name a directory"):
        workdir.check(tmp_path / "config.json" / "runs", config)


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    workdir.forget_after(tmp_path, 3)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 3, "a": 1}\n{"step": 5}\n{"step": 7, "lo')
    workdir.forget_after(tmp_path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 3, "a": 1}\n'
