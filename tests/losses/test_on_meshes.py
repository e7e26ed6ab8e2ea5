"""Every loss, value and gradient, on 1, 2, 4 and 8 devices against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import all_cases, as_float32, assert_close, on_mesh, value_and_gradients

from jepa.parallel.mesh import make_mesh

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


def rounded(case):
    """The inputs with those of `case.bfloat16` in bfloat16, and the float64 numbers they are."""
    inputs = as_float32(case.inputs())
    inputs |= {name: jnp.asarray(inputs[name], jnp.bfloat16) for name in case.bfloat16}
    exact = {k: np.asarray(v, "float64" if k in case.bfloat16 else None) for k, v in inputs.items()}
    return inputs, {k: v.astype("float64") if v.dtype.kind == "f" else v for k, v in exact.items()}


@pytest.mark.parametrize("shape", MESHES, ids=lambda s: "x".join(f"{k}{v}" for k, v in s.items()))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient(case, shape):
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    got = on_mesh(case, mesh, as_float32(case.inputs()))
    assert_close(got, wanted(case), case.tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if case.bfloat16], ids=str)
def test_bfloat16_inputs(case):
    mesh = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
    inputs, exact = rounded(case)
    value, gradients = on_mesh(case, mesh, inputs)
    assert value.dtype == jnp.float32
    wanted = value_and_gradients(case.reference, exact, case.learnt(exact))
    assert_close((value, gradients), wanted, case.tolerance_bfloat16)
