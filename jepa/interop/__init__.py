"""Published weights, in and out.

`open_tensors` opens a checkpoint without reading it, a `Layout` says which of its tensors make up
which of our parameters, `load` reads them into their shardings and `save` writes them back;
`registry` knows the models; `load_weights` reads what a config names, and `locate` says where that
lies.
"""

from jepa.interop.layout import Layout, Leaf
from jepa.interop.loading import load, shapes
from jepa.interop.parameters import load as load_weights
from jepa.interop.paths import locate
from jepa.interop.saving import save
from jepa.interop.tensors import Tensors, open_tensors

__all__ = [
    "Layout",
    "Leaf",
    "Tensors",
    "load",
    "load_weights",
    "locate",
    "open_tensors",
    "save",
    "shapes",
]
