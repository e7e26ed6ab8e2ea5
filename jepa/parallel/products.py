"""Counts the arithmetic that a traced program really does, rematerialisation included.

It is counted in the program as JAX traces it, before any compiler: loops over layers and
micro-batches as often as they run, what `jax.checkpoint` computes again, what a `shard_map` does on
all devices together, what a Pallas kernel does over its whole grid. Matrix products and
convolutions count two operations for each multiplication and addition; everything else is left out,
as it is of `Method.flops`, beside which this number stands.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.extend


def flops(jaxpr: Any) -> float:
    """Returns the operations of all matrix products of a `jax.make_jaxpr` or `Traced.jaxpr`.

    Of branches that exclude each other the costlier counts. A loop without a fixed number of rounds
    counts one of them.
    """
    return sum(_of(equation) for equation in _inside(jaxpr).eqns)


def _of(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(_shape(equation)) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(_shape(equation)) * math.prod(kernel) / outputs
    if name == "cond":
        return max(flops(branch) for branch in params["branches"])
    return _times(name, params) * sum(map(flops, _programs(params)))


def _shape(equation: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = equation.outvars[0].aval.shape
    return shape


def _times(name: str, params: Any) -> int:
    """How often the programs inside of an operation run."""
    if name == "scan":
        return int(params["length"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":
        # Inside, shapes are those of a device as far as axes are worked by hand.
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _programs(params: Any) -> list[Any]:
    """The programs among an operation's parameters; of a differentiable one the first."""
    found = [value for value in params.values() if isinstance(value, _KINDS)]
    return found[:2] if "cond_jaxpr" in params else found[:1]


_KINDS = (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)


def _inside(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)
