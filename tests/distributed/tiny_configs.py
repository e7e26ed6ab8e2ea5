"""The smallest models that train on the clips of a tiny world: `--config=THIS:NAME`.

`data.path` is given on the command line.
"""

from configs.lejepa import fashion_mnist
from configs.v_jepa_2 import world
from jepa.evaluation.online_knn import default_knn
from tests.experiments import tiny

NAMES = ("vl_jepa", "v_jepa_2", "lejepa")


def get_config(name):
    config = {"vl_jepa": tiny.get_config, "v_jepa_2": v_jepa_2, "lejepa": lejepa}[name]()
    frames = 1 if name == "lejepa" else 4
    config.data.update(frames=frames, size=32, cache="none", threads=1)
    # A schedule for any number of steps.
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2, schedule="constant")
    config.train.update(steps=50, global_batch=8, log_every=1, save_every=0, health_every=0)
    return config


def v_jepa_2():
    config = world.get_config()
    config.data.update(patch=8, tubelet=2)
    config.model.encoder.update(patch=8, tubelet=2, width=24, depth=1, heads=2)
    config.model.predictor.update(width=16, depth=1, heads=2)
    return config


def lejepa():
    config = fashion_mnist.get_config()
    config.model.encoder.update(patch=8, width=24, depth=2, heads=2, scan=True)
    config.model.global_views.update(count=2, size=32)
    config.model.projector.update(features=16, hidden=(32,))
    config.evaluation.held_out.split = "validation"
    # An uneven last batch, of which one of two processes has nothing.
    config.evaluation.knn = default_knn(labels=("colour", "shape"), batch_size=8, k=3)
    config.probe.test_split = "validation"
    return config
