import numpy as np
import pytest

from jepa.errors import UserError
from jepa.interop import parameters


def test_what_is_saved_is_what_is_loaded(tmp_path):
    tree = {
        "blocks": {"out": {"kernel": np.arange(12, dtype=np.float32).reshape(2, 3, 2)}},
        "norm": {"scale": np.ones(3, np.float32)},
    }
    # Not contiguous: safetensors would write the bytes as they lie.
    tree["turned"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    path = tmp_path / "new" / "encoder.safetensors"
    parameters.save(path, tree, {"step": "3"})
    got = parameters.load(path)
    assert got.keys() == tree.keys()
    np.testing.assert_array_equal(got["blocks"]["out"]["kernel"], tree["blocks"]["out"]["kernel"])
    np.testing.assert_array_equal(got["turned"], tree["turned"])
    assert [file.name for file in path.parent.iterdir()] == ["encoder.safetensors"]


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="x.safetensors cannot be read"):
        parameters.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="x.safetensors cannot be read"):
        parameters.load(path)
