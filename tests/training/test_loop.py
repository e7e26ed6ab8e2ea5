import json
import shutil

import jax
import jax.monitoring
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop
from tests.training import toy


def train(workdir, *, devices=2, loader=None, evaluators=None, method=None, **overrides):
    config = configs.resolve(toy.config(**overrides))
    loader = loader or toy.Loader(config.train.global_batch, config.seed)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
    method = method or toy.Toy(config)
    return loop.train(
        config, workdir, method=method, loader=loader, mesh=mesh, evaluators=evaluators
    )


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_same_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.state.params, b.state.params)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **kwargs: (
            compiled.append(kwargs.get("fun_name"))
            if event.endswith("backend_compile_duration")
            else None
        )
    )
    evaluators = {"set": lambda state: {"at": float(state.step)}}
    result = train(workdir, evaluators=evaluators, train__eval_every=50)
    return workdir, result, list(compiled)


def test_the_train_step_is_compiled_once(whole):
    _, _, compiled = whole
    assert len(compiled) > 1  # the init at least: the listener works
    assert sum("train_step" in (name or "") for name in compiled) == 1


def test_what_a_run_leaves(whole):
    workdir, result, _ = whole
    assert result.finished and result.step == 20 and 0 < result.goodput <= 1
    assert checkpoints(workdir) == [20]
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 20
    assert list((workdir / "tensorboard").glob("events*"))
    logged = [record for record in records(workdir) if "loss" in record]
    assert [record["step"] for record in logged] == [1, 5, 10, 15, 20]
    for key in ("clips_per_second", "mfu", "data_wait_seconds", "eta_seconds", "learning_rate"):
        assert all(record[key] >= 0 for record in logged)
    assert result.evaluation == {"set/at": 20.0}
    assert records(workdir)[-1] == {"step": 20, "set/at": 20.0}


def test_a_finished_run_returns_at_once(whole, capsys):
    workdir, result, _ = whole
    again = train(workdir)
    assert "finished already" in capsys.readouterr().out
    assert_same_params(result, again)


def test_a_longer_run_goes_on_and_another_config_does_not(whole, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(whole[0], workdir)
    with pytest.raises(UserError, match=r"optimizer.learning_rate \(0.02 -> 0.5\)"):
        train(workdir, optimizer__learning_rate=0.5)
    with pytest.raises(UserError, match="train.steps"):
        train(workdir, train__steps=10)
    longer = train(workdir, train__steps=22, train__log_every=1)
    assert longer.step == 22


def test_resuming_on_another_mesh(whole, tmp_path):
    class Broken(toy.Loader):
        def __next__(self):
            if self.next == 12:
                raise RuntimeError("the power went")
            return super().__next__()

    with pytest.raises(RuntimeError):
        train(tmp_path, loader=Broken(16, 3))
    assert checkpoints(tmp_path) == [8]
    result = train(tmp_path, devices=8, mesh__fsdp=2, mesh__tensor=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        result.state.params, whole[1].state.params,
    )  # fmt: skip


def test_keep_last_and_keep_best(tmp_path):
    scores = {4: 0.1, 8: 0.9, 12: 0.3, 16: 0.2, 20: 0.5}
    train(
        tmp_path,
        evaluators={"set": lambda state: {"score": scores[int(state.step)]}},
        train__eval_every=4, train__save_every=4, train__keep_last=2,
        train__keep_best_metric="set/score",
    )  # fmt: skip
    assert checkpoints(tmp_path) == [8, 16, 20]


def test_the_best_is_saved_even_where_no_save_is_due(tmp_path):
    losses = {4: 0.5, 8: 0.2, 12: 0.3, 16: 0.4, 20: 0.9}
    train(
        tmp_path,
        evaluators={"set": lambda state: {"loss": losses[int(state.step)]}},
        train__eval_every=4, train__save_every=0,
        train__keep_best_metric="set/loss", train__keep_best_mode="min",
    )  # fmt: skip
    assert checkpoints(tmp_path) == [8, 20]


def test_too_many_steps_that_are_not_finite_stop_the_run(tmp_path):
    loader = toy.Loader(16, 3, bad_steps=range(10, 20))
    with pytest.raises(UserError, match="5 steps in a row.*last checkpoint is step 8"):
        train(tmp_path, loader=loader, train__max_consecutive_skipped=5)
    assert checkpoints(tmp_path) == [8]
    assert loader.closed


def test_profile_steps_leave_a_trace(tmp_path):
    train(tmp_path, train__profile_steps=(2, 4), train__steps=6)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_nothing_is_written_for_a_wrong_config(tmp_path):
    with pytest.raises(UserError, match="train.global_batch.*multiple of 8"):
        train(tmp_path / "none", devices=8, train__global_batch=12)
    assert not (tmp_path / "none").exists()
