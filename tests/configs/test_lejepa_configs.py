"""LeJEPA's configs build what they say, at every size, without memory for it."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from jepa import methods
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.parallel import partition
from jepa.training import config as configs
from jepa.training import loop

ROOT = Path(__file__).parents[2] / "configs" / "lejepa"


def load(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def count(tree):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


# Published sizes of the encoders, in millions (that of L by LeJEPA's README), with a CLS token and
# a table of positions, which these have not.
CASES = [
    ("imagenet", ("small8",), 21.7),
    ("imagenet", ("base16",), 86.0),
    ("imagenet", ("large14",), 304.0),
    ("imagenet", ("huge14",), 632.0),
    ("imagenette_minimal", (), 21.7),
    ("fashion_mnist", (), 0.8),
    ("fashion_mnist", ("vicreg",), 0.8),
    ("fashion_mnist", ("barlow_twins",), 0.8),
]


@pytest.mark.parametrize(("name", "arguments", "millions"), CASES, ids=str)
def test_a_config_builds_its_networks(name, arguments, millions):
    config = configs.resolve(load(name, *arguments))
    DataConfig.parse(config.data)
    method = methods.from_config(config)
    configs.check_run(config, method, devices=2)
    loop.make_step(config, method)
    video = jax.ShapeDtypeStruct((2, 1, config.data.size, config.data.size, 3), np.uint8)
    params, state = jax.eval_shape(method.init, jax.random.key(0), {"video": video})
    partition.specs(method.partition_table, params)
    np.testing.assert_allclose(count(params["encoder"]) / 1e6, millions, rtol=0.02)
    encoder, hidden = config.model.encoder, config.model.projector.hidden
    first, second, last = encoder.width * hidden[0], hidden[0] * hidden[1], hidden[1] + 1
    norms = 2 * sum(hidden)
    wanted = first + second + last * config.model.projector.features + norms
    assert count(params["projector"]) == wanted
    assert count(state) == norms
    assert method.flops({"video": video}) > 0


@pytest.mark.parametrize("name", ["imagenet", "fashion_mnist"])
def test_an_unknown_variant_is_named(name):
    with pytest.raises(UserError, match="'giant'"):
        load(name, "giant")
