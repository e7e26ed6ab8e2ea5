"""A method without training and a set of pictures on disk, for the probes' tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jepa.evaluation import probes_config
from jepa.methods.base import Outputs, Requirements
from jepa.nn.frames import to_float
from jepa.training import config as configs

SIZE, PATCH, WIDTH = 8, 4, 6


class Patches:
    """Tokens are patches times a matrix; the mean of them is pooled. Keeps a moving average."""

    requirements = Requirements(ema=True)
    partition_table = (("encoder/kernel", (None, None)),)

    def __init__(self, config):
        pass

    def init(self, rng, batch):
        return {"encoder": {"kernel": jax.random.normal(rng, (PATCH * PATCH * 3, WIDTH))}}, {}

    def pretrained(self):
        return {}

    def embed(self, params, state, batch):
        video = to_float(batch["video"])[:, 0]
        cells = SIZE // PATCH
        cut = video.reshape(-1, cells, PATCH, cells, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        tokens = cut.reshape(-1, cells * cells, PATCH * PATCH * 3) @ params["encoder"]["kernel"]
        return Outputs(tokens={"video": tokens}, pooled={"video": jnp.mean(tokens, axis=1)})


def write(directory, *, train=60, test=40, seed=0):
    """IDX files of 8 x 8 pictures; class 0 is dark, 1 is bright at the left, 2 at the right."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        pictures = rng.integers(40, 90, (count, SIZE, SIZE))
        pictures[labels == 1, :, :4] += 120
        pictures[labels == 2, :, 4:] += 120
        for name, array in (("images-idx3", pictures.astype(np.uint8)), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            (directory / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())


def section(**changes):
    """The section `probe` for these pictures, small."""
    found = probes_config.default_probe()
    found.update(test_split="test", seeds=2, batch_size=16, **changes)
    found.linear.update(l2=(1e-3, 1e-1), iterations=100)
    found.attentive.update(
        depth=1, epochs=2, batch_size=16, learning_rates=(1e-2,), weight_decays=(0.01,)
    )
    return found


def config(path, **changes):
    """The config of a run over these pictures."""
    found = ConfigDict(
        {
            "method": "tests.evaluation.probe_toy.Patches",
            "data": {"path": f"idx:{path}", "streams": ("video",), "frames": 1, "size": SIZE},
            "model": {},
            "mesh": {"data": -1},
            "train": {"global_batch": 8},
        }
    )
    found.ema = configs.default_ema_config()
    found.probe = section(**changes)
    return found
