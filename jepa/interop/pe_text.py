"""Perception Encoder's text towers as Meta publishes them (`PE-Core-L14-336.pt` and its like).

Such a file is a CLIP: the text tower's tensors, the image tower's under `visual.`, a scale. It says
nothing of its model; heads are 64 wide in all the published ones. There is no such model in
`transformers`; back it is a directory of Meta's own names with a `config.json` of ours.

Parameters of ours: `tower` (`models.text.TextTransformer`). The image tower is left behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop import meta
from jepa.interop.fields import Config
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Model, Plan, Settings
from jepa.interop.sections import section
from jepa.interop.sentence import TOKENIZER
from jepa.interop.tensors import INDEX, SINGLE, Tensors, open_tensors

_TYPE, PART = "pe_text", "tower"
_HEAD = 64
_WRAPPED = "module."
_IGNORED = r"(module\.)?(visual\..*|logit_scale)"


def _open(path: str | Path) -> Tensors:
    """Opens a file, or the one that lies in a directory as Hugging Face has it.

    Raises:
      UserError: nothing usable is there.
    """
    path = Path(path)
    if not path.is_dir() or any((path / name).exists() for name in (SINGLE, INDEX)):
        return open_tensors(path)
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        raise UserError(f"{path} has {len(files)} files *.pt; name the one that is meant")
    return open_tensors(files[0])


def _plan(config: Mapping[str, Any]) -> Plan:
    Config(config, _TYPE, {})
    return _made(config, "", ())


def _infer(tensors: Tensors, settings: Settings) -> Plan:
    prefix = _WRAPPED if f"{_WRAPPED}token_embedding.weight" in tensors else ""
    vocab, width = meta.shape(tensors, f"{prefix}token_embedding.weight", 2)
    hidden = meta.shape(tensors, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
    fields = {
        "vocab": vocab,
        "width": width,
        "depth": meta.depth(tensors, f"{prefix}transformer.resblocks"),
        "heads": width // _HEAD,
        "max_length": meta.shape(tensors, f"{prefix}positional_embedding", 2)[0],
        "mlp_ratio": hidden / width,
        "gelu": "exact",
        "causal": True,
        "pool": "last",
        "projection": True,
        "normalise": True,
        "eps": 1e-5,
    }
    if settings.branch:
        raise UserError(f"--branch={settings.branch}: {tensors.path} has one tower; leave it out")
    if width % _HEAD and "tower.heads" not in settings.values:
        raise UserError(
            f"heads of {_HEAD}, as all published ones, do not divide a width of {width}; say --set "
            "tower.heads=NUMBER"
        )
    config = settings.apply({"model_type": _TYPE, "tower": fields})
    return _made(config, prefix, (_IGNORED,))


def _made(config: Mapping[str, Any], prefix: str, ignored: tuple[str, ...]) -> Plan:
    needed = ("vocab", "width", "depth", "heads", "max_length", "mlp_ratio")
    fields = dict(section(config, "tower", needed))
    width, heads = fields["width"], fields["heads"]
    if width % heads:
        raise UserError(
            f"{heads} heads do not divide a width of {width}; say --set tower.heads=NUMBER"
        )
    length = fields["max_length"]
    leaves: dict[str, Leaf] = {
        **parts.under("table", parts.embedding(f"{prefix}token_embedding", fields["vocab"], width)),
        "positions/embedding": parts.leaf(f"{prefix}positional_embedding", (length, width)),
        **parts.stacked("blocks", fields["depth"], lambda i: _layer(fields, prefix, i)),
        **parts.under("norm", parts.norm(f"{prefix}ln_final", width)),
        "projection/kernel": parts.leaf(f"{prefix}text_projection", (width, width)),
    }
    return Plan(Layout(parts.under(PART, leaves), ignored), {PART: fields}, config)


def _layer(fields: Mapping[str, Any], prefix: str, number: int) -> dict[str, Leaf]:
    width, heads = fields["width"], fields["heads"]
    hidden, size = round(width * fields["mlp_ratio"]), width // heads
    name = f"{prefix}transformer.resblocks.{number}"
    view, out = (3, heads, size), (width, heads, size)
    return {
        **parts.under("norm1", parts.norm(f"{name}.ln_1", width)),
        "attention/qkv/kernel": parts.leaf(
            f"{name}.attn.in_proj_weight", (3 * width, width), (*view, width), (3, 1, 0, 2)
        ),
        "attention/qkv/bias": parts.leaf(
            f"{name}.attn.in_proj_bias", (3 * width,), view, (1, 0, 2)
        ),
        "attention/out/kernel": parts.leaf(
            f"{name}.attn.out_proj.weight", (width, width), out, (1, 2, 0)
        ),
        "attention/out/bias": parts.leaf(f"{name}.attn.out_proj.bias", (width,)),
        **parts.under("norm2", parts.norm(f"{name}.ln_2", width)),
        **parts.under("mlp/in", parts.linear(f"{name}.mlp.c_fc", width, hidden)),
        **parts.under("mlp/out", parts.linear(f"{name}.mlp.c_proj", hidden, width)),
    }


MODEL = Model(
    _TYPE,
    "Perception Encoder: text tower (B, L, G; .pt)",
    _plan,
    _infer,
    open=_open,
    beside=TOKENIZER,
)
