"""Every config in configs/ is one that the library accepts and can build."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import train
from jepa import methods
from jepa.data.config import DataConfig
from jepa.parallel import partition
from jepa.training import config as configs
from jepa.training import loop

ROOT = Path(__file__).parents[2] / "configs"
# Built, in all their sizes, by test_masked_configs.py.
MASKED = ("i_jepa", "v_jepa", "v_jepa_2", "v_jepa_2_1")
# configs/pods.py, which has no config of its own, is checked by test_precompile.py.
OTHERS = sorted(path for path in ROOT.rglob("*/*.py") if path.parent.name not in MASKED)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: p.stem)
def test_a_config_builds_its_method_and_its_step(path):
    config = load(path)
    if config.data.get("path") is None:  # a dataset of one's own
        config.data.path = "somewhere"
    config = configs.resolve(config)
    data = DataConfig.parse(config.data)
    train.check_evaluation(config)
    method = methods.from_config(config)
    configs.check_run(config, method, devices=2)
    loop.make_step(config, method)
    size, pairs = data.size, 2 * data.pairs_per_clip
    tokens = {
        "ids": jnp.ones((pairs, data.query_length), jnp.int32),
        "mask": jnp.ones((pairs, data.query_length), bool),
    }
    batch = {
        "video": jnp.zeros((2, data.frames, size, size, 3), jnp.uint8),
        "query": tokens,
        "text": {**tokens, "hash": jnp.arange(pairs)},
    }
    params, _ = jax.eval_shape(method.init, jax.random.key(0), batch)
    partition.specs(method.partition_table, params)
    assert method.flops(batch) > 0
