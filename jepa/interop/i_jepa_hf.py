"""I-JEPA as Hugging Face publishes it: the encoder.

Its positions count as parameters there; they must be the fixed table that is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop import tables
from jepa.interop.fields import Config
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Plan

TYPE = "ijepa"
POSITIONS = "sincos_2d_columns"
# The type's defaults, which a config.json may leave out.
_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}


def plan(content: Mapping[str, Any]) -> Plan:
    """Returns the plan of a `config.json`.

    Raises:
      UserError: our encoder cannot be that.
    """
    config = Config(content, TYPE, _DEFAULTS)
    config.must("num_channels", 3)
    config.must("qkv_bias", True)
    config.must("layer_norm_eps", 1e-6)
    width, heads = config.number("hidden_size"), config.number("num_attention_heads")
    depth, hidden = config.number("num_hidden_layers"), config.number("intermediate_size")
    patch, image = config.number("patch_size"), config.number("image_size")
    if width % heads:
        raise UserError(
            f"config.json: num_attention_heads is {heads}, which does not divide "
            f"hidden_size={width}"
        )
    grid = (1, image // patch, image // patch)
    fields = {
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": hidden / width,
        "patch": patch,
        "tubelet": 1,
        "rope": "none",
        "positions": POSITIONS,
        "table_grid": grid,
        "pretrain_grid": None,
        "gelu": config.gelu("hidden_act"),
    }

    def layer(i: int) -> dict[str, Leaf]:
        name = f"encoder.layer.{i}"
        kinds = ("attention.query", "attention.key", "attention.value", "output.dense")
        names = [f"{name}.attention.{kind}" for kind in kinds]
        return {
            **parts.under("norm1", parts.norm(f"{name}.layernorm_before", width)),
            **parts.under("attention", parts.attention(names, width, heads)),
            **parts.under("norm2", parts.norm(f"{name}.layernorm_after", width)),
            **parts.under("mlp/in", parts.linear(f"{name}.intermediate.dense", width, hidden)),
            **parts.under("mlp/out", parts.linear(f"{name}.output.dense", hidden, width)),
        }

    embed = parts.patches("embeddings.patch_embeddings.projection", width, patch, None)
    leaves = {
        **parts.under("patches", embed),
        **parts.stacked("blocks", depth, layer),
        **parts.under("norm", parts.norm("layernorm", width)),
    }
    derived = {"embeddings.position_embeddings": tables.maker(grid, width, POSITIONS)}
    layout = Layout(parts.under("encoder", leaves), derived=derived)
    return Plan(layout, {"encoder": fields}, content)
