"""Llama 3.x as Hugging Face publishes it: the whole, or a span of its layers.

Parameters of ours: `decoder` (`models.llama.Llama`). A span has the token table, some layers and
the last norm, as VL-JEPA's predictor takes them; what it leaves out is read by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jepa.errors import UserError
from jepa.interop import decoders, sentence
from jepa.interop import layout as parts
from jepa.interop.fields import Config
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Model, Plan
from jepa.models.llama import Llama, LlamaStack
from jepa.nn.rotary import LongContext

PART = "decoder"
# The type's defaults, which a config.json may leave out.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_THETA = 10000.0


def module(fields: Mapping[str, Any], **options: Any) -> Llama:
    """Returns the model of a plan's fields.

    Args:
      fields: those of `decoder`.
      **options: `dtype`, `param_dtype`.
    """
    stack = dict(fields["stack"])
    if stack["scaling"] is not None:
        stack["scaling"] = LongContext(**stack["scaling"])
    made = partial(LlamaStack, **stack)
    return Llama(vocab=fields["vocab"], tied=fields["tied"], stack=made, **options)


def span(content: Mapping[str, Any], layers: tuple[int, ...]) -> Plan:
    """Returns the plan of some layers with the token table and the last norm.

    Args:
      content: a `config.json`.
      layers: first layer and the one behind the last, (8, 16) for the last half of sixteen; all
        when empty.

    Raises:
      UserError: the model has no such layers, or is none that is computed here.
    """
    config, of, prefix = _read(content)
    first, last = check_span(layers, of.depth)
    leaves = _leaves(config, of, prefix, (first, last))
    others = "|".join(str(i) for i in range(of.depth) if not first <= i < last)
    ignored = [r"lm_head\.weight", *([rf"{prefix}layers\.({others})\..*"] if others else [])]
    fields = _fields(config, content, of)
    fields["stack"]["depth"] = last - first
    return Plan(Layout(leaves, ignored=tuple(ignored)), {PART: {**fields, "tied": True}}, content)


def check_span(layers: tuple[int, ...], depth: int) -> tuple[int, int]:
    """Returns the first layer and the one behind the last.

    Raises:
      UserError: a model of this depth has no such layers.
    """
    first, last = layers if len(layers) == 2 else (0, depth if not layers else -1)
    if not 0 <= first < last <= depth:
        raise UserError(
            f"the layers {tuple(layers)} are asked for, but the model has {depth}; give the first "
            f"one and the one behind the last, such as (0, {depth})"
        )
    return first, last


def _read(content: Mapping[str, Any]) -> tuple[Config, decoders.Sizes, str]:
    config = Config(content, "llama", _DEFAULTS)
    config.must("hidden_act", "silu")
    config.must("attention_bias", False)
    config.must("mlp_bias", False)
    prefix = decoders.prefix(content, "LlamaForCausalLM", "LlamaModel")
    return config, decoders.sizes(config), prefix


def _fields(config: Config, content: Mapping[str, Any], of: decoders.Sizes) -> dict[str, Any]:
    theta, scaling = decoders.rotary(content, _THETA)
    stack = {
        "width": of.width,
        "depth": of.depth,
        "heads": of.heads,
        "kv_heads": of.kv_heads,
        "head_dim": of.head_dim,
        "mlp_width": of.mlp_width,
        "causal": True,
        "theta": theta,
        "scaling": scaling,
        "eps": float(config["rms_norm_eps"]),
    }
    vocab = config.number("vocab_size")
    return {"vocab": vocab, "tied": bool(config["tie_word_embeddings"]), "stack": stack}


def _leaves(
    config: Config, of: decoders.Sizes, prefix: str, layers: tuple[int, int]
) -> dict[str, Leaf]:
    table = parts.embedding(f"{prefix}embed_tokens", config.number("vocab_size"), of.width)
    of_llama = {
        **decoders.blocks(prefix, of, layers=layers, norms=decoders.PRE_NORMS, head_norms=False),
        **parts.under("norm", parts.norm(f"{prefix}norm", of.width, bias=False)),
    }
    return parts.under(PART, {**parts.under("table", table), **parts.under("llama", of_llama)})


def _plan(content: Mapping[str, Any]) -> Plan:
    config, of, prefix = _read(content)
    fields = _fields(config, content, of)
    leaves = _leaves(config, of, prefix, (0, of.depth))
    if not prefix:
        # Without logits there is no matrix for them.
        config.must("tie_word_embeddings", True)
        return Plan(Layout(leaves), {PART: fields}, content)
    if fields["tied"]:
        tied = {"lm_head.weight": f"{prefix}embed_tokens.weight"}
        return Plan(Layout(leaves, tied=tied), {PART: fields}, content)
    head = parts.linear("lm_head", of.width, fields["vocab"], bias=False)
    leaves |= parts.under(f"{PART}/head", head)
    return Plan(Layout(leaves), {PART: fields}, content)


MODEL = Model("llama", "Llama 3.x decoders", _plan, beside=sentence.TOKENIZER)
