"""Cached features of a frozen X-encoder: the same step as with the encoder run live."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from loading_helpers import record, write

from experiments import train
from jepa import methods
from jepa.data.video_features import DTYPES, VideoFeatures
from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop, phases, video_features
from jepa.training.optimizer import flatten
from jepa.training.state import Initializer
from jepa.training.step import global_spec, lower
from tests.experiments import tiny

QUICK = {"xla_backend_optimization_level": 0}
CLIPS = 11
FIRST = []  # the state that all runs start from, drawn once


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("set")
    clips = [record(i, size=32) for i in range(CLIPS)]
    clips[4] = record(4, size=32, video=b"no video")
    return write(directory, {"train": clips}, shards=1)


def config(path, **overrides):
    made = tiny.get_config()
    made.data.update(path=str(path), sampling="uniform", max_bad_fraction=0.5)
    made.model.x_encoder.update(frozen=True, cache_features=True, cache_dtype="float32")
    made.model.predictor.vocab = 4096
    made.model.y_encoder.vocab = 4096
    made.optimizer.update(name="sgd", learning_rate=0.1, warmup_steps=0)
    made.update_from_flattened_dict(overrides)
    return configs.resolve(made)


def drawn(shapes):
    """A state of these shapes, without the compilation that a real start takes."""
    rng = np.random.default_rng(0)

    def draw(x):
        if x.dtype != np.float32:
            return np.zeros(x.shape, x.dtype)
        return rng.normal(0, 0.1, x.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


class Run:
    """A phase made ready to step, on some devices."""

    def __init__(self, made, devices=1):
        self.config, self.mesh = made, meshes.make_mesh(made.mesh, jax.devices()[:devices])
        self.parts = train.Parts(self.mesh)
        (self.phase,) = phases.plan(made)
        self.method = methods.from_config(made)
        self.step = loop.make_step(made, self.method)
        spec = self.parts.batch_spec(self.phase, self.method)
        self.start = Initializer(
            self.method, self.step.optimizer, self.mesh, spec, seed=made.seed, dtype=made.dtype
        )
        if not FIRST:
            FIRST.append(drawn(self.start.shapes))
        self.state = jax.device_put(FIRST[0], self.start.shardings)

    def loader(self, stopped=lambda: False):
        return self.parts.loader(self.phase, self.method, self.state.params, stopped)

    def nudged(self, by):
        """This run with other weights."""
        params = {**self.state.params}
        params["x_encoder"] = jax.tree.map(lambda x: x + by, params["x_encoder"])
        self.state = dataclasses.replace(self.state, params=params)
        return self

    def cached(self, **options):
        data = video_features.cache_video_features(
            self.config.data, self.method, self.state.params, self.mesh, **options
        )
        return VideoFeatures(data.video_features[0])

    def steps(self, count=2):
        loader = self.loader()
        spec = global_spec(loader.element_spec, 1)
        program = lower(self.step, self.mesh, self.start.shapes, spec)
        program, state, history = program.compile(compiler_options=QUICK), self.state, []
        for _, batch in zip(range(count), loader, strict=False):
            batch = jax.device_put(batch, meshes.batch_sharding(self.mesh))
            state, metrics = program(state, batch)
            history.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
        loader.close()
        return spec, jax.device_get(state.params), np.array(history)


@pytest.fixture(scope="module")
def live(data):
    return Run(config(data, **{"model.x_encoder.cache_features": False})).steps()[1:]


# Gradient descent shows the gradients themselves in the parameters.
@pytest.mark.parametrize(
    ("devices", "dtype", "tolerance"),
    [pytest.param(1, "float16", 3e-3, marks=pytest.mark.slow), (2, "float32", 1e-5)],
)
def test_a_step_with_cached_features_is_the_step_with_the_encoder_run_live(
    data, live, devices, dtype, tolerance
):
    run = Run(config(data, **{"model.x_encoder.cache_dtype": dtype}), devices)
    spec, params, history = run.steps()
    # What the step reads are features; there are no frames for the tower to run on.
    assert list(spec["video"]) == ["features"] and spec["video"]["features"].dtype == dtype
    np.testing.assert_allclose(history, live[1], rtol=tolerance)
    for path, want in flatten(live[0]).items():
        moved = np.abs(want - flatten(FIRST[0].params)[path]).max()
        got = flatten(params)[path]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=tolerance * moved, err_msg=path)


def test_features_are_the_towers_and_the_unreadable_is_known(data):
    run = Run(config(data, **{"model.x_encoder.cache_dtype": "bfloat16"}))
    found = run.cached()
    assert list(found.bad) == [4] and "clip-0004" in found.bad[4]
    view = train.loader.make_train_loader(
        {**run.config.data, "streams": ("video",)}, global_batch=8, seed=3
    )
    batch = next(view)
    position = np.arange(8)
    _, numbers = view._order(position)
    wanted = run.method.visual_tokens(run.state.params, batch["video"])
    out = np.empty((8, *found.shape), found.dtype)
    found.into(numbers, out, position)
    readable = numbers != 4
    np.testing.assert_allclose(
        out[readable].astype(np.float32), np.asarray(wanted)[readable], atol=2e-2
    )


def test_what_was_interrupted_goes_on_behind_the_last_shard(data, monkeypatch):
    monkeypatch.setattr("jepa.data.video_features._SHARD_BYTES", 4 * 16 * 24 * 4)
    monkeypatch.setattr(video_features, "BATCH", 2)
    run = Run(config(data)).nudged(0.25)
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 3

    assert run.loader(stopped) is None
    whole = sorted((data / "cache").glob("*/00000.npy"), key=lambda p: p.stat().st_mtime)[-1]
    assert not (whole.parent / "meta.json").exists()
    made = whole.stat().st_mtime_ns
    found = run.cached()
    assert found.path == whole.parent and whole.stat().st_mtime_ns == made
    assert len(list(found.path.glob("*.npy"))) == 3 and len(found) == CLIPS
    monkeypatch.setattr(video_features, "_compute", None)
    assert run.cached().path == found.path


def test_other_weights_views_and_types_have_features_of_their_own(data, monkeypatch):
    def zeros(config, tower, arguments, mesh, writer, stopped):
        for index in writer.missing():
            shape = (len(writer.numbers(index)), *writer._shape)
            writer.write(index, np.zeros(shape, DTYPES[tower.dtype]), {}, 0.0)
        writer.finish()

    monkeypatch.setattr(video_features, "_compute", zeros)
    base = Run(config(data)).cached().path
    others = [
        config(data, **{"data.frames": 8}),
        config(data, **{"model.x_encoder.cache_dtype": "float16"}),
        config(data, **{"model.x_encoder.gelu": "exact"}),
    ]
    paths = {Run(other).cached().path for other in others}
    paths.add(Run(config(data)).nudged(1.0).cached().path)
    assert len(paths) == 4 and base not in paths


def test_a_damaged_shard_is_computed_again(data):
    run = Run(config(data)).nudged(0.5)
    found = run.cached()
    shard = found.path / "00000.npy"
    before = shard.read_bytes()
    shard.write_bytes(before[: len(before) // 2])
    run.cached()
    assert shard.read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.sampling": "random"}, "data.sampling is 'random'.*set it to 'uniform'"),
        ({"data.crop": "random_resized"}, "data.crop is 'random_resized'"),
        ({"data.flip": True}, "data.flip is True"),
        ({"data.frame_control": "shuffled"}, "data.frame_control is 'shuffled'"),
        ({"model.x_encoder.cache_dtype": "int8"}, "cache_dtype is 'int8'"),
        ({"model.x_encoder.frozen": False}, "frozen to True"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_anything_runs(data, overrides, words):
    made = config(data, **overrides)
    with pytest.raises(UserError, match=words):
        method = methods.from_config(made)
        configs.check_run(made, method, 1)
        video_features.check(made.data, method)
