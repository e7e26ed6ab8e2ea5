"""The train step of a phase for GPUs that are not there: what it would need, by counting.

There is no compiler for GPUs without a GPU's libraries, so the step is traced and lowered for a
mesh that has names and sizes only, and its memory is added up:

  the train state and the batch, exactly, by their shardings;
  the gradients, one number of the parameter's type for each trained parameter, cut like it;
  what the backward pass keeps of the forward pass, as JAX says it (the residuals of `jax.vjp`), cut
  over the batch axes; of one micro-batch where there are several;
  what one layer keeps while it is differentiated, of the network where that is most: its residuals
  without rematerialisation beyond those with it, over the number of its layers.

Not in it: the gathered parameters of the layers at work, workspaces, the allocator's gaps.
Attention is traced in its plain forms, since cuDNN's needs a GPU to be traced. Time is that of the
arithmetic alone, at the published peak; memory traffic and the network are left out, so the
utilisation is an upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from ml_collections import ConfigDict

from jepa import methods
from jepa.methods.base import Method
from jepa.parallel import mesh as meshes
from jepa.parallel import partition, products
from jepa.parallel.chips import Topology
from jepa.training.ahead import Ahead, Memory, per_device
from jepa.training.metrics import count
from jepa.training.optimizer import merge, split
from jepa.training.prepare import Prepared
from jepa.training.roofline import COMPUTE, Roofline
from jepa.training.state import TrainState
from jepa.training.step import trace


def mesh(topology: Topology, sizes: Mapping[str, int]) -> AbstractMesh:
    """Returns a mesh of GPUs that has names and sizes only.

    Args:
      topology: how many there are, and of which kind.
      sizes: of all axes; they multiply to that number.
    """
    device = AbstractDevice(f"NVIDIA {topology.chip.kind}", None, "cuda")
    return AbstractMesh(
        tuple(sizes[axis] for axis in meshes.AXES),
        meshes.AXES,
        axis_types=(AxisType.Auto,) * len(meshes.AXES),
        abstract_device=device,
    )


def estimate(prepared: Prepared, mesh: Any, topology: Topology, batch_spec: Any) -> Ahead:
    """Traces and lowers a phase's step for GPUs, and counts what it needs.

    Args:
      prepared: the phase, on this mesh.
      mesh: as from `mesh`.
      topology: what it was made of.
      batch_spec: tree of ShapeDtypeStruct of the global batch.
    """
    assert topology.chip.memory is not None
    begin = time.perf_counter()
    state = prepared.initializer.shapes
    traced = trace(prepared.step, mesh, state, batch_spec)
    done = products.flops(traced.jaxpr) / mesh.size
    with meshes.using(mesh):
        traced.lower(lowering_platforms=("cuda",))
    middle = time.perf_counter()
    trainable, _ = split(state.params, prepared.method.requirements.frozen)
    arguments = per_device(state) + per_device(batch_spec, mesh)
    temporaries = per_device(trainable) + _activations(prepared, mesh, batch_spec)
    total = arguments + temporaries
    useful = prepared.method.flops(batch_spec)
    seconds = done / topology.chip.flops
    utilisation = useful / mesh.size / topology.chip.flops / seconds
    return Ahead(
        parameters=count(state.params),
        trained=count(trainable),
        memory=Memory(arguments, temporaries, None, total, topology.chip.memory),
        fits=total <= topology.chip.memory,
        useful=useful,
        done=done,
        moved=None,
        collectives={},
        roofline=Roofline(
            seconds, None, {}, seconds, seconds, utilisation, utilisation, f"{COMPUTE}, all counted"
        ),
        seconds=(middle - begin, time.perf_counter() - middle),
    )


def _activations(prepared: Prepared, mesh: Any, batch_spec: Any) -> float:
    """Bytes of a device's residuals, and of those of a layer at work."""
    config = prepared.phase.config
    parts = config.train.accumulate
    micro = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype), batch_spec
    )
    layer = 0.0
    with meshes.using(mesh):
        kept = _residuals(prepared.method, prepared, micro)
        for name, depth in _rematerialised(config, prepared).items():
            plain = config.copy_and_resolve_references()
            plain.model[name].remat = "none"
            everything = _residuals(methods.from_config(plain), prepared, micro)
            layer = max(layer, (everything - kept) / depth)
    return (kept + layer) / meshes.batch_shards(mesh)


def _rematerialised(config: ConfigDict, prepared: Prepared) -> dict[str, int]:
    """{name: layers} of the networks that compute something twice."""
    found: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(prepared.initializer.shapes.params):
        name, *inside = partition.path_name(path).split("/")
        section = config.model.get(name)
        if "blocks" in inside and section is not None and section.get("remat") != "none":
            found[name] = leaf.shape[0]
    return found


def _residuals(method: Method, prepared: Prepared, batch: Any) -> float:
    """Bytes of what the backward pass keeps of the forward pass, but parameters, on all devices."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), prepared.initializer.shapes
    )
    trainable, frozen = split(shapes.params, method.requirements.frozen)

    def pull(trainable: Any, frozen: Any, state: TrainState, batch: Any) -> Any:
        def loss(trainable: Any) -> jax.Array:
            params, key = merge(trainable, frozen), jax.random.key(0)
            outputs, _ = method.represent(
                params, state.target_params, state.method_state, batch, key
            )
            return method.objective(outputs, state.step)[0]

        return jax.vjp(loss, trainable)[1]

    held = jax.eval_shape(pull, trainable, frozen, shapes, batch)
    own = {x.shape for x in jax.tree.leaves(shapes.params)}
    return float(
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held) if x.shape not in own)
    )
