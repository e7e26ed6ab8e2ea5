"""Tiny configs of the masked methods, their batches, and train steps on any mesh."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from jepa import methods
from jepa.data.config import DataConfig
from jepa.data.joint import images_config
from jepa.data.prefetch import put
from jepa.masks.config import from_config
from jepa.methods import i_jepa, v_jepa, v_jepa_2, v_jepa_2_1
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop
from jepa.training.state import Initializer
from jepa.training.step import lower

CLIPS, SIZE = 8, 16
# Compiling is nearly all the time these tests take, and speed is not what they are about.
QUICK = {"xla_backend_optimization_level": 0}

_TUBES = {"sampler": "tubes", "minimum": 0.05}
# One kind is enough where kinds are not the point: programs are half as large.
_SHORT = {**_TUBES, "kinds": {"short": {"blocks": 8, "scale": 0.15}}}
_IMAGES = {
    "path": "unused",
    "batch": CLIPS,
    "masks": {"sampler": "tubes", "kinds": {"image": {"blocks": 3, "scale": 0.2}}},
}
CASES = {
    "i_jepa": ("jepa.methods.i_jepa.IJEPA", i_jepa, 1, {"sampler": "multiblock"}),
    "v_jepa": ("jepa.methods.v_jepa.VJEPA", v_jepa, 4, _TUBES),
    "v_jepa_2": ("jepa.methods.v_jepa_2.VJEPA2", v_jepa_2, 4, _TUBES),
    "v_jepa_2_1": ("jepa.methods.v_jepa_2_1.VJEPA21", v_jepa_2_1, 4, _SHORT),
    # Without deep supervision, which doubles the stacks to compile.
    "dense": ("jepa.methods.v_jepa_2_1.VJEPA21", v_jepa_2_1, 4, _SHORT),
    "distillation": ("jepa.methods.v_jepa_2_1.Distillation", v_jepa_2_1, 4, _SHORT),
}


def tiny(name, **overrides):
    """A resolved config: two layers of 24 numbers, 16 tokens a frame."""
    path, module, frames, masks = CASES[name]
    config = ConfigDict({"seed": 3, "method": path, "dtype": "float32"})
    config.data = {
        "path": "unused",
        "streams": ("video", "masks"),
        "frames": frames,
        "size": SIZE,
        "patch": 4,
        "tubelet": 1 if frames == 1 else 2,
        "masks": masks,
    }
    config.mesh = configs.default_mesh_config()
    distilled = name == "distillation"
    config.model = module.default_distillation() if distilled else module.default_model()
    # 12 numbers a head: with fewer, the two forms of rotary positions are the same.
    small = {"patch": 4, "width": 24, "depth": 2, "heads": 2}
    config.model.encoder.update(small)
    config.model.predictor.update(width=24, depth=1, heads=2)
    config.loss = module.default_loss()
    config.ema = configs.default_ema_config()
    config.ema.momentum = 0.9
    if name in ("v_jepa_2_1", "dense"):
        config.model.encoder.taps = (1, 2) if name == "v_jepa_2_1" else ()
        config.data.images = ConfigDict(_IMAGES)
    if distilled:
        config.model.encoder.image_tokenizer = False
        config.model.teacher.update(small, width=32, image_tokenizer=False, weights="unused")
        del config.ema
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "clip_norm": None,
    }
    config.train = {"steps": 40, "global_batch": CLIPS}
    config.update_from_flattened_dict(overrides)
    return configs.resolve(config)


def batch(config, step=0):
    """What a loader would give at that step."""
    data = DataConfig.parse(config.data)
    made = _stream(data, config.train.global_batch, step)
    if data.images:
        images, rows = images_config(data)
        made["images"] = _stream(images, rows, step + 1000)
    return made


def _stream(data, rows, step):
    rng = np.random.default_rng(step)
    masks = from_config(data.masks, data.grid)
    shape = (rows, data.frames, data.size, data.size, 3)
    return {
        "video": rng.integers(0, 256, shape).astype(np.uint8),
        "masks": masks.sample(7, np.arange(rows) + rows * step),
    }


def draw(method, data, seed=0, scale=0.3):
    """Parameters large enough that attention and positions matter."""
    shapes, _ = jax.eval_shape(method.init, jax.random.key(0), data)
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def spec(config):
    """The shapes of a batch."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch(config))


class Program:
    """A compiled train step and the state of step 0, drawn once for all meshes."""

    _first = {}

    def __init__(self, name, devices=1, **overrides):
        self.config = tiny(name, **overrides)
        self.mesh = meshes.make_mesh(self.config.mesh, jax.devices()[:devices])
        self.method = methods.from_config(self.config)
        configs.check_run(self.config, self.method, devices)
        step = loop.make_step(self.config, self.method)
        shapes = spec(self.config)
        self._start = Initializer(
            self.method,
            step.optimizer,
            self.mesh,
            shapes,
            seed=self.config.seed,
            dtype=self.config.dtype,
        )
        lowered = lower(step, self.mesh, self._start.shapes, shapes)
        self.program = lowered.compile(compiler_options=QUICK)
        key = (name, self.config.dtype)
        if key not in self._first:
            self._first[key] = self._draw()
        self.first = self._first[key]

    def _draw(self):
        # As `Initializer.create`, without programs to compile: Adam's moments begin at zero.
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self._start.shapes)
        params = draw(self.method, batch(self.config), scale=0.2)
        params = jax.tree.map(lambda x, s: x.astype(s.dtype), params, self._start.shapes.params)
        target = None if zeros.target_params is None else jax.tree.map(np.copy, params)
        return zeros.replace(params=params, target_params=target)

    def run(self, steps, same=False):
        """(last state, [steps, 2] of loss and gradient norm); on one batch over again if `same`."""
        state, history = jax.device_put(self.first, self._start.shardings), []
        for step in range(steps):
            data = batch(self.config, 0 if same else step)
            state, metrics = self.program(state, put(data, meshes.batch_sharding(self.mesh)))
            history.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
        return jax.device_get(state), np.array(history)


@functools.cache
def program(name, devices=1, axes=(), dtype="float64"):
    """A program that several tests share."""
    with jax.enable_x64(dtype == "float64"):
        return Program(name, devices, dtype=dtype, **dict(axes))
