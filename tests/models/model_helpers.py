"""Drawing and running models cheaply: these tests would otherwise spend minutes compiling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Programs that run for a millisecond need no optimising compiler.
QUICK = {"xla_backend_optimization_level": 0}


def draw(module, *inputs, scale=0.2, seed=0):
    """Parameters of the module's shapes, large enough that attention and positions matter."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    def one(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


@functools.lru_cache
def _compiled(module):
    return quick(module.apply)


def run(module, variables, *args, **kwargs):
    """`module.apply`, compiled once for each module and shape."""
    return _compiled(module)(variables, *args, **kwargs)
