"""The commands over two processes against the same over one: files, numbers, caches, weights."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jepa import methods
from jepa.data.world.write import write_world
from jepa.interop import parameters

sys.path.insert(0, str(Path(__file__).parent))
import launch  # noqa: E402
import tiny_configs  # noqa: E402

CONFIGS = "tests/distributed/tiny_configs.py"
TIMES = ("date", "device", "wall_seconds", "training")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    # 13 clips to evaluate on: the last batch of 8 is uneven, and one process has none of it.
    directory = tmp_path_factory.mktemp("data") / "world"
    write_world(directory, clips={"train": 24, "validation": 13}, processes=1, progress=False)
    return directory


@pytest.fixture(scope="module")
def encoder(world, tmp_path_factory):
    """A file of the weights of VL-JEPA's X-encoder, drawn at random."""
    config = tiny_configs.get_config("vl_jepa")
    x_encoder = methods.from_config(config).x_encoder
    video = np.zeros((1, config.data.frames, 32, 32, 3), np.float32)
    params = jax.jit(x_encoder.init)(jax.random.key(7), video)["params"]
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    parameters.save(path, jax.tree.map(np.asarray, params), {})
    return path


def command(module, name, world, workdir, count, *more):
    workdir.mkdir(parents=True, exist_ok=True)
    return launch.run(
        workdir,
        ["-m", f"experiments.{module}", f"--config={CONFIGS}:{name}", f"--devices={4 // count}",
         f"--workdir={workdir / 'run'}", f"--config.data.path={world}",
         "--config.dtype=float64", *more],
        count,
    )  # fmt: skip


def rows(workdir):
    return [json.loads(line) for line in (workdir / "run" / "metrics.jsonl").open()]


def steady(workdir):
    """Returns the numbers of each step that do not depend on the time."""
    times = re.compile("second|mfu|goodput")
    return [{k: v for k, v in row.items() if not times.search(k)} for row in rows(workdir)]


def assert_alike(ours, theirs, where=""):
    """Equal, and numbers equal to 1e-9."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_alike(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(*pair, f"{where}[{i}]")
    elif isinstance(ours, float):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=where)
    else:
        assert ours == theirs, where


def measured(numbers, where=()):
    """Yields (path, number) of what was measured in nested dicts."""
    for key, value in numbers.items():
        if isinstance(value, dict):
            yield from measured(value, (*where, key))
        elif key in ("value", "low", "high", "count"):
            yield (*where, key), value


@pytest.mark.slow
def test_weights_are_read_into_the_shards_of_each_process(world, encoder, tmp_path):
    given = ["-m", "tests.distributed.weights_process", f"--weights={encoder}", f"--world={world}"]
    started = launch.run(tmp_path, given, 2)
    for index in range(2):
        found = re.search(r"(\d+) parameters, (\d+) of them cut by 8", started.log(index))
        # The others have no dimension of the embedding: biases inside of layers, say.
        assert found and int(found[2]) >= int(found[1]) // 2 > 0


@pytest.mark.slow
def test_training_from_weights_with_caches_and_then_its_evaluation(world, encoder, tmp_path):
    more = (
        "--config.train.steps=6", "--config.train.save_every=3", "--config.train.eval_every=3",
        "--config.train.keep_best_metric=evaluation/retrieval_t2v_r1",
        f"--config.model.x_encoder.weights={encoder}", "--config.model.x_encoder.frozen=True",
        "--config.model.x_encoder.cache_features=True", "--config.data.sampling=uniform",
        "--config.model.x_encoder.cache_dtype=float32",
        "--config.data.tokenizer=minilm", "--config.model.y_encoder.tower=minilm",
        "--config.model.y_encoder.frozen=True", "--config.mesh.fsdp=2",
    )  # fmt: skip
    for count in (1, 2):
        data = shutil.copytree(world, tmp_path / f"data{count}")  # with caches of its own
        workdir = tmp_path / f"{count}"
        trained = command("train", "vl_jepa", data, workdir, count, *more)
        assert {path.name.split("-")[0] for path in (data / "cache").iterdir()} >= {
            "text_features",
            "video_features",
        }
        evaluated = command("evaluate", "vl_jepa", data, workdir, count, *more)
        if count == 2:
            for said, words in ((trained, "step 6/6"), (evaluated, "report:")):
                assert words in said.log(0) and words not in said.log(1)
    assert_alike(steady(tmp_path / "2"), steady(tmp_path / "1"))
    one, two = (json.loads((tmp_path / n / "run" / "evaluation.json").read_text()) for n in "12")
    for numbers in (one, two):
        for key in (*TIMES, "identity"):
            numbers.pop(key)
    assert_alike(two, one)
    assert one["retrieval"]["text_to_video"]["recall_at_1"]["count"] <= 13


@pytest.mark.slow
def test_held_out_loss_and_neighbours_and_probes(world, tmp_path):
    more = (
        "--config.train.steps=4", "--config.train.eval_every=2", "--config.train.keep_last=1",
        "--config.train.keep_best_metric=held_out/loss", "--config.train.keep_best_mode=min",
    )  # fmt: skip
    probe = ("--probes=knn,linear", "--config.probe.labels=('colour',)",
             "--config.probe.batch_size=8", "--config.probe.storage=float32",
             "--config.probe.seeds=1", "--config.probe.knn.k=3")  # fmt: skip
    for count in (1, 2):
        command("train", "lejepa", world, tmp_path / f"{count}", count, *more)
        command("probe", "lejepa", world, tmp_path / f"{count}", count, *more, *probe)
    for name in ("held_out/loss", "knn/colour", "knn/colour_chance", "knn/shape"):
        one, two = ([row[name] for row in rows(tmp_path / n) if name in row] for n in "12")
        assert len(one) == 2
        np.testing.assert_allclose(two, one, rtol=1e-9)
    runs = [tmp_path / n / "run" for n in "12"]
    # Pooled features are kept in float32; the classes and the hits that follow are the same.
    names = [sorted(path.name for path in (run / "features").iterdir()) for run in runs]
    assert len(names[0]) == len(names[1])
    one, two = (dict(measured(json.loads((run / "probes.json").read_text()))) for run in runs)
    assert len(one) >= 2 and one.keys() == two.keys()
    assert one == pytest.approx(two, rel=1e-9)
    assert len(list((runs[1] / "tensorboard").iterdir())) == 1
    assert (runs[1] / "config.json").is_file()
