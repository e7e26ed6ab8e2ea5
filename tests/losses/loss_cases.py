"""Every loss once: what it is called with, and what it should be, in plain NumPy.

A reference is analytic (no absolute values, no conjugates; comparisons and sorting by the real
part), so that the complex step gives its gradient to float64 rounding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jepa.parallel.mesh import BATCH_AXES

ROWS = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """One loss with one choice of options.

    Attributes:
      name: for the test's report.
      loss: the library's loss as a function of a dict of arrays; returns a scalar.
      reference: the same in NumPy, of float64 or complex arrays.
      inputs: makes the dict, floats as float64. Arrays have `ROWS` rows in their first dimension
        (those named in `views` in their second); scalars are whole on every device.
      views: names of inputs of shape `[V, ROWS, ...]`.
      fixed: names of float inputs that get no gradient.
      bfloat16: names of inputs that the bfloat16 test rounds; the others stay float32.
      tolerance: relative, for float32 inputs.
      tolerance_bfloat16: relative, for bfloat16 inputs.
    """

    name: str
    loss: Callable[[dict[str, Any]], Any]
    reference: Callable[[dict[str, Any]], Any]
    inputs: Callable[[], dict[str, np.ndarray]]
    views: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    bfloat16: tuple[str, ...] = ()
    tolerance: float = 1e-5
    tolerance_bfloat16: float = 1e-2

    def __str__(self):
        return self.name

    def learnt(self, inputs):
        """Names of the inputs with a gradient."""
        return [k for k, v in inputs.items() if v.dtype.kind == "f" and k not in self.fixed]


def value_and_gradients(reference, inputs, learnt):
    """Float64 value, and gradient by the complex step, one coordinate after another."""
    step = 1e-40
    gradients = {}
    for name in learnt:
        gradient = np.zeros(inputs[name].shape)
        for index in np.ndindex(gradient.shape):
            moved = np.array(inputs[name], np.complex128)
            moved[index] += 1j * step
            gradient[index] = np.imag(reference({**inputs, name: moved})) / step
        gradients[name] = gradient
    return float(np.real(reference(inputs))), gradients


def embeddings(seed=0, width=6):
    """Two related sets of `[ROWS, width]` embeddings."""
    rng = np.random.default_rng(seed)
    p = rng.standard_normal((ROWS, width))
    return p, p + rng.standard_normal((ROWS, width))


def as_float32(inputs):
    """The inputs as a run in float32 has them."""
    return {k: v.astype("float32") if v.dtype.kind == "f" else v for k, v in inputs.items()}


def on_mesh(case, mesh, inputs):
    """The loss and its gradients, computed from arrays that lie on the mesh as in training."""
    put, shardings = {}, {}
    for name, x in inputs.items():
        cut = PartitionSpec(*(None,) * (name in case.views), BATCH_AXES)
        shardings[name] = NamedSharding(mesh, cut if x.ndim else PartitionSpec())
        put[name] = jax.make_array_from_callback(x.shape, shardings[name], x.__getitem__)
    learnt = {name: put.pop(name) for name in case.learnt(case.inputs())}
    outputs = NamedSharding(mesh, PartitionSpec()), {name: shardings[name] for name in learnt}

    def step(learnt, rest):
        return jax.value_and_grad(lambda learnt: case.loss({**learnt, **rest}))(learnt)

    with jax.set_mesh(mesh):
        lowered = jax.jit(step, out_shardings=outputs).lower(learnt, put)
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


def all_cases():
    """The cases of all losses, by name."""
    import cases_baselines
    import cases_contrastive
    import cases_normality
    import cases_sigreg

    modules = (cases_contrastive, cases_sigreg, cases_normality, cases_baselines)
    cases = [case for module in modules for case in module.CASES]
    assert len({case.name for case in cases}) == len(cases)
    return cases
