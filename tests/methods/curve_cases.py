"""Loss curves of every method, tiny, on any mesh and any number of processes.

A curve is the loss and the norm of the gradient of each step. All begin from one state and see the
same global batches, whatever the mesh: both are drawn by NumPy, from the seed alone. One command
prints how far curves are from that of one device:

    python tests/methods/curve_cases.py v_jepa_2,lejepa context,fsdp_tensor_context float64

A fourth argument names a JSON file for the figures.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of the CPU client. A collective holds the one it runs in; with no more threads than
# devices (the default on a small machine), all can come to wait for a device that has none.
os.environ.setdefault("NPROC", "32")

import jax
import masked_cases
import numpy as np
import test_lejepa_method as lejepa
import test_vl_jepa_method as vl_jepa

from jepa import methods
from jepa.data.prefetch import put
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop
from jepa.training.state import Initializer
from jepa.training.step import lower

STEPS = 50
MASKED = ("i_jepa", "v_jepa", "v_jepa_2", "v_jepa_2_1")
METHODS = (*MASKED, "lejepa", "vl_jepa")
# Each over eight devices, alone and together. Not every number of tokens here divides by them.
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 4, "tensor": 2},
    "data_fsdp_tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "context": {"data": 4, "context": 2},
    "context_4_fsdp": {"fsdp": 2, "context": 4},
    "fsdp_tensor_context": {"fsdp": 2, "tensor": 2, "context": 2},
}
ONE = {"data": 1}


def config_of(name, axes, dtype="float64"):
    """The resolved config of a method on a mesh of these axes."""
    overrides = {"dtype": dtype, "train.steps": STEPS}
    overrides |= {f"mesh.{axis}": axes.get(axis, 1) for axis in meshes.AXES}
    if name in MASKED:
        return masked_cases.tiny(name, **overrides)
    return (lejepa if name == "lejepa" else vl_jepa).tiny(**overrides)


def batch_of(name, config, step):
    """The global batch of a step."""
    if name in MASKED:
        return masked_cases.batch(config, step)
    return (lejepa if name == "lejepa" else vl_jepa).batch(step)


def first_state(start):
    """The state of step 0, of these shapes: values by name, zeros for what an optimizer keeps."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "variance"):
            return np.ones(leaf.shape, leaf.dtype)
        return (0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    def placed(leaf, value):
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: value[i])

    shapes = start.shapes
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    params = jax.tree_util.tree_map_with_path(draw, shapes.params)
    state = zeros.replace(
        params=params,
        target_params=None if shapes.target_params is None else params,
        method_state=jax.tree_util.tree_map_with_path(draw, shapes.method_state),
    )
    return jax.tree.map(placed, shapes, state)


def curve(name, axes, steps=STEPS, dtype="float64", devices=None):
    """`[steps, 2]`: loss and gradient norm of each step on a mesh.

    Args:
      name: of `METHODS`.
      axes: sizes of the mesh's axes, such as those in `MESHES`.
      steps: to take.
      dtype: "float64" (under `jax.enable_x64`) or "float32".
      devices: of the mesh; by default the first ones of all processes.
    """
    config = config_of(name, axes, dtype)
    count = int(np.prod(list(axes.values())))
    mesh = meshes.make_mesh(axes, devices or jax.devices()[:count])
    method = methods.from_config(config)
    configs.check_run(config, method, count)
    step = loop.make_step(config, method)
    data = batch_of(name, config, 0)
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)
    start = Initializer(method, step.optimizer, mesh, spec, seed=config.seed, dtype=config.dtype)
    program = lower(step, mesh, start.shapes, spec).compile(compiler_options=masked_cases.QUICK)
    part = meshes.batch_part(mesh)
    state, history = first_state(start), []
    for number in range(steps):
        mine = jax.tree.map(lambda x: x[part.rows(len(x))], batch_of(name, config, number))
        state, metrics = program(state, put(mine, meshes.batch_sharding(mesh)))
        history.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return np.array(history)


def distance(curve, reference):
    """The largest relative difference, of losses and of gradient norms."""
    return np.max(np.abs(curve / reference - 1), axis=0)


def main(names, labels, dtype, out=None):
    """Tells how far curves of these methods on these meshes are from those of one device.

    As `{method: {mesh: [loss, gradient norm]}}`, beside the reference's first and last loss.
    """
    steps = STEPS if dtype == "float64" else 1
    found = {}
    for name in names:
        with jax.enable_x64(dtype == "float64"):
            reference = curve(name, ONE, steps, dtype)
            found[name] = {"reference": [reference[0, 0], reference[-1, 0]]}
            for label in labels:
                far = distance(curve(name, MESHES[label], steps, dtype), reference)
                found[name][label] = far.tolist()
                told = f"loss {far[0]:.1e}, gradient norm {far[1]:.1e}"
                print(f"{name} {label} {dtype}, {steps} steps: {told}", flush=True)
    if out:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    meshes.set_cpu_devices(8)
    methods_, meshes_, types, path = (sys.argv[1:] + [""] * 4)[:4]
    main(
        methods_.split(",") if methods_ else METHODS,
        meshes_.split(",") if meshes_ else MESHES,
        types or "float64",
        path,
    )
