import gzip

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jepa.errors import UserError
from jepa.evaluation.held_out import HeldOut
from jepa.methods.base import Outputs
from jepa.parallel import mesh as meshes


class Bright:
    """A method whose loss is the brightness of a batch; draws are returned beside it."""

    def represent(self, params, target_params, state, batch, rng):
        mean = batch["video"].astype("float32").mean(axis=(1, 2, 3, 4)) * params["gain"]
        return Outputs(pooled={"mean": mean}, scalars={"draw": jax.random.uniform(rng)}), state

    def objective(self, outputs, step):
        return outputs.pooled["mean"].mean(), {"draw": outputs.scalars["draw"], "step": step}


@pytest.fixture
def directory(tmp_path):
    for kind, array in (
        ("images", np.arange(10, dtype=np.uint8).repeat(16).reshape(10, 4, 4)),
        ("labels", np.zeros(10, np.uint8)),
    ):
        rank = array.ndim
        header = bytes((0, 0, 8, rank)) + np.array(array.shape, ">u4").tobytes()
        path = tmp_path / f"test-{kind}-idx{rank}-ubyte.gz"
        path.write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


def held_out(directory, devices=2, **options):
    data = ConfigDict({"path": f"idx:{directory}", "streams": ("video",), "frames": 1, "size": 4})
    mesh = meshes.make_mesh({"data": devices}, jax.devices()[:devices])
    return HeldOut(Bright(), data, split="test", mesh=mesh, **{"batch_size": 4, **options})


def test_it_averages_whole_batches_and_draws_the_same_again(directory):
    measure = held_out(directory)
    first = measure({"gain": np.float32(2.0)}, None, {})
    assert first["loss"] == pytest.approx(2 * np.mean(range(8)))  # the last two are left out
    assert first["step"] == 0 and 0 < first["draw"] < 1
    again = measure({"gain": np.float32(1.0)}, None, {})
    assert again["draw"] == first["draw"] and again["loss"] == first["loss"] / 2
    assert measure._measure._cache_size() == 1  # one program for all batches and checkpoints
    assert held_out(directory, seed=1)({"gain": np.float32(1)}, None, {})["draw"] != again["draw"]
    assert held_out(directory, limit=4)({"gain": np.float32(1)}, None, {})["loss"] == 1.5


def test_batches_that_do_not_fit_are_named(directory):
    with pytest.raises(UserError, match="10 examples"):
        held_out(directory, batch_size=12)
    with pytest.raises(UserError, match="multiple of 3"):
        held_out(directory, devices=3)
