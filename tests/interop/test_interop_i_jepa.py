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
from jepa.interop import converted
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


def test_positions_that_were_learnt_are_refused(model, tmp_path):
    theirs = IJepaModel(model[0].config)
    theirs.save_pretrained(tmp_path / "published")
    with pytest.raises(UserError, match="position_embeddings .* is not the fixed table"):
        convert.convert("i_jepa", tmp_path / "published", tmp_path / "converted")
