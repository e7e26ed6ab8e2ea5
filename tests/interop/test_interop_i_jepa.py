"""I-JEPA against transformers."""

from functools import partial

import hugging
import jax
import meta_torch as meta
import numpy as np
import pytest
import torch
from transformers import IJepaConfig, IJepaModel

from experiments import convert
from jepa.errors import UserError
from jepa.interop import converted, parameters
from jepa.models.vit import VideoTransformer

PATCH, ROWS, WIDTH = 8, 3, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = IJepaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=60,
        image_size=ROWS * PATCH,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )
    theirs = hugging.randomise(IJepaModel(config))
    theirs.embeddings.position_embeddings.data = meta.table_2d(ROWS, WIDTH)
    directory = tmp_path_factory.mktemp("i_jepa")
    theirs.save_pretrained(directory / "published")
    (directory / "published" / "preprocessor_config.json").write_text("{}")
    convert.convert("i_jepa", directory / "published", directory / "converted")
    return theirs, directory


@pytest.mark.parametrize("grid", [(ROWS, ROWS), (2, 5)])
def test_images_of_any_size(model, grid):
    theirs, directory = model
    encoder = VideoTransformer(**converted.about(directory / "converted")["fields"]["encoder"])
    params = converted.load(directory / "converted", part="encoder")
    shape = (2, 1, grid[0] * PATCH, grid[1] * PATCH, 3)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        pixels = torch.tensor(image[:, 0].transpose(0, 3, 1, 2).copy())
        expected = theirs(pixels, interpolate_pos_encoding=True).last_hidden_state
    run = partial(jax.jit, compiler_options=hugging.FAST)(encoder.apply)
    hugging.assert_close(run({"params": params}, image), expected)


def test_round_trip(model, tmp_path, caplog):
    theirs, directory = model
    convert.convert("i_jepa", directory / "converted", tmp_path / "back")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(directory / "published")
    assert (tmp_path / "back" / "preprocessor_config.json").read_text() == "{}"
    with hugging.silent(caplog):
        again = IJepaModel.from_pretrained(tmp_path / "back")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_few_digits_come_back(model, tmp_path, dtype):
    """The fixed table is rounded like all else, by others and by our own --dtype."""
    published = tmp_path / "published"
    kind = getattr(torch, dtype)
    IJepaModel.from_pretrained(model[1] / "published", dtype=kind).save_pretrained(published)
    convert.convert("i_jepa", published, tmp_path / "converted")
    convert.convert("i_jepa", tmp_path / "converted", tmp_path / "back")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(published)
    convert.convert("i_jepa", model[1] / "converted", tmp_path / "rounded", dtype=dtype)
    assert hugging.tensors(tmp_path / "rounded") == hugging.tensors(published)
    convert.convert("i_jepa", tmp_path / "rounded", tmp_path / "again")
    assert IJepaModel.from_pretrained(tmp_path / "rounded").dtype == kind
    # What was trained in float32 from them is not rounded when it is loaded.
    trained = jax.tree.map(lambda p: p * 1.001, converted.load(model[1] / "converted")["encoder"])
    parameters.save(tmp_path / "trained.safetensors", trained, {"part": "encoder"})
    convert.convert("i_jepa", tmp_path / "trained.safetensors", tmp_path / "out", like=published)
    found = IJepaModel.from_pretrained(tmp_path / "out").layernorm.weight
    np.testing.assert_array_equal(found.detach().numpy(), trained["norm"]["scale"])


def test_positions_that_were_learnt_are_refused(model, tmp_path):
    theirs = IJepaModel(model[0].config)
    theirs.save_pretrained(tmp_path / "published")
    with pytest.raises(UserError, match="position_embeddings .* is not the fixed table"):
        convert.convert("i_jepa", tmp_path / "published", tmp_path / "converted")
    # Neither in a type of few digits.
    theirs.embeddings.position_embeddings.data = 1.05 * meta.table_2d(ROWS, WIDTH)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "near")
    with pytest.raises(UserError, match="position_embeddings .* is not the fixed table"):
        convert.convert("i_jepa", tmp_path / "near", tmp_path / "converted")
