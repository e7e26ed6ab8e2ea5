"""The masked methods start from published weights: encoder, predictor and moving average."""

import jax
import numpy as np
import pytest
import torch
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import VJEPA2Config, VJEPA2Model

from experiments import convert
from jepa.errors import UserError
from jepa.interop import converted, parameters, starting
from jepa.methods import v_jepa_2
from jepa.parallel import partition


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    config = VJEPA2Config(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    VJEPA2Model._from_config(config).save_pretrained(directory / "published")
    convert.convert("v_jepa_2", directory / "published", directory / "converted")
    params = converted.load(directory / "converted")
    parameters.save(directory / "run.safetensors", params, {"part": ""})
    parameters.save(directory / "encoder.safetensors", params["encoder"], {"part": "encoder"})
    return directory


def method(weights, **changes):
    model = v_jepa_2.default_model()
    model.encoder.update(width=48, depth=2, heads=2, patch=8, rope="tiled")
    model.predictor.update(width=24, depth=1, heads=2, rope="tiled", mask_tokens=10, **changes)
    model.weights = str(weights)
    config = {"model": model, "loss": v_jepa_2.default_loss(), "dtype": "float32"}
    return v_jepa_2.VJEPA2(ConfigDict(config))


@pytest.mark.parametrize("name", ["published", "converted", "run.safetensors"])
def test_both_networks_begin_as_published(directory, name):
    found = method(directory / name).pretrained()
    expected = converted.load(directory / "converted")
    jax.tree.map(np.testing.assert_array_equal, starting.read(found), expected)


def test_an_encoder_alone_leaves_the_predictor_random(directory):
    assert method(directory / "encoder.safetensors").pretrained().keys() == {"encoder"}
    assert method("").pretrained() == {}


def test_parameters_go_to_their_shards(directory):
    made = method(directory / "published")
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    found = made.pretrained()
    wanted = partition.shardings(mesh, made.partition_table, found)
    jax.tree.map(
        lambda pending, sharding: (
            pending.read(sharding).sharding == sharding or pytest.fail("elsewhere")
        ),
        found,
        wanted,
    )


def test_another_predictor_is_refused(directory):
    for changes, complaint in (
        ({"gelu": "tanh"}, "config.model.weights=.* was made with gelu='exact'"),
        ({"mlp_ratio": 2.0}, "has of another shape: blocks/mlp/in/bias"),
    ):
        with pytest.raises(UserError, match=complaint):
            method(directory / "published", **changes).pretrained()
