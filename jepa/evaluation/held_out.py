"""A method's own loss on a split that it does not train on: model selection without labels.

For methods whose loss needs no texts. What it returns is what training logs, so that
`train.keep_best_metric="held_out/selection_score"` with `train.keep_best_mode="min"` keeps the
checkpoint that LeJEPA's own criterion prefers. The loss of a method with a moving average is no
such criterion; see docs/collapse.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jepa.data import prefetch
from jepa.data.config import DataConfig
from jepa.data.evalset import EvalSet
from jepa.errors import UserError, check_known
from jepa.masks import config as masks_config
from jepa.methods.base import Method, Metrics, Params
from jepa.parallel import mesh as meshes

# Batches in flight: the host decodes the next ones while the device computes, and no more than this
# many wait in device memory.
_IN_FLIGHT = 4
_STREAMS = ("video", "label", "masks")


def default_held_out(**values: Any) -> ConfigDict:
    """The section `evaluation.held_out` with its defaults.

    Keys:
      split: of the first dataset in `data`; not one that results are reported on.
      batches: how many of its batches are read, from the beginning.
    """
    section = ConfigDict({"split": "validation", "batches": 8})
    section.update(values)
    return section


def check(config: ConfigDict) -> None:
    """Checks the section `evaluation.held_out`.

    Raises:
      UserError: a key that does not exist, or a value out of range.
    """
    check_known("evaluation.held_out", config, default_held_out())
    split = config.get("split", "validation")
    if not isinstance(split, str) or not split:
        raise UserError(f"config.evaluation.held_out.split is {split!r}; give the name of a split")
    batches = config.get("batches", 1)
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise UserError(
            f"config.evaluation.held_out.batches is {batches!r}; give a number of at least 1"
        )


class HeldOut:
    """Means over a split of the loss and its metrics.

    The program is compiled once. Random draws (masks, views, SIGReg's slices) depend on the seed
    and the place in the split alone, so that two checkpoints are measured by the same ones. Batch
    norm sees the batch, as in training, and its averages stay as they are. Of a batch of clips and
    images (`data.images`) there are the clips only.

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
      step: at which the loss is taken, where it changes over a run; the same for all checkpoints.

    Raises:
      UserError: the split has fewer examples than a batch, the mesh does not divide a batch, or
        the method reads texts.
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
        step: int = 0,
    ):
        config = DataConfig.parse(data_config)
        if set(config.streams) - set(_STREAMS):
            raise UserError(
                f"data.streams is {config.streams!r}, and the held-out loss has no texts; set "
                "config.evaluation to jepa.evaluation.suite.default_evaluation() for a method that "
                "reads them"
            )
        self._masks = None
        if "masks" in config.streams:
            self._masks = masks_config.from_config(config.masks, config.grid, "data.masks")
        self._clips = EvalSet(config, split, limit)
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
            params: Params, target_params: Params | None, state: Params, batch: Any, index: Any
        ) -> Metrics:
            rng = jax.random.fold_in(jax.random.key(seed), index)
            outputs, _ = method.represent(params, target_params, state, batch, rng)
            loss, metrics = method.objective(outputs, jnp.int32(step))
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
        flying: deque[Metrics] = deque()
        found: list[Metrics] = []
        part = meshes.batch_part(self._mesh)
        clips = self._clips.batches(self._batch_size, part=part)
        with jax.set_mesh(self._mesh):
            for index, (valid, video) in enumerate(clips):
                if valid < self._batch_size:
                    break
                batch = self._batch(index, video)
                flying.append(self._measure(params, target_params, state, batch, np.int32(index)))
                if len(flying) > _IN_FLIGHT:
                    found.append(jax.device_get(flying.popleft()))
            found.extend(jax.device_get(list(flying)))
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    def _batch(self, index: int, video: Any) -> Any:
        """A batch on the devices, of this process's part of it.

        The masks of a record are the same every time.
        """
        batch = {"video": video}
        if self._masks is not None:
            rows = meshes.batch_part(self._mesh).rows(self._batch_size)
            records = index * self._batch_size + rows
            batch["masks"] = self._masks.sample(self._seed, records)
        return prefetch.put(batch, meshes.batch_sharding(self._mesh))
