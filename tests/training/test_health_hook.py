import json
import re

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.losses.health import embedding_health
from jepa.methods.base import Outputs
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import health, loop
from jepa.training.state import TrainState
from tests.training import toy


def train(workdir, **overrides):
    method = overrides.pop("method", toy.Toy)
    config = configs.resolve(toy.config(**overrides))
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:2])
    loader = toy.Loader(config.train.global_batch, config.seed)
    return loop.train(config, workdir, method=method(config), loader=loader, mesh=mesh)


def measured(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").open())
    return {line["step"]: line for line in lines if "health/verdict" in line}


class Shrinking(toy.Toy):
    """Its predictions lose all but a line, a little more with every step."""

    def represent(self, params, target_params, state, batch, rng):
        outputs, state = super().represent(params, target_params, state, batch, rng)
        left = 0.3 ** jnp.maximum(state["seen"] / 16.0 - 2, 0)
        x = outputs.pooled["prediction"]
        outputs.pooled["prediction"] = x * jnp.array([1.0, *[left] * (toy.OUT - 1)])
        return outputs, state


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **kwargs: (
            compiled.append(kwargs.get("fun_name"))
            if event.endswith("backend_compile_duration")
            else None
        )
    )
    watched, blind = (tmp_path_factory.mktemp(name) for name in ("watched", "blind"))
    results = [
        train(workdir, train__health_every=every, model__frozen=("target/.*",))
        for workdir, every in ((watched, 6), (blind, 0))
    ]
    return watched, blind, results, list(compiled)


def test_every_so_many_steps_and_compiled_once(runs):
    watched, blind, _, compiled = runs
    assert sorted(measured(watched)) == [1, 6, 12, 18]
    assert measured(blind) == {}
    assert sum("health" in (name or "") for name in compiled) == 1
    assert sum("train_step" in (name or "") for name in compiled) == 2  # one a run


def test_the_run_itself_is_the_same_to_the_bit(runs):
    _, _, (watched, blind), _ = runs
    jax.tree.map(np.testing.assert_array_equal, watched.state, blind.state)


def test_what_is_measured_is_of_the_state_after_the_step(runs, tmp_path):
    # The target is a frozen linear view of y, so only the batch of step 6 matters.
    values = measured(runs[0])[6]
    loader = toy.Loader(16, 3)
    batch = [next(loader) for _ in range(6)][-1]
    target = batch["y"] @ np.linspace(-1, 1, toy.IN * toy.OUT).reshape(toy.IN, toy.OUT)
    for name, value in embedding_health(target.astype("float32")).items():
        got = values[f"health/target/examples/{name}"]
        np.testing.assert_allclose(got, value, rtol=1e-4, err_msg=name)
    assert values["health/prediction/examples/rankme"] > 1


class Lines(list):
    line = list.append


def start_of(examples, **values):
    """Returns what `Health.start` would compile, and the lines it prints."""
    said = Lines()
    spec = {"x": jax.ShapeDtypeStruct((examples, toy.IN), np.float32)}
    values = {"every": 10, "start": 0, "steps": 100, "seed": 0, "accumulate": 1, **values}
    made = health.Health.start(
        None, None, None, spec, directory="none", writer=None, progress=said, **values
    )
    return made, said


def test_a_run_that_measures_nothing_compiles_nothing():
    for values in ({"every": 0}, {"steps": 9}, {"start": 91, "steps": 99}):
        made, said = start_of(16, **values)
        made.after(1, None, None)
        made.flush()
        assert said == []


def test_a_batch_of_one_is_said_to_have_nothing_to_compare():
    made, said = start_of(1)
    made.after(10, None, None)
    assert said == ["no health is measured: a batch of one has nothing to compare"]


def test_a_resumed_run_goes_on_judging(tmp_path, caplog):
    # Overwhelmed by the first run's measurements, the second says nothing new.
    options = {"train__health_every": 2, "train__save_every": 8, "method": Shrinking}
    train(tmp_path, train__steps=8, **options)
    assert "collapsed: RankMe is" in caplog.text
    assert measured(tmp_path)[8]["health/verdict"] == 2
    caplog.clear()
    train(tmp_path, train__steps=10, **options)
    assert sorted(measured(tmp_path)) == [1, 2, 4, 6, 8, 10]
    assert "collapsed" not in caplog.text


def test_a_note_on_a_healthy_run_is_told_once(caplog):
    said, logged = Lines(), []
    state = TrainState(0, *[None] * 6)

    class Writer:
        def write_scalars(self, step, values):
            logged.append(values["health/verdict"])

    class Same:
        def __call__(self, state, batch):
            return {"prediction_over_copy": jnp.float32(0.99)}

    made = health.Health(
        Same(), writer=Writer(), progress=said, every=1, first=0, past=[], main=True
    )
    for step in range(1, 7):
        made.after(step, state, None)
    made.flush()
    assert logged == [0.0] * 6 and said == []
    assert caplog.text.count("0.99 of that of a guess that knows nothing of places") == 1


def test_of_micro_batches_some_are_measured(tmp_path):
    train(tmp_path, train__health_every=2, train__accumulate=4, train__steps=2)
    assert sorted(measured(tmp_path)) == [1, 2]


@pytest.mark.parametrize(
    "examples, shards, accumulate, left",
    [(64, 2, 1, 64), (3072, 8, 1, 512), (3072, 1024, 1, 1024), (256, 2, 16, 64), (7, 1, 7, 7),
     (1000, 8, 1, 200), (8, 1, 8, 4), (2, 1, 2, 2)],
)  # fmt: skip
def test_how_much_of_a_batch_is_measured(examples, shards, accumulate, left):
    parts = health.parts_of(examples, shards, accumulate)
    assert examples // parts == left and (examples // shards) % parts == 0


def test_a_negative_interval_is_refused():
    with pytest.raises(UserError, match="train.health_every.*at least 0"):
        configs.resolve(toy.config(train__health_every=-1))


def test_clips_alike_and_places_alike():
    rng = np.random.default_rng(0)
    clips, places = rng.standard_normal((32, 1, 12)), rng.standard_normal((1, 20, 12))
    ones = np.ones((32, 20, 12))
    outputs = Outputs(
        tokens={
            "target/a": (clips * ones).astype("float32"),  # all places of a clip are alike
            "prediction/a": (places * ones).astype("float32"),  # all clips are alike
            "copy/a": (clips * ones).astype("float32"),
            "global": (clips * ones).astype("float32"),
        },
        pooled={"features": clips[:, 0].astype("float32")},
    )
    found = jax.jit(health.measure)(outputs, jax.random.key(0))
    np.testing.assert_allclose(found["target/a/tokens/mean_cosine"], 1, rtol=1e-5)
    np.testing.assert_allclose(found["target/a/tokens/std"], 0, atol=1e-6)
    np.testing.assert_allclose(found["prediction/a/examples/mean_cosine"], 1, rtol=1e-5)
    assert found["target/a/examples/effective_rank"] > 6
    assert found["prediction/a/tokens/effective_rank"] > 6
    assert not any("copy" in name for name in found)
    assert "global/examples/std" in found and "global/tokens/std" not in found
    for measure in ("std", "mean_cosine", "effective_rank", "rankme"):
        np.testing.assert_allclose(
            found[f"global/examples/{measure}"], found[f"features/examples/{measure}"], rtol=1e-3
        )


def test_no_program_asks_lapack_for_several_matrices_at_once():
    # On CPU such a call waits in a thread of the pool for other threads of the pool: with as many
    # devices as threads, for ever (jaxlib 0.10.2).
    outputs = Outputs(
        tokens={"target/a": jnp.ones((16, 8, 4))}, pooled={"features": jnp.ones((16, 4))}
    )
    text = jax.jit(health.measure).lower(outputs, jax.random.key(0)).as_text()
    calls = [line for line in text.splitlines() if "lapack_" in line]
    assert calls
    for line in calls:
        shapes = re.findall(r"tensor<((?:\d+x)+)f", line.split(" : ")[-1])
        assert shapes and all(shape.count("x") <= 2 for shape in shapes), line
