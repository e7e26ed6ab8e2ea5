"""What a config names as `model.x_encoder.weights`: every form of every encoder."""

import json

import jax
import numpy as np
import pytest
import torch
from jax.sharding import Mesh
from transformers import VJEPA2Config, VJEPA2ForVideoClassification

from configs.vl_jepa import quickstart
from experiments import convert
from jepa import methods
from jepa.errors import UserError
from jepa.interop import converted, parameters, paths, starting
from jepa.methods.x_encoders import FUNCTION
from jepa.parallel import partition

SIZES = {"width": 48, "depth": 2, "heads": 2, "patch": 8, "tubelet": 2, "rope": "tiled"}
SIZES |= {"gelu": "exact", "mlp_ratio": 4.0}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A published classifier, the same converted, and its encoder as a file of ours."""
    directory = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    config = VJEPA2Config(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        num_pooler_layers=1,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    VJEPA2ForVideoClassification._from_config(config).save_pretrained(directory / "published")
    convert.convert("v_jepa_2_classifier", directory / "published", directory / "converted")
    encoder = converted.load(directory / "converted", part="encoder")
    parameters.save(directory / "encoder.safetensors", encoder, {})
    return directory


def method(weights, **changes):
    config = quickstart.get_config()
    config.model.x_encoder.update({**SIZES, "positions": "none", "weights": weights, **changes})
    return methods.from_config(config)


@pytest.mark.parametrize("name", ["published", "converted", "encoder.safetensors"])
def test_the_encoder_goes_into_its_shards(directory, name, monkeypatch):
    monkeypatch.setenv(paths.ROOT, str(directory))
    vl_jepa = method(name)
    found = vl_jepa.pretrained()["x_encoder"]
    expected = converted.load(directory / "converted", part="encoder")
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    wanted = partition.shardings(mesh, vl_jepa.x_encoder.partition_table(), expected)

    def check(pending, sharding, whole):
        array = pending.read(sharding, "bfloat16")
        assert array.sharding == sharding
        np.testing.assert_array_equal(array, whole.astype("bfloat16"))

    jax.tree.map(check, found, wanted, expected)
    jax.tree.map(np.testing.assert_array_equal, starting.read(found), expected)


def test_another_encoder_is_refused(directory, tmp_path):
    for changes, complaint in (
        ({"rope": "rotation"}, "was made with rope='tiled' and the config says 'rotation'"),
        ({"heads": 4}, "was made with heads=2"),
        ({"positions": "sincos"}, "was made with positions='none'"),
        ({"pretrain_grid": 16}, "was made with pretrain_grid=None"),
        ({"depth": 3}, "has of another shape: blocks/"),
        ({"taps": (1, 2)}, "lacks tap_norms_0/bias"),
    ):
        for name in ("published", "converted"):
            with pytest.raises(UserError, match=complaint):
                method(str(directory / name), **changes).pretrained()
    with pytest.raises(UserError, match="nowhere cannot be read: it does not exist"):
        method(str(tmp_path / "nowhere")).pretrained()


def test_plans_say_all_that_decides_the_function(directory):
    assert set(FUNCTION["video"]) <= set(
        converted.about(directory / "converted")["fields"]["encoder"]
    )


def test_an_x_encoder_of_a_run_of_vl_jepa_begins_another(directory, tmp_path):
    encoder = converted.load(directory / "converted", part="encoder")
    section = method("").model.x_encoder.to_dict()
    exported = tmp_path / "exported.safetensors"
    parameters.save(exported, encoder, {"fields": json.dumps(section), "part": "x_encoder"})
    found = starting.read(method(str(exported)).pretrained()["x_encoder"])
    jax.tree.map(np.testing.assert_array_equal, found, encoder)
    with pytest.raises(UserError, match="made with gelu='exact' and the config says 'tanh'"):
        method(str(exported), gelu="tanh").pretrained()
