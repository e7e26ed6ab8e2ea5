"""Every loss, value and gradient, on 1, 2, 4 and 8 devices against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from loss_cases import all_cases, value_and_gradients

from jepa.parallel.mesh import BATCH_AXES, make_mesh

CASES = all_cases()
MESHES = [
    {"data": 1},
    {"fsdp": 2},
    {"data": 2, "fsdp": 2},
    {"data": 2, "fsdp": 4},
    {"data": 2, "fsdp": 2, "tensor": 2},
]


@functools.cache
def wanted(case):
    inputs = case.inputs()
    return value_and_gradients(case.reference, inputs, case.learnt(inputs))


def on_mesh(case, mesh, inputs):
    """The loss and its gradients, computed from arrays that lie on the mesh as in training."""
    put = {}
    for name, x in inputs.items():
        spec = PartitionSpec(*(None,) * (name in case.views), BATCH_AXES)
        whole = PartitionSpec()
        put[name] = jax.device_put(x, NamedSharding(mesh, spec if x.ndim else whole))
    learnt = {name: put.pop(name) for name in case.learnt(case.inputs())}

    def step(learnt, rest):
        return jax.value_and_grad(lambda learnt: case.loss({**learnt, **rest}))(learnt)

    with jax.set_mesh(mesh):
        lowered = jax.jit(step).lower(learnt, put)
        program = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
        value, gradients = program(learnt, put)
    return value, gradients


def assert_close(got, wanted, tolerance):
    """The largest difference is measured against the largest number of the array."""
    value, gradients = got
    np.testing.assert_allclose(value, wanted[0], rtol=tolerance)
    assert gradients.keys() == wanted[1].keys()
    for name, gradient in gradients.items():
        scale = np.abs(wanted[1][name]).max()
        error = np.abs(np.asarray(gradient, np.float64) - wanted[1][name]).max()
        assert error <= tolerance * scale, f"{name}: {error / scale:.2e} of the largest"


def cast(inputs, dtype, names=None):
    floats = [k for k, v in inputs.items() if v.dtype.kind == "f"]
    return {
        k: (jnp.asarray(v, dtype if names is None or k in names else jnp.float32))
        if k in floats
        else v
        for k, v in inputs.items()
    }


@pytest.mark.parametrize("shape", MESHES, ids=lambda s: "x".join(f"{k}{v}" for k, v in s.items()))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient(case, shape):
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    got = on_mesh(case, mesh, cast(case.inputs(), jnp.float32))
    assert_close(got, wanted(case), case.tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if case.bfloat16], ids=str)
def test_bfloat16_inputs(case):
    mesh = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
    inputs = cast(case.inputs(), jnp.bfloat16, case.bfloat16)
    value, gradients = on_mesh(case, mesh, inputs)
    assert value.dtype == jnp.float32
    rounded = {k: np.asarray(v, np.float64) if k in gradients else v for k, v in inputs.items()}
    rounded = {k: np.asarray(v) for k, v in rounded.items()}
    exact = value_and_gradients(case.reference, rounded, case.learnt(case.inputs()))
    assert_close((value, gradients), exact, case.tolerance_bfloat16)
