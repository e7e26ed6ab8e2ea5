"""The README's "Your own videos": a manifest of two splits and configs/vl_jepa/own_data.py."""

import csv

import jax
import jax.numpy as jnp
import pytest

from configs.vl_jepa import own_data
from experiments import prepare_data
from jepa import methods
from jepa.data import loader
from jepa.errors import UserError
from jepa.evaluation.suite import Evaluator
from jepa.methods.base import Outputs
from jepa.parallel.mesh import make_mesh
from jepa.training import config as configs
from tests.data.video_files import write_video


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    where = tmp_path_factory.mktemp("own")
    for split, count in (("train", 5), ("validation", 3)):
        with open(where / f"{split}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["video", "caption"])
            for i in range(count):
                # Odd lengths and sizes: nothing is known of a stranger's videos.
                write_video(where / f"{split}{i}.mp4", frames=5 + i, size=(50, 98 + 2 * i))
                rows.writerow([f"{split}{i}.mp4", f"something {split} {i}"])
    manifests = [f"{split}={where / split}.csv" for split in ("train", "validation")]
    arguments = ["--output", str(where / "data"), "--processes", "1", "--manifest", *manifests]
    prepare_data.main(arguments)
    made = own_data.get_config()
    made.data.path = str(where / "data")
    return configs.resolve(made)


def test_the_config_fits_and_a_batch_may_be_larger_than_the_set(config):
    method = methods.from_config(config)
    configs.check_run(config, method, 2)
    batches = loader.make_train_loader(config.data, global_batch=8, seed=0)
    batch = next(iter(batches))
    batches.close()
    assert batch["video"].shape == (8, 8, 96, 96, 3)
    params, _ = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert "x_encoder" in params
    assert batches.vocabulary["query"] <= config.model.predictor.vocab


class Pixels:
    """Embeds clips by their brightness over time, and texts by their ids."""

    def embed(self, params, state, batch):
        pooled = {}
        if "video" in batch:
            pooled["prediction"] = batch["video"].astype(jnp.float32).mean((2, 3, 4))
        if "text" in batch:
            pooled["target"] = batch["text"]["ids"][:, :8].astype(jnp.float32)
        return Outputs(pooled=pooled)


def test_captions_of_the_validation_split_are_looked_up(config):
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    found = Evaluator(Pixels(), config.data, config.evaluation, mesh).evaluate({}, {})
    assert set(found) == {"retrieval"}
    assert found["retrieval"]["count"] == 3


def test_the_path_has_to_be_given():
    with pytest.raises(UserError, match=r"data.path is ''"):
        loader.make_train_loader(own_data.get_config().data, global_batch=8, seed=0)
