"""What Llama, Qwen 3 and Gemma 3 share in their published form: names of a layer, rotary keys.

D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop.fields import Config
from jepa.interop.layout import Leaf

# Our names of a layer's norms, and theirs.
PRE_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
SANDWICH_NORMS = {
    "norm1": "input_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "norm3": "post_attention_layernorm",
    "norm4": "post_feedforward_layernorm",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder's layers.

    Attributes:
      width: D.
      depth: number of layers.
      heads: number of query heads.
      kv_heads: number of key and value heads.
      head_dim: channels of a head.
      mlp_width: hidden width of the gated MLP.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int


def sizes(config: Config) -> Sizes:
    """Returns the sizes that a `config.json` gives.

    Raises:
      UserError: one is no positive whole number, or they do not fit each other.
    """
    width, heads = config.number("hidden_size"), config.number("num_attention_heads")
    kv_heads = heads
    if config["num_key_value_heads"] is not None:
        kv_heads = config.number("num_key_value_heads")
    if heads % kv_heads:
        raise UserError(
            f"config.json: num_key_value_heads is {kv_heads}, which does not divide "
            f"num_attention_heads={heads}"
        )
    if config["head_dim"] is None and width % heads:
        raise UserError(
            f"config.json: num_attention_heads is {heads}, which does not divide "
            f"hidden_size={width}"
        )
    return Sizes(
        width=width,
        depth=config.number("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads if config["head_dim"] is None else config.number("head_dim"),
        mlp_width=config.number("intermediate_size"),
    )


def blocks(
    prefix: str,
    of: Sizes,
    *,
    layers: tuple[int, int],
    norms: Mapping[str, str],
    head_norms: bool,
) -> dict[str, Leaf]:
    """Returns the leaves of a span of layers, stacked.

    Args:
      prefix: of their names, "model." or "".
      of: the sizes.
      layers: first layer and the one behind the last.
      norms: our names of a layer's norms, and theirs.
      head_norms: whether queries and keys are normalised.
    """

    def layer(i: int) -> dict[str, Leaf]:
        name = f"{prefix}layers.{layers[0] + i}"
        of_attention = tuple(f"{name}.self_attn.{part}_proj" for part in "qkvo")
        assert len(of_attention) == 4
        attention = parts.attention(
            of_attention,
            of.width,
            of.heads,
            kv_heads=of.kv_heads,
            head_dim=of.head_dim,
            bias=False,
        )
        for part in "qk" if head_norms else "":
            scale = parts.norm(f"{name}.self_attn.{part}_norm", of.head_dim, bias=False)
            attention |= parts.under(f"{part}_norm", scale)
        leaves = parts.under("attention", attention)
        for ours, theirs in norms.items():
            leaves |= parts.under(ours, parts.norm(f"{name}.{theirs}", of.width, bias=False))
        for ours, theirs, shape in (
            ("gate", "gate_proj", (of.width, of.mlp_width)),
            ("in", "up_proj", (of.width, of.mlp_width)),
            ("out", "down_proj", (of.mlp_width, of.width)),
        ):
            matrix = parts.linear(f"{name}.mlp.{theirs}", *shape, bias=False)
            leaves |= parts.under(f"mlp/{ours}", matrix)
        return leaves

    return parts.stacked("blocks", layers[1] - layers[0], layer)


def rotary(content: Mapping[str, Any], default_theta: float) -> tuple[float, dict[str, Any] | None]:
    """Returns the base of the frequencies and Llama 3's rescaling (fields of `LongContext`).

    Args:
      content: a `config.json` with `rope_parameters` as new ones have it, or `rope_theta` and
        `rope_scaling` as older ones.
      default_theta: the model type's, where the file gives none.

    Raises:
      UserError: another kind of rescaling, or one that lacks a number.
    """
    given = dict(content.get("rope_parameters") or content.get("rope_scaling") or {})
    theta = given.get("rope_theta", content.get("rope_theta", default_theta))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UserError(
            f"config.json: rotary positions are of type {kind!r}; 'default' and 'llama3' are "
            "computed here"
        )
    try:
        scaling = {
            "factor": float(given["factor"]),
            "low": float(given["low_freq_factor"]),
            "high": float(given["high_freq_factor"]),
            "original_length": int(given["original_max_position_embeddings"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"config.json: the rotary positions of type 'llama3' lack a number ({error})"
        ) from error
    return float(theta), scaling


def prefix(config: Mapping[str, Any], language_model: str, bare: str) -> str:
    """Returns what their names begin with: "model." in a language model, "" in the bare model.

    Args:
      config: a `config.json`.
      language_model: the architecture's name with logits.
      bare: and without them.

    Raises:
      UserError: it is of neither architecture.
    """
    found = (config.get("architectures") or [language_model])[0]
    if found not in (language_model, bare):
        raise UserError(
            f"config.json: the architecture is {found!r}; {language_model} and {bare} convert"
        )
    return "model." if found == language_model else ""
