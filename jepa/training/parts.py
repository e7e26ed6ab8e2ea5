"""What a run is made of besides its config: for each phase a method, a loader and evaluators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from jax.sharding import Mesh

from jepa.methods.base import Method
from jepa.parallel import mesh as meshes
from jepa.training.phases import Phase
from jepa.training.state import TrainState
from jepa.training.step import global_spec

Evaluator = Callable[[TrainState], Mapping[str, float]]


class TrainLoader(Protocol):
    """What training asks of a loader; `jepa.data.loader` makes one.

    Attributes:
      element_spec: tree of ShapeDtypeStruct of a host-local batch.
    """

    element_spec: Any

    def __iter__(self) -> Iterator[Any]:
        """Iterates host-local batches of NumPy arrays, without end."""

    def state(self) -> Mapping[str, Any]:
        """Returns the position behind the last batch, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""

    def close(self) -> None:
        """Ends threads and processes."""


class Outline(Protocol):
    """Makes what the checks of a phase, and the shapes of its states, need."""

    def method(self, phase: Phase) -> Method:
        """Returns what to train."""

    def batch_spec(self, phase: Phase, method: Method) -> Any:
        """Returns the tree of ShapeDtypeStruct of a global batch, from which parameters follow.

        What decides no parameter's shape may differ from the batches that the loader gives.

        Raises:
          UserError: the data is not there, or does not fit the method.
        """


class Parts(Outline, Protocol):
    """Makes what a phase needs; the outlines of all phases are asked for before anything runs."""

    def loader(
        self, phase: Phase, method: Method, params: Mapping[str, Any], stopped: Callable[[], bool]
    ) -> TrainLoader | None:
        """Returns the loader at its beginning, in the order of `phase.data_seed`.

        Args:
          phase: which.
          method: of the phase.
          params: with which the phase goes on, from which features of frozen parts can be computed.
          stopped: whether the run was told to stop meanwhile; None is returned then.
        """

    def evaluators(self, phase: Phase, method: Method) -> Mapping[str, Evaluator]:
        """Returns evaluators by name; their numbers are logged as `name/key`."""


@dataclasses.dataclass(frozen=True)
class Given:
    """The parts of a run of one phase, made beforehand."""

    made: Method
    batches: TrainLoader
    by_name: Mapping[str, Evaluator]
    mesh: Mesh

    def method(self, phase: Phase) -> Method:
        """Returns the method."""
        return self.made

    def batch_spec(self, phase: Phase, method: Method) -> Any:
        """Returns the spec of the loader's batches on all hosts together."""
        return global_spec(self.batches.element_spec, meshes.batch_part(self.mesh).shares)

    def loader(
        self, phase: Phase, method: Method, params: Mapping[str, Any], stopped: Callable[[], bool]
    ) -> TrainLoader:
        """Returns the loader."""
        return self.batches

    def evaluators(self, phase: Phase, method: Method) -> Mapping[str, Evaluator]:
        """Returns the evaluators."""
        return self.by_name
