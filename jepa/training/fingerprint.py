"""What decides the output of a frozen tower, as digests: its program and its weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def program(function: Callable[..., Any], *arguments: Any) -> str:
    """Returns a function as JAX traces it: what it computes and in which types, e.g. bfloat16.

    Args:
      function: jittable.
      arguments: trees of arrays or ShapeDtypeStruct; only shapes and types are read.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    # Functions that are parameters of an operation are printed with their addresses.
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(*shapes)))


def add_arrays(digest: Any, tree: Any) -> None:
    """Adds every bit of every array of a tree, and the arrays' paths, to a `hashlib` digest.

    All processes must call it alike, since arrays may lie on several of them.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        whole = getattr(leaf, "is_fully_addressable", True)
        host = np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
        digest.update(f"{jax.tree_util.keystr(path)} {host.dtype} {host.shape}".encode())
        digest.update(np.ascontiguousarray(host).reshape(-1).view(np.uint8).data)
