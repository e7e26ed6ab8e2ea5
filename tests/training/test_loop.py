import contextlib
import json
import os
import shutil
import signal

import jax
import jax.monitoring
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop, stopping
from jepa.training import workdir as workdirs
from jepa.training.checkpoints import Checkpoints
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
    assert checkpoints(workdir) == [16, 20]
    assert workdirs.finished_step(workdir) == 20
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


def test_going_on_on_fewer_and_fewer_devices(whole, tmp_path):
    class Broken(toy.Loader):
        last = 0

        def __next__(self):
            if self.next == self.last:
                raise RuntimeError("the power went")
            return super().__next__()

    for devices, last, mesh in (
        (8, 5, {"mesh__fsdp": 2, "mesh__tensor": 2}),
        (4, 10, {"mesh__fsdp": 2}),
        (2, 15, {}),
        (1, None, {}),
    ):
        Broken.last = last
        with pytest.raises(RuntimeError) if last else contextlib.nullcontext():
            result = train(
                tmp_path, devices=devices, loader=Broken(16, 3), train__save_every=4,
                train__log_every=1, **mesh,
            )  # fmt: skip
        assert last is None or checkpoints(tmp_path)[-1] == last - last % 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        result.state.params, whole[1].state.params,
    )  # fmt: skip
    losses = [row["loss"] for row in records(tmp_path)]
    assert [row["step"] for row in records(tmp_path)] == list(range(1, 21))
    # The other run has lines for steps 1, 5, 10, 15 and 20, with means of the steps in between.
    means = np.reshape(losses, (4, 5)).mean(axis=1)
    logged = [row["loss"] for row in records(whole[0]) if "loss" in row]
    np.testing.assert_allclose([losses[0], *means[1:]], [logged[0], *logged[2:]], rtol=1e-5)


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
        train__eval_every=4, train__save_every=0, train__keep_last=1,
        train__keep_best_metric="set/loss", train__keep_best_mode="min",
    )  # fmt: skip
    assert checkpoints(tmp_path) == [8, 20]
    opened = Checkpoints(
        tmp_path / "checkpoints", keep_best_metric="set/loss", keep_best_mode="min", writable=False
    )
    assert opened.best_step() == 8
    opened.close()


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


def test_steps_to_profile_that_are_behind_are_said_to_be(tmp_path, capsys):
    train(tmp_path, train__profile_steps=(30, 40), train__steps=6)
    assert "train.profile_steps=(30, 40) are none of the steps 1 to 6" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    "metric, words", [("typo/score", "choose one of set/..."), ("set/scroe", "set/score")]
)
def test_a_misspelt_best_metric(tmp_path, metric, words):
    overrides = {"train__eval_every": 6, "train__save_every": 0, "train__steps": 9}
    evaluators = {"set": lambda state: {"score": 1.0}}
    with pytest.raises(UserError, match="keep_best_metric.*" + words):
        train(tmp_path, evaluators=evaluators, train__keep_best_metric=metric, **overrides)
    if metric.startswith("set/"):  # known only after the first evaluation, which is not lost
        assert checkpoints(tmp_path) == [6]
    else:
        assert not list(tmp_path.iterdir())
    train(tmp_path, evaluators=evaluators, train__keep_best_metric="set/score", **overrides)


def stop_at(monkeypatch, step):
    """Makes SIGTERM arrive during `step`."""

    def requested(self, now):
        self.signal = "SIGTERM" if now == step else self.signal
        return self.signal is not None

    monkeypatch.setattr(stopping.Stop, "requested", requested)


def evaluations(workdir):
    return [record for record in records(workdir) if "set/score" in record]


def test_an_evaluation_that_sigterm_put_off_is_made_up_for(tmp_path, monkeypatch):
    scores = {4: 0.1, 8: 0.9, 12: 0.3, 16: 0.2, 20: 0.5}
    options = {
        "evaluators": {"set": lambda state: {"score": scores[int(state.step)]}},
        "train__eval_every": 4, "train__save_every": 4, "train__keep_last": 2,
        "train__keep_best_metric": "set/score",
    }  # fmt: skip
    with monkeypatch.context() as patched:
        stop_at(patched, 8)
        assert train(tmp_path, **options).step == 8
    assert evaluations(tmp_path) == [{"step": 4, "set/score": 0.1}]
    train(tmp_path, **options)
    assert evaluations(tmp_path) == [{"step": n, "set/score": v} for n, v in scores.items()]
    assert checkpoints(tmp_path) == [8, 16, 20]


def test_sigterm_at_the_last_step_evaluates(tmp_path, monkeypatch):
    stop_at(monkeypatch, 6)
    evaluators = {"set": lambda state: {"score": 1.0}}
    result = train(tmp_path, evaluators=evaluators, train__steps=6, train__eval_every=4)
    assert result.finished and result.evaluation == {"set/score": 1.0}


def test_sigterm_before_the_first_step_loses_nothing(tmp_path, monkeypatch, capsys):
    compile_step = loop.compile_step

    def compile_and_hear(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return compile_step(*arguments)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "compile_step", compile_and_hear)
    result = train(tmp_path)
    assert (result.step, result.finished) == (0, False)
    assert "stopped by SIGTERM at step 0; run again" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert workdirs.finished_step(tmp_path) is None


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    with workdirs.locked(tmp_path), pytest.raises(UserError, match="Another run is training"):
        train(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_log_line_has_the_mean_of_the_steps_since_the_one_before(whole, tmp_path):
    train(tmp_path, train__log_every=1)
    each = {record["step"]: record for record in records(tmp_path)}
    for first, last in ((2, 5), (6, 10), (16, 20)):
        line = next(r for r in records(whole[0]) if r["step"] == last and "loss" in r)
        for key in ("loss", "gradient_norm", "mean_error"):
            mean = np.mean([each[step][key] for step in range(first, last + 1)])
            np.testing.assert_allclose(line[key], mean, rtol=1e-6)
        assert line["learning_rate"] == each[last]["learning_rate"]
