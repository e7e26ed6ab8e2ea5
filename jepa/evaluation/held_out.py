"""A method's own loss on a split that it does not train on: model selection without labels.

For methods whose loss needs nothing but the video stream (LeJEPA and its baselines). What it
returns is what training logs, so that `train.keep_best_metric="held_out/selection_score"` with
`train.keep_best_mode="min"` keeps the checkpoint that LeJEPA's own criterion prefers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa.data.config import DataConfig
from jepa.data.evalset import EvalSet
from jepa.errors import UserError
from jepa.methods.base import Method, Metrics, Params
from jepa.parallel import mesh as meshes


class HeldOut:
    """Means over a split of the loss and its metrics.

    The program is compiled once. Random draws (views, SIGReg's slices) depend on the seed and the
    place of a batch alone, so that two checkpoints are measured by the same ones. Batch norm sees
    the batch, as in training, and its averages stay as they are.

    Only whole batches count, since losses over a batch depend on its size: take the one of
    training. Every process of a multi-host run must make the same calls.

    Args:
      method: the method.
      data_config: the `data` section.
      split: of the first dataset in it.
      batch_size: examples a batch, a multiple of the batch parts of the mesh.
      mesh: where the parameters lie.
      seed: of the draws.
      limit: read the first records only.

    Raises:
      UserError: the split has fewer examples than a batch, or the mesh does not divide a batch.
    """

    def __init__(
        self,
        method: Method,
        data_config: DataConfig | Mapping[str, Any],
        *,
        split: str,
        batch_size: int,
        mesh: jax.sharding.Mesh,
        seed: int = 0,
        limit: int | None = None,
    ):
        self._clips = EvalSet(data_config, split, limit)
        if len(self._clips) < batch_size:
            raise UserError(
                f"the split {split!r} has {len(self._clips)} examples to measure the loss on, and "
                f"a batch is {batch_size}; take a smaller batch or a larger split"
            )
        shards = meshes.batch_shards(mesh)
        if batch_size % shards:
            raise UserError(
                f"the loss is to be measured on batches of {batch_size}, which the {shards} batch "
                f"parts of the mesh do not divide; make it a multiple of {shards}"
            )
        self._batch_size, self._mesh, self._seed = batch_size, mesh, seed

        def measure(
            params: Params, target_params: Params | None, state: Params, batch: Any, rng: jax.Array
        ) -> Metrics:
            outputs, _ = method.represent(params, target_params, state, batch, rng)
            loss, metrics = method.objective(outputs, jnp.int32(0))
            return {**metrics, "loss": loss}

        self._measure = jax.jit(measure, out_shardings=meshes.replicated(mesh))

    def __call__(
        self, params: Params, target_params: Params | None, state: Params
    ) -> dict[str, float]:
        """Measures; the arguments are fields of a train state.

        Args:
          params: the parameters.
          target_params: their moving average, for methods with a target encoder.
          state: the method's mutable state.
        """
        sharding = meshes.batch_sharding(self._mesh)

        def put(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        found = []
        with jax.set_mesh(self._mesh):
            for index, (valid, video) in enumerate(self._clips.batches(self._batch_size)):
                if valid < self._batch_size:
                    break
                rng = jax.random.fold_in(jax.random.key(self._seed), index)
                batch = {"video": jax.tree.map(put, video)}
                found.append(self._measure(params, target_params, state, batch, rng))
        host = jax.device_get(found)
        return {name: float(np.mean([one[name] for one in host])) for name in host[0]}
