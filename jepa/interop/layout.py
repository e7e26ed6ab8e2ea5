"""Which of their tensors make up which of our parameters: one table for loading and for saving.

A parameter of ours (a leaf of the tree, named by its "/"-joined path) is put together of pieces,
each a whole tensor of theirs: reshaped to `view`, its dimensions put in `order`, laid at a place.
Every step has an inverse, so what is loaded by a table is saved by it again bit by bit.

Tables are made of the functions below: `linear`, `norm`, ... give the leaves of one layer, `under`
puts them beneath a name, `stacked` joins equal layers along a new first axis.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from jepa.errors import UserError
from jepa.interop.tensors import Tensors

_NAMED = 5  # tensors that an error names, of each kind
_PARTS = 16  # in which large tensors are compared
_NEAR = 1e-3  # between a fixed table here and one made elsewhere


@dataclasses.dataclass(frozen=True)
class Piece:
    """One of their tensors as a block of one of our leaves.

    Attributes:
      theirs: its name.
      shape: its shape.
      view: what it is reshaped to, with as many dimensions as our leaf.
      order: dimension j of the block is dimension `order[j]` of the view.
      start: where in our leaf the block begins.
    """

    theirs: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    order: tuple[int, ...]
    start: tuple[int, ...]

    @property
    def block(self) -> tuple[int, ...]:
        """The block's shape."""
        return tuple(self.view[i] for i in self.order)

    @property
    def place(self) -> tuple[slice, ...]:
        """The block's place in our leaf."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.block, strict=True))

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Turns their tensor into the block."""
        return tensor.reshape(self.view).transpose(self.order)

    def to_theirs(self, block: np.ndarray) -> np.ndarray:
        """Turns the block into their tensor."""
        return block.transpose(np.argsort(self.order)).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our parameters: its shape, and the pieces that fill it."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


Leaves = Mapping[str, Leaf]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The table of a model.

    Attributes:
      leaves: our parameters by path.
      ignored: patterns (matched in full) of names of theirs that may be there and are not used.
      tied: names of theirs that may be there, and the names that they must equal bit by bit.
      derived: tensors of theirs that hold no parameters (tables of positions), by name: what they
        must be. They may be absent; when saving they are written.
    """

    leaves: Leaves
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    derived: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [piece.theirs for leaf in self.leaves.values() for piece in leaf.pieces]
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the tensor {twice} stands in the table twice")
        for path, leaf in self.leaves.items():
            if sum(math.prod(piece.shape) for piece in leaf.pieces) != math.prod(leaf.shape):
                raise ValueError(f"the pieces of {path} do not fill it")

    def theirs(self) -> dict[str, tuple[str, Piece]]:
        """Returns the path of ours and the piece, by the name of theirs."""
        return {
            piece.theirs: (path, piece)
            for path, leaf in self.leaves.items()
            for piece in leaf.pieces
        }

    def check(self, tensors: Tensors) -> None:
        """Accounts for every tensor of a checkpoint.

        Raises:
          UserError: tensors are missing, unknown, of another shape, or unlike what they are tied to
            or derived from; with their names.
        """
        wanted = {name: piece.shape for name, (_, piece) in self.theirs().items()}
        known = [re.compile(pattern) for pattern in self.ignored]
        unknown = [
            name
            for name in tensors
            if name not in wanted
            and name not in self.tied
            and name not in self.derived
            and not any(pattern.fullmatch(name) for pattern in known)
        ]
        complaints = [
            _complaint([name for name in wanted if name not in tensors], "missing"),
            _complaint(unknown, "unknown"),
            _complaint(
                [
                    f"{name} {tensors.shape(name)} instead of {shape}"
                    for name, shape in wanted.items()
                    if name in tensors and tensors.shape(name) != shape
                ],
                "of another shape",
            ),
        ]
        if any(complaints):
            raise UserError(
                f"{tensors.path} does not hold this model: {'; '.join(filter(None, complaints))}"
            )
        self._check_tied(tensors)
        self._check_derived(tensors)

    def _check_tied(self, tensors: Tensors) -> None:
        for name, other in self.tied.items():
            if name not in tensors:
                continue
            if tensors.shape(name) != tensors.shape(other) or not _same(tensors, name, other):
                raise UserError(
                    f"{tensors.path}: {name} differs from {other}, to which this model ties it"
                )

    def _check_derived(self, tensors: Tensors) -> None:
        for name, make in self.derived.items():
            if name not in tensors:
                continue
            found, expected = tensors.read(name), make()
            if found.shape != expected.shape or not _alike(found, expected):
                raise UserError(
                    f"{tensors.path}: {name} of shape {found.shape} is not the fixed table of "
                    f"shape {expected.shape} that this model computes"
                )


def _alike(found: np.ndarray, expected: np.ndarray) -> bool:
    """Returns whether a tensor is a table, as far as the tensor's type can tell."""
    dtype, atol = found.dtype, _NEAR
    if dtype.kind not in "iub":
        # Rounded to few digits, a table made elsewhere may differ in the last of them.
        expected, atol = expected.astype(dtype), max(_NEAR, float(ml_dtypes.finfo(dtype).eps))
    return np.allclose(found.astype(np.float32), expected.astype(np.float32), atol=atol)


def _same(tensors: Tensors, name: str, other: str) -> bool:
    """Returns whether two tensors of one shape are equal, a few rows at a time."""
    rows = max((*tensors.shape(name), 1)[0], 1)
    step = -(-rows // _PARTS)
    return all(
        tensors.read(name, slice(i, i + step)).tobytes()
        == tensors.read(other, slice(i, i + step)).tobytes()
        for i in range(0, rows, step)
    )


def _complaint(names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    noun = "tensor is" if len(names) == 1 else "tensors are"
    return f"{len(names)} {noun} {what} ({', '.join(names[:_NAMED])}{more})"


def leaf(
    theirs: str,
    shape: Sequence[int],
    view: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
) -> Leaf:
    """Returns a parameter that is one tensor of theirs, reshaped and turned."""
    view = tuple(shape if view is None else view)
    order = tuple(range(len(view)) if order is None else order)
    piece = Piece(theirs, tuple(shape), view, order, (0,) * len(view))
    return Leaf(piece.block, (piece,))


def joined(leaves: Sequence[Leaf], axis: int) -> Leaf:
    """Returns parameters side by side along one of their axes."""
    start, pieces = 0, []
    for part in leaves:
        for piece in part.pieces:
            place = list(piece.start)
            place[axis] += start
            pieces.append(dataclasses.replace(piece, start=tuple(place)))
        start += part.shape[axis]
    shape = list(leaves[0].shape)
    shape[axis] = start
    return Leaf(tuple(shape), tuple(pieces))


def stacked(name: str, depth: int, layer: Callable[[int], Leaves]) -> dict[str, Leaf]:
    """Returns the leaves of `depth` equal layers, stacked along a new first axis, beneath `name`.

    Args:
      name: "blocks", say.
      depth: how many.
      layer: gives the leaves of layer i, which name tensors of that layer.
    """
    layers = [layer(i) for i in range(depth)]
    return {
        f"{name}/{path}": joined([_with_axis(each[path]) for each in layers], 0)
        for path in layers[0]
    }


def _with_axis(part: Leaf) -> Leaf:
    """Adds a first axis of length one."""
    pieces = tuple(
        dataclasses.replace(
            piece,
            view=(1, *piece.view),
            order=(0, *(i + 1 for i in piece.order)),
            start=(0, *piece.start),
        )
        for piece in part.pieces
    )
    return Leaf((1, *part.shape), pieces)


def under(name: str, leaves: Leaves) -> dict[str, Leaf]:
    """Returns leaves beneath a name."""
    return {f"{name}/{path}": part for path, part in leaves.items()}


def linear(theirs: str, inputs: int, outputs: int, *, bias: bool = True) -> dict[str, Leaf]:
    """`nn.linear.Linear` of torch's `Linear`, which keeps its matrix as `[outputs, inputs]`."""
    leaves = {"kernel": leaf(f"{theirs}.weight", (outputs, inputs), order=(1, 0))}
    return leaves | ({"bias": leaf(f"{theirs}.bias", (outputs,))} if bias else {})


def norm(theirs: str, width: int, *, bias: bool = True) -> dict[str, Leaf]:
    """`nn.norms.LayerNorm` (or `RMSNorm` without bias)."""
    leaves = {"scale": leaf(f"{theirs}.weight", (width,))}
    return leaves | ({"bias": leaf(f"{theirs}.bias", (width,))} if bias else {})


def embedding(theirs: str, entries: int, width: int) -> dict[str, Leaf]:
    """`nn.linear.Embedding` of torch's `Embedding`."""
    return {"embedding": leaf(f"{theirs}.weight", (entries, width))}


def patches(
    theirs: str, width: int, patch: int, tubelet: int | None, channels: int = 3
) -> dict[str, Leaf]:
    """`models.vit.PatchEmbedding` of torch's `Conv3d`, or of a `Conv2d` where tubelet is None."""
    kernel = (width, channels, *([] if tubelet is None else [tubelet]), patch, patch)
    view = (width, channels, 1 if tubelet is None else tubelet, patch, patch)
    return {
        "kernel": leaf(f"{theirs}.weight", kernel, view, (2, 3, 4, 1, 0)),
        "bias": leaf(f"{theirs}.bias", (width,)),
    }


def attention(
    names: Sequence[str],
    width: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    bias: bool = True,
) -> dict[str, Leaf]:
    """`nn.attention.Attention` of four torch `Linear`s: queries, keys, values, output."""
    queries, keys, values, out = names
    groups, size = kv_heads or heads, head_dim or width // heads
    ratio = heads // groups
    kernels, biases = [], []
    for name, each in zip((queries, keys, values), (ratio, 1, 1), strict=True):
        rows, view = groups * each * size, (groups, each, size)
        kernels.append(leaf(f"{name}.weight", (rows, width), (*view, width), (3, 0, 1, 2)))
        biases.append(leaf(f"{name}.bias", (rows,), view))
    leaves = {"qkv/kernel": joined(kernels, 2)} | _out(out, width, heads, size, bias)
    return leaves | ({"qkv/bias": joined(biases, 1)} if bias else {})


def fused_attention(qkv: str, out: str, width: int, heads: int) -> dict[str, Leaf]:
    """`nn.attention.Attention` of one torch `Linear` `[3 * width, width]` and the output's."""
    size = width // heads
    view = (3, heads, size)
    return {
        "qkv/kernel": leaf(f"{qkv}.weight", (3 * width, width), (*view, width), (3, 1, 0, 2)),
        "qkv/bias": leaf(f"{qkv}.bias", (3 * width,), view, (1, 0, 2)),
        **_out(out, width, heads, size, True),
    }


def _out(name: str, width: int, heads: int, size: int, bias: bool) -> dict[str, Leaf]:
    view, order = (width, heads, size), (1, 2, 0)
    leaves = {"out/kernel": leaf(f"{name}.weight", (width, heads * size), view, order)}
    return leaves | ({"out/bias": leaf(f"{name}.bias", (width,))} if bias else {})
