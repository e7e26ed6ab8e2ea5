"""Phases: what a config may say of them, what crosses a border, and stopping anywhere in them."""

import contextlib
import dataclasses
import io
import json
import logging
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop, optimizer, phases, stopping
from jepa.training import workdir as workdirs
from jepa.training.prepare import prepare
from jepa.training.step import Compiled, lower
from tests.training import toy

PHASES = (
    {"name": "start", "steps": 6, "model.frozen": ("encoder/kernel",)},
    {
        "name": "wide",
        "steps": 5,
        "train.global_batch": 32,
        "train": {"accumulate": 2},
        "optimizer": {"learning_rate": 0.01, "clip_norm": None, "weight_decay": 0.0},
    },
    {"name": "end", "steps": 4, "model.frozen": ("head/kernel",), "optimizer.schedule": "linear"},
)
TOTAL = 15


def config(given=PHASES, **overrides):
    options = {
        "model__ema": True,
        "ema": {"momentum": 0.9},
        "train__steps": sum(phase["steps"] for phase in given),
        "train__log_every": 1,
        "train__save_every": 0,
        "train__health_every": 0,
        "phases": given,
    }
    return configs.resolve(toy.config(**{**options, **overrides}))


def mesh_of(made):
    return meshes.make_mesh(made.mesh, jax.devices()[:1])


def train(workdir, given=PHASES, *, evaluators=None, **overrides):
    made = config(given, **overrides)
    parts = toy.Parts(evaluators=evaluators)
    return loop.train_phases(made, workdir, parts=parts, mesh=mesh_of(made))


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def stop_at(monkeypatch, step):
    def requested(self, now):
        self.signal = "SIGTERM" if now == step else self.signal
        return self.signal is not None

    monkeypatch.setattr(stopping.Stop, "requested", requested)


@pytest.fixture(scope="module", autouse=True)
def kept_programs():
    """Compiles a program once for all runs of this file, where the lowered text is the same."""
    programs = {}

    def compile_step(step, mesh, state, batch_spec):
        lowered = lower(step, mesh, state, batch_spec)
        text = lowered.as_text()
        if text not in programs:
            programs[text] = lowered.compile()
        return Compiled(programs[text], 0.0, None)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "compile_step", compile_step)
        yield


@dataclasses.dataclass
class Whole:
    """A run that nobody stopped, with its states where phases end."""

    workdir: Path
    states: dict
    told: str
    compiled: list

    @property
    def last(self):
        return self.states[TOTAL]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir, compiled = tmp_path_factory.mktemp("whole"), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **kwargs: (
            compiled.append(str(kwargs.get("fun_name")))
            if event.endswith("backend_compile_duration")
            else None
        )
    )
    states, told = {}, io.StringIO()

    def note(state):
        states[int(state.step)] = jax.device_get(state)
        return {}

    with contextlib.redirect_stdout(told):
        result = train(workdir, evaluators={"set": note}, train__eval_every=100)
    assert result.finished and result.step == TOTAL
    assert sorted(states) == [6, 11, 15]  # where phases end
    return Whole(workdir, states, told.getvalue(), list(compiled))


def test_each_phase_is_compiled_once(whole):
    assert sum("train_step" in name for name in whole.compiled) == len(PHASES)


def test_steps_count_on_and_schedules_begin_anew(whole):
    rows = records(whole.workdir)
    assert [row["step"] for row in rows] == list(range(1, TOTAL + 1))
    rates = [row["learning_rate"] for row in rows]
    for first, peak in ((0, 0.02), (6, 0.01), (11, 0.02)):  # a warm-up of two steps in each
        np.testing.assert_allclose(rates[first : first + 2], [peak / 2, peak], rtol=1e-6)
    np.testing.assert_allclose(rates[-2:], [0.02, 0.01], rtol=1e-6)  # linear over two steps
    momenta = [row["ema_momentum"] for row in rows]
    np.testing.assert_allclose([momenta[i] for i in (0, 6, 11)], 0.9, rtol=1e-6)
    decays = [row["weight_decay"] for row in rows]
    np.testing.assert_allclose(decays, [0.05] * 6 + [0.0] * 5 + [0.05] * 4, rtol=1e-6)
    assert workdirs.finished_step(whole.workdir) == TOTAL


def test_what_is_frozen_in_a_phase_stays_in_it(whole):
    states = whole.states
    kernel = {step: state.params["encoder"]["kernel"] for step, state in states.items()}
    head = {step: state.params["head"]["kernel"] for step, state in states.items()}
    assert not np.array_equal(kernel[6], kernel[11]) and not np.array_equal(kernel[11], kernel[15])
    assert not np.array_equal(head[6], head[11]) and np.array_equal(head[11], head[15])
    assert whole.last.method_state["seen"] == 6 * 16 + 5 * 32 + 4 * 16


def test_lines_name_the_phase_and_what_is_fresh(whole):
    assert "step 7/15  wide  loss" in whole.told
    assert "phase end: steps 12 to 15" in whole.told
    assert "phase wide: fresh optimizer moments for 1 parameters (encoder/kernel)" in whole.told
    assert "phase end: fresh" not in whole.told


@pytest.mark.parametrize("steps, damaged", [((3, 6, 8), False), ((8,), True)], ids=str)
def test_stopping_and_going_on_changes_nothing(
    whole, tmp_path, monkeypatch, caplog, steps, damaged
):
    for step in steps:
        with monkeypatch.context() as patched:
            stop_at(patched, step)
            assert train(tmp_path).step == step
        assert workdirs.finished_step(tmp_path) is None
    if damaged:  # the one before it is of the phase before
        for file in [p for p in (tmp_path / "checkpoints" / "8").rglob("*") if p.is_file()]:
            file.unlink()
    with caplog.at_level(logging.WARNING, logger="jepa"):
        result = train(tmp_path)
    assert ("going on from checkpoint 6" in caplog.text) == damaged
    assert_same(jax.device_get(result.state), whole.last)
    timed = ("clips_per_second", "data_wait_seconds", "eta_seconds", "mfu")
    rows, others = (
        [{k: v for k, v in row.items() if k not in timed} for row in records(workdir)]
        for workdir in (tmp_path, whole.workdir)
    )
    assert rows == others


def test_an_evaluation_put_off_at_a_border_is_made_up_for(tmp_path, monkeypatch):
    evaluators = {"set": lambda state: {"at": float(state.step)}}
    two = PHASES[:2]
    with monkeypatch.context() as patched:
        stop_at(patched, 6)
        train(tmp_path, two, evaluators=evaluators, train__eval_every=100)
    train(tmp_path, two, evaluators=evaluators, train__eval_every=100)
    found = [row for row in records(tmp_path) if "set/at" in row]
    assert found == [{"step": step, "set/at": float(step)} for step in (6, 11)]


def test_a_phase_may_follow_a_finished_run_and_none_may_change(tmp_path):
    single = configs.resolve(toy.config(train__steps=6, train__health_every=0))
    method, loader = toy.Toy(single), toy.Loader(16, single.seed)
    loop.train(single, tmp_path, method=method, loader=loader, mesh=mesh_of(single))
    alone = {"model__ema": False, "ema": None, "train__log_every": 5, "train__save_every": 8}
    begun = {"name": "as it was", "steps": 6}
    more = {"name": "more", "steps": 2, "optimizer.learning_rate": 1e-3}
    for wrong, words in (
        ({"steps": 6, "optimizer.learning_rate": 0.5}, r"learning_rate \(0.02 -> 0.5\)$|0.5\);"),
        ({"steps": 5}, r"train.steps \(6 -> 5\)"),
    ):
        with pytest.raises(UserError, match=words):
            train(tmp_path, ({"name": "x", **wrong}, more), **alone)
    result = train(tmp_path, (begun, more), **alone)
    assert result.finished and result.step == 8
    with pytest.raises(UserError, match=r"learning_rate \(0.001 -> 0.5\) in phase 'more'"):
        train(tmp_path, (begun, {**more, "optimizer.learning_rate": 0.5}), **alone)
    with pytest.raises(UserError, match=r"phases \(2 -> 1\)"):
        train(tmp_path, (begun,), **alone)


@pytest.mark.parametrize(
    "phase, words",
    [
        ({"model.hidden": 16}, "'b': parameter encoder/bias is float32.16., and float32.8. in"),
        ({"model.ema": False}, "'ema' is set"),
        ({"optimizer.learning_rat": 1.0}, "'b': .*optimizer.learning_rat.*did you mean"),
        ({"train.accumulate": 3}, "'b': .*accumulate.* 3"),
        ({"model.widht": 1}, "'b': .*model.widht"),
        ({"model.frozen": ("encoder",)}, "'b': .*'encoder' matches no parameter"),
        ({"mesh.data": 2}, "phases.mesh"),
        ({"train.steps": 5}, "'train.steps'; say `steps`"),
        ({"train": {"keep_last": 1}}, "train.keep_last.*outside"),
        ({"optimizer": 3}, "'optimizer' is 3; a section needs a mapping"),
        ({"model.deep.er": 3}, "no section 'deep'"),
        ({"steps": 0}, r"phases\[1\].steps' is 0"),
        ({"name": "a"}, r"phases\[1\].name' is 'a'; give a name of its own"),
    ],
)
def test_mistakes_in_a_later_phase_are_found_before_the_first_one(tmp_path, phase, words):
    given = ({"name": "a", "steps": 2}, {"name": "b", "steps": 2, **phase})
    steps = 2 + (given[1]["steps"] or 2)
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", given, train__steps=steps)
    assert not (tmp_path / "run").exists()


def test_parts_that_are_made_already_are_those_of_one_phase(tmp_path):
    made = config()
    given = {"method": toy.Toy(made), "loader": toy.Loader(16, 3), "mesh": mesh_of(made)}
    with pytest.raises(UserError, match="has phases.*use train_phases"):
        loop.train(made, tmp_path, **given)


def test_the_steps_have_to_add_up():
    with pytest.raises(UserError, match="'train.steps' is 20, .* add up to 15; set it to that"):
        phases.plan(config(train__steps=20))


def test_a_config_without_phases_is_one():
    (only,) = phases.plan(configs.resolve(toy.config()))
    assert (only.name, only.first, only.last, only.data_seed) == ("", 0, 20, 3)


def test_a_phase_says_what_differs_in_either_form():
    base = {"data": {"tasks": {"caption": 1.0, "question": 1.0}, "frames": 16}, "train": {}}
    dotted = {"name": "a", "steps": 1, "data.frames": 64, "data.tasks": {"caption": 2.0}}
    nested = {"name": "b", "steps": 1, "data": {"frames": 64, "tasks": {"caption": 2.0}}}
    (_, one), (_, two) = phases.expand({**base, "phases": (dotted, nested)})
    assert one == two and one["data"] == {"tasks": {"caption": 2.0}, "frames": 64}
    assert base["data"]["frames"] == 16 and "steps" not in base["train"]


def test_each_phase_has_an_order_of_data_of_its_own_and_the_same_everywhere():
    seeds = [phase.data_seed for phase in phases.plan(config())]
    assert seeds[0] == 3 and len(set(seeds)) == 3
    assert seeds == [phase.data_seed for phase in phases.plan(config())]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_moments_that_join_late_are_as_adam_alone_would_have_them():
    """Against optax, one Adam a parameter: the count goes on for one, begins for the other."""
    rng = np.random.default_rng(0)
    params = {"old": {"w": jnp.ones((2, 3))}, "new": {"w": jnp.ones((2, 3))}}
    gradients = [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
        for _ in range(7)
    ]
    settings = {**configs.default_optimizer_config(), "weight_decay": 0.0, "clip_norm": None}
    settings.update(b2=0.999, schedule="constant", learning_rate=0.1)
    first = optimizer.make(settings, steps=4, frozen=("new/.*",))
    history = phases.age([first], ["adamw", "adamw"], ())
    assert history.history == (("phase_0", ("new/.*",)), ("phase_1", ()))
    second = optimizer.make(settings, steps=3, first=4, age=history)
    state = first.transform.init({"old": params["old"]})
    directions = {"old": [], "new": []}
    for step, gradient in enumerate(gradients):
        if step == 4:
            after = second.transform.init(params)
            had = dict(phases._moments(first, state))
            named = phases._moments(second, after)
            assert len(had) == 3 and set(had) < {name for name, _ in named}
            leaves = [had.get(name, leaf) for name, leaf in named]
            state = jax.tree.unflatten(jax.tree.structure(after), leaves)
        made = second if step >= 4 else first
        trained = params if step >= 4 else {"old": params["old"]}
        updates, state = made.updates({k: gradient[k] for k in trained}, state, trained, step)
        for key, update in updates.items():
            directions[key].append(np.asarray(update["w"]))
    for key, begin in (("old", 0), ("new", 4)):
        adam = optax.adam(0.1, b1=0.9, b2=0.999)
        alone = adam.init(params[key])
        for gradient, got in zip(gradients[begin:], directions[key], strict=True):
            want, alone = adam.update(gradient[key], alone)
            np.testing.assert_allclose(got, want["w"], rtol=1e-5)


@pytest.mark.parametrize(
    "frozen, names, path, label",
    [
        ([("a",), ()], ["x", "x"], "a", "phase_1"),
        ([("a",), ()], ["x", "x"], "b", "phase_0"),
        ([(), ("a",), ()], ["x"] * 3, "a", "phase_2"),
        ([("a",), (), ("b",), ()], ["x"] * 4, "a", "phase_1"),
        ([(), (), ()], ["x", "y", "y"], "a", "phase_1"),
        ([("a",), (), ()], ["x", "x", "y"], "b", "phase_2"),
    ],
)
def test_the_age_of_a_parameter(frozen, names, path, label):
    settings = configs.default_optimizer_config()
    before = [optimizer.make(settings, steps=9, frozen=patterns) for patterns in frozen[:-1]]
    assert phases.age(before, names, frozen[-1])(path) == label


@pytest.mark.parametrize("name", optimizer.NAMES)
def test_every_optimizer_crosses_a_border(name):
    """Frozen, joined, frozen again: moments go on, begin and end, and the step still runs."""
    groups = [(r".*/kernel", (0,), (1,))]
    made = config(optimizer__name=name, optimizer__muon_matrices=groups, mesh__fsdp=2)
    mesh = meshes.make_mesh(made.mesh, jax.devices()[:2])
    ready = prepare(made, toy.Parts(), mesh)
    state = ready[0].initializer.create()
    marked = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state.opt_state)
    state = state.replace(opt_state=marked)
    known = {name for name, _ in phases._moments(ready[0].step.optimizer, marked)}
    for before, after in zip(ready, ready[1:], strict=False):
        state, anew = phases.cross(state, before.step.optimizer, after.initializer)
        assert anew == (["encoder/kernel"] if after.phase.name == "wide" else [])
        shapes = after.initializer.shapes.opt_state
        assert jax.tree.structure(state.opt_state) == jax.tree.structure(shapes)
        for which, leaf in phases._moments(after.step.optimizer, state.opt_state):
            assert bool(jnp.all(leaf != 0)) == (which in known) or "ns_coeffs" in which
        same = jax.tree.map(
            lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), state.opt_state, shapes
        )
        assert jax.tree.all(same)


def test_an_older_config_without_a_newer_key_is_the_same_run(tmp_path):
    made = configs.resolve(toy.config())
    old = workdirs.plain(made)
    del old["phases"], old["optimizer"]["start_factor"], old["train"]["health_every"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    workdirs.check(tmp_path, made)
    with pytest.raises(UserError, match=r"optimizer.start_factor \(0.0 -> 0.5\); use another"):
        workdirs.check(tmp_path, configs.resolve(toy.config(optimizer__start_factor=0.5)))
    del old["optimizer"]["learning_rate"]  # which is not at its default now
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"learning_rate \(0.001 -> 0.02\)"):
        workdirs.check(tmp_path, made)


def test_defaults_of_the_method_and_the_data_fill_an_older_config():
    from jepa.data.config import default_data_config
    from jepa.methods.vl_jepa import default_loss, default_model

    new = {
        "method": "jepa.methods.vl_jepa.VLJEPA",
        "data": workdirs.plain(default_data_config()),
        "model": workdirs.plain(default_model()),
        "loss": workdirs.plain(default_loss()),
    }
    old = json.loads(json.dumps(new))
    del old["model"]["x_encoder"]["gelu"], old["data"]["flip"], old["loss"]["equal_targets"]
    assert workdirs.differences(old, new) == []
    new["model"]["x_encoder"]["gelu"] = "tanh"
    new["data"]["tasks"] = {"caption": 1.0}  # a value, not a section to be completed
    assert workdirs.differences(old, new) == [
        "data.tasks.question (1.0 -> 'absent')",
        "model.x_encoder.gelu ('exact' -> 'tanh')",
    ]
