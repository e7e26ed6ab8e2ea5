"""The train state: what a step reads and writes, what a checkpoint holds, where it lives.

Every array is created on the devices that hold it: shapes come from `jax.eval_shape`, shardings
from the method's partition table, values from one jitted init with those shardings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from jepa.errors import UserError
from jepa.interop.loading import Pending
from jepa.methods.base import Method
from jepa.parallel import partition
from jepa.training.optimizer import Optimizer, flatten, split, unflatten


@struct.dataclass
class TrainState:
    """Everything a run carries from step to step.

    Attributes:
      step: int32 `[]`, number of steps done, skipped ones included.
      params: nested dict of parameters, frozen ones included.
      target_params: moving average of `params`, or None when the method needs none.
      opt_state: optax state of the trainable parameters.
      method_state: what the method's `represent` carries (batch-norm statistics and the like).
      skipped: int32 `[]`, steps skipped so far because loss or gradient was not finite.
      skipped_in_a_row: int32 `[]`, how many of them were the last ones.
    """

    step: Any
    params: Mapping[str, Any]
    target_params: Mapping[str, Any] | None
    opt_state: Any
    method_state: Any
    skipped: Any
    skipped_in_a_row: Any

    @property
    def averaged(self) -> Mapping[str, Any]:
        """The parameters to evaluate or to use: the moving average where there is one."""
        return self.params if self.target_params is None else self.target_params


def _cast(tree: Any, dtype: jnp.dtype) -> Any:
    """Returns `tree` with floating leaves in `dtype`."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _zeros(spec: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), spec)


def parameter_dtype(dtype: str) -> jnp.dtype:
    """Returns the dtype of master weights: float64 in a float64 run, else float32."""
    return jnp.dtype(jnp.float64 if dtype == "float64" else jnp.float32)


class Initializer:
    """Makes the train state of a method on a mesh.

    Attributes:
      optimizer: whose memory is part of it.
      shapes: the state as a tree of ShapeDtypeStruct with shardings; what a checkpoint is
        restored into.
      shardings: the same tree of NamedSharding.
    """

    def __init__(
        self,
        method: Method,
        optimizer: Optimizer,
        mesh: Mesh,
        batch_spec: Any,
        *,
        seed: int,
        dtype: str = "float32",
    ):
        """Finds shapes and shardings; allocates nothing.

        Args:
          method: whose parameters to make.
          optimizer: whose memory to make.
          mesh: where the state lives.
          batch_spec: tree of ShapeDtypeStruct of the *global* batch.
          seed: of the run.
          dtype: compute dtype of the run; `float64` makes float64 parameters too.

        Raises:
          UserError: for a parameter without partition rule, or a pattern without parameter.
        """
        self._method, self.optimizer, self._mesh = method, optimizer, mesh
        self._batch_spec, self._seed = batch_spec, seed
        self._dtype = parameter_dtype(dtype)
        self._keep_target = method.requirements.ema
        params, method_state = jax.eval_shape(self._init)
        optimizer.check(params)
        state = jax.eval_shape(self._complete, params, method_state)
        self.shardings = self._shardings(state)
        self.shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, self.shardings
        )

    def _init(self) -> tuple[Any, Any]:
        rng = jax.random.fold_in(jax.random.key(self._seed), np.uint32(2**32 - 1))
        params, method_state = self._method.init(rng, _zeros(self._batch_spec))
        return _cast(params, self._dtype), _cast(method_state, self._dtype)

    def _complete(self, params: Any, method_state: Any) -> TrainState:
        trainable, _ = split(params, self.optimizer.frozen)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            target_params=jax.tree.map(jnp.copy, params) if self._keep_target else None,
            opt_state=self.optimizer.transform.init(trainable),
            method_state=method_state,
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_a_row=jnp.zeros((), jnp.int32),
        )

    def _shardings(self, state: TrainState) -> TrainState:
        replicated = NamedSharding(self._mesh, PartitionSpec())
        of_params = partition.shardings(self._mesh, self._method.partition_table, state.params)
        trainable, _ = split(of_params, self.optimizer.frozen)
        return TrainState(
            step=replicated,
            params=of_params,
            target_params=of_params if self._keep_target else None,
            opt_state=_like_parameters(state.opt_state, flatten(trainable), replicated),
            method_state=jax.tree.map(lambda _: replicated, state.method_state),
            skipped=replicated,
            skipped_in_a_row=replicated,
        )

    def create(self) -> TrainState:
        """Returns the state of step 0, with the method's pretrained weights in their places."""
        # No mesh is set here: a method draws parameters for an example or two, which its
        # constraints on activations would try to cut over all devices.
        init = jax.jit(
            self._init, out_shardings=(self.shardings.params, self.shardings.method_state)
        )
        params, method_state = init()
        params = overlay(params, self._method.pretrained())
        complete = jax.jit(self._complete, out_shardings=self.shardings, donate_argnums=(0, 1))
        return complete(params, method_state)


def overlay(params: Mapping[str, Any], pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `params` with published arrays put over the freshly drawn ones.

    Args:
      params: nested dict of jax arrays.
      pretrained: `{path prefix: nested tree of NumPy arrays}`, cast to the parameters' dtype; or of
        `Pending`, each of which is then read straight into its parameter's place.

    Raises:
      UserError: for an array without a parameter, or of another shape.
    """
    flat = flatten(params)
    for prefix, tree in pretrained.items():
        for tail, array in flatten(tree).items():
            path = f"{prefix}/{tail}" if prefix else tail
            if path not in flat:
                raise UserError(
                    f"The pretrained weights hold {path!r}, which the model has not; check that "
                    "the model's sizes are those of the published one."
                )
            old = flat[path]
            if tuple(old.shape) != tuple(array.shape):
                raise UserError(
                    f"The pretrained weights hold {path!r} as {tuple(array.shape)}, the model "
                    f"needs {tuple(old.shape)}; set the model's sizes to the published ones."
                )
            if isinstance(array, Pending):
                flat[path] = array.read(old.sharding, old.dtype)
                continue
            host = np.asarray(array).astype(old.dtype)
            flat[path] = jax.make_array_from_callback(old.shape, old.sharding, host.__getitem__)
    return unflatten(flat)


def _like_parameters(
    opt_state: Any, of_params: Mapping[str, NamedSharding], otherwise: NamedSharding
) -> Any:
    """Gives each leaf that stands for a parameter (a moment, say) the parameter's sharding.

    Optax keeps such leaves in trees with the parameters' own keys, so a leaf's path ends with them;
    transformations that hold only some parameters mask out the rest.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        del leaf
        name = "/".join(str(key.key) for key in path if isinstance(key, DictKey))
        # The keys of optax's own dicts come first, and are no parameter's.
        while name and name not in of_params:
            name = name.partition("/")[2]
        return of_params.get(name, otherwise)

    return jax.tree_util.tree_map_with_path(sharding, opt_state)
