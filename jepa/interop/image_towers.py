"""ViT, DINOv2 and SigLIP 2 as Hugging Face publishes them: image towers.

Parameters of ours: `encoder` (`models.image_tower.ImageTower`), of SigLIP `pool`
(`models.image_tower.AttentionPooling`) where there is one, and `rest`: what else a directory of
these models may hold (a pooler, a classifier, a mask token, SigLIP's text tower), kept as it is so
that the directory comes back whole.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop.fields import Config
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Model, Plan
from jepa.interop.tensors import Tensors, open_tensors, read_json
from jepa.nn.frames import NORMALISATIONS

PART, POOL, REST = "encoder", "pool", "rest"
# Keys of ours beside those of config.json: what the names of the tower's tensors begin with; which
# other tensors there are, by name; how preprocessor_config.json says that pixels are normalised.
_PREFIX, _OTHERS, _PIXELS = "jepa_prefix", "jepa_rest", "jepa_normalisation"
_PREPROCESSOR = "preprocessor_config.json"
# Names of SigLIP's tokenizer go with a whole model's directory.
_BESIDE = (
    _PREPROCESSOR,
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
)
_SHARED: Mapping[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
}
_DINO = {**_SHARED, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
_DINO |= {"qkv_bias": True, "use_swiglu_ffn": False}
_SIGLIP = {**_SHARED, "intermediate_size": 3072, "hidden_act": "gelu_pytorch_tanh"}
_SIGLIP |= {"layer_norm_eps": 1e-6, "vision_use_head": True}
# The types' defaults, which a config.json may leave out.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "vit": {
        **_SHARED,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "qkv_bias": True,
    },
    "dinov2": {**_DINO, "patch_size": 14},
    "dinov2_with_registers": {**_DINO, "num_register_tokens": 4},
    "siglip_vision_model": _SIGLIP,
    "siglip2_vision_model": {**_SIGLIP, "num_patches": 256},
}
# Types whose config.json has that of the vision tower within.
_WHOLE = {"siglip": "siglip_vision_model", "siglip2": "siglip2_vision_model"}
_PATCHES = re.compile(r"(.*)embeddings\.patch_embedding(s\.projection)?\.weight")


@dataclasses.dataclass(frozen=True)
class _Family:
    """What sets a kind of tower apart.

    Attributes:
      types: values of `model_type`.
      normalisation: of its pixels where no file says so.
      rest: patterns (matched in full) of names that may be there besides the tower's; of those that
        lie within the tower's prefix, without it.
    """

    types: tuple[str, ...]
    normalisation: str
    rest: tuple[str, ...]


_CLASSIFIER = r"classifier\.(weight|bias)"
_MASK = r"embeddings\.mask_token"
_VIT_FAMILY = _Family(("vit",), "half", (r"pooler\.dense\.(weight|bias)", _CLASSIFIER, _MASK))
_DINO_FAMILY = _Family(("dinov2", "dinov2_with_registers"), "imagenet", (_CLASSIFIER, _MASK))
_SIGLIP_FAMILY = _Family(
    ("siglip_vision_model", "siglip2_vision_model", *_WHOLE),
    "half",
    (_CLASSIFIER, r"text_model\..*", r"logit_(scale|bias)"),
)


def _open(family: _Family, path: str | Path) -> Tensors:
    """Opens a directory, and notes in its `config` what lies there that `config.json` leaves open.

    Raises:
      UserError: nothing usable is there, or its pixels are normalised as none of these towers'.
    """
    tensors = open_tensors(path)
    if tensors.config is None:
        return tensors
    found = next((m for m in map(_PATCHES.fullmatch, tensors) if m), None)
    prefix = found[1] if found else ""
    known = [re.compile(rf"({re.escape(prefix)})?({pattern})") for pattern in family.rest]
    others = {
        name: list(tensors.shape(name))
        for name in tensors
        if any(pattern.fullmatch(name) for pattern in known)
    }
    pixels = _pixels(tensors.directory / _PREPROCESSOR) or family.normalisation
    noted = {_PREFIX: prefix, _OTHERS: others, _PIXELS: pixels}
    return tensors.with_config({**tensors.config, **noted})


def _pixels(path: Path) -> str | None:
    """Returns our name of the normalisation that a preprocessor's file says; None without one."""
    said = read_json(path) if path.is_file() else {}
    if "image_mean" not in said and "image_std" not in said:
        return None
    pair = said.get("image_mean"), said.get("image_std")
    for name, (mean, std) in NORMALISATIONS.items():
        if pair == (list(mean), list(std)):
            return name
    known = " or ".join(f"{list(mean)} and {list(std)}" for mean, std in NORMALISATIONS.values())
    raise UserError(f"{path}: image_mean and image_std are {pair[0]} and {pair[1]}, not {known}")


def _plan(family: _Family, content: Mapping[str, Any]) -> Plan:
    kind = content.get("model_type")
    if kind not in family.types:
        raise UserError(
            f"config.json is of model_type {kind!r}, not {' or '.join(map(repr, family.types))}; "
            "use another --model"
        )
    within = content
    if kind in _WHOLE:
        kind = _WHOLE[kind]
        within = {**content.get("vision_config", {}), "model_type": kind}
    config = Config(within, kind, _DEFAULTS[kind])
    prefix = content.get(_PREFIX, "")
    fields = {**_fields(config, kind), "normalisation": content.get(_PIXELS, family.normalisation)}
    layer = partial(_siglip_layer if kind.startswith("siglip") else _layer, kind, fields)
    leaves = parts.under(PART, _tower(kind, prefix, fields, layer))
    found = {PART: fields}
    if kind.startswith("siglip") and config["vision_use_head"]:
        of_pool = {"heads": fields["heads"], "hidden": config.number("intermediate_size")}
        found[POOL] = {**of_pool, "gelu": fields["gelu"], "eps": fields["eps"]}
        leaves |= parts.under(POOL, _pool(f"{prefix}head", fields["width"], found[POOL]))
    for name, shape in content.get(_OTHERS, {}).items():
        leaves[f"{REST}/{name.replace('.', '/')}"] = parts.leaf(name, shape)
    return Plan(Layout(leaves), found, content)


def _fields(config: Config, kind: str) -> dict[str, Any]:
    """The fields of `ImageTower` that `config.json` says."""
    config.must("num_channels", 3)
    width, heads = config.number("hidden_size"), config.number("num_attention_heads")
    if width % heads:
        raise UserError(
            f"config.json: num_attention_heads is {heads}, which does not divide "
            f"hidden_size={width}"
        )
    siglip, dino = kind.startswith("siglip"), kind.startswith("dinov2")
    if not siglip:
        config.must("qkv_bias", True)
    gated = dino and bool(config["use_swiglu_ffn"])
    patch = config.number("patch_size")
    side = config.number("image_size") // patch
    if kind == "siglip2_vision_model":
        side = round(config.number("num_patches") ** 0.5)
    return {
        "width": width,
        "depth": config.number("num_hidden_layers"),
        "heads": heads,
        "table_grid": (1, side, side),
        "mlp_ratio": _hidden(config, dino, gated) / width,
        "patch": patch,
        # A gated MLP has no use for it.
        "gelu": "exact" if gated else config.gelu("hidden_act"),
        "class_token": not siglip,
        "registers": _registers(config, kind),
        "layer_scale": dino,
        "gated": gated,
        "eps": float(config["layer_norm_eps"]),
        "resize": _RESIZE.get(kind, "cubic"),
    }


# How each kind's own code stretches its table of positions, where not by plain cubic convolution.
_RESIZE = {
    "dinov2_with_registers": "cubic_antialiased",
    "siglip2_vision_model": "linear_antialiased",
}


def _registers(config: Config, kind: str) -> int:
    return config.number("num_register_tokens") if kind == "dinov2_with_registers" else 0


def _hidden(config: Config, dino: bool, gated: bool) -> int:
    """The hidden width of an MLP; DINOv2's gated ones keep two thirds, in eights."""
    if not dino:
        return config.number("intermediate_size")
    hidden = int(config.number("hidden_size") * config.ratio("mlp_ratio"))
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _tower(
    kind: str, prefix: str, fields: Mapping[str, Any], layer: Callable[[str], dict[str, Leaf]]
) -> dict[str, Leaf]:
    width, siglip = fields["width"], kind.startswith("siglip")
    _, rows, columns = fields["table_grid"]
    entries = rows * columns + fields["class_token"]
    names = ("patch_embedding", "position_embedding.weight", "encoder.layers", "post_layernorm")
    if not siglip:
        names = (
            "patch_embeddings.projection",
            "position_embeddings",
            "encoder.layer",
            "layernorm",
        )
    patches, positions, blocks, norm = names
    embeddings = f"{prefix}embeddings"
    shape = (entries, width) if siglip else (1, entries, width)
    leaves = {
        **parts.under("patches", _patches(kind, f"{embeddings}.{patches}", fields)),
        "positions": parts.leaf(f"{embeddings}.{positions}", shape, (entries, width)),
        **parts.stacked("blocks", fields["depth"], lambda i: layer(f"{prefix}{blocks}.{i}")),
        **parts.under("norm", parts.norm(f"{prefix}{norm}", width)),
    }
    for ours, theirs, rows in (
        ("class_token", "cls_token", int(fields["class_token"])),
        ("registers", "register_tokens", fields["registers"]),
    ):
        if rows:
            leaves[ours] = parts.leaf(f"{embeddings}.{theirs}", (1, rows, width), (rows, width))
    return leaves


def _patches(kind: str, name: str, fields: Mapping[str, Any]) -> dict[str, Leaf]:
    """`models.vit.PatchEmbedding`; SigLIP 2's for any aspect is a matrix over rows of pixels."""
    width, patch = fields["width"], fields["patch"]
    if kind != "siglip2_vision_model":
        return parts.patches(name, width, patch, None)
    view = (width, 1, patch, patch, 3)
    return {
        "kernel": parts.leaf(f"{name}.weight", (width, 3 * patch**2), view, (1, 2, 3, 4, 0)),
        "bias": parts.leaf(f"{name}.bias", (width,)),
    }


def _layer(kind: str, fields: Mapping[str, Any], name: str) -> dict[str, Leaf]:
    """A block of ViT or DINOv2."""
    width, hidden = fields["width"], round(fields["width"] * fields["mlp_ratio"])
    kinds = ("attention.query", "attention.key", "attention.value", "output.dense")
    leaves = parts.attention([f"{name}.attention.{k}" for k in kinds], width, fields["heads"])
    leaves = parts.under("attention", leaves)
    if kind == "vit":
        norms, mlp = ("layernorm_before", "layernorm_after"), ("intermediate.dense", "output.dense")
    else:
        norms, mlp = ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
        for i in (1, 2):
            leaves[f"scale{i}/scale"] = parts.leaf(f"{name}.layer_scale{i}.lambda1", (width,))
    leaves |= _norms(name, norms, width)
    if not fields["gated"]:
        return leaves | _mlp(name, mlp, width, hidden)
    inward = f"{name}.mlp.weights_in"
    both = (2, hidden)
    return leaves | {
        "mlp/in/kernel": parts.leaf(
            f"{inward}.weight", (2 * hidden, width), (*both, width), (2, 1, 0)
        ),
        "mlp/in/bias": parts.leaf(f"{inward}.bias", (2 * hidden,), both, (1, 0)),
        **parts.under("mlp/out", parts.linear(f"{name}.mlp.weights_out", hidden, width)),
    }


def _siglip_layer(kind: str, fields: Mapping[str, Any], name: str) -> dict[str, Leaf]:
    del kind
    width, hidden = fields["width"], round(fields["width"] * fields["mlp_ratio"])
    kinds = ("q_proj", "k_proj", "v_proj", "out_proj")
    names = [f"{name}.self_attn.{k}" for k in kinds]
    return {
        **parts.under("attention", parts.attention(names, width, fields["heads"])),
        **_norms(name, ("layer_norm1", "layer_norm2"), width),
        **_mlp(name, ("mlp.fc1", "mlp.fc2"), width, hidden),
    }


def _norms(name: str, theirs: Sequence[str], width: int) -> dict[str, Leaf]:
    first, second = theirs
    return {
        **parts.under("norm1", parts.norm(f"{name}.{first}", width)),
        **parts.under("norm2", parts.norm(f"{name}.{second}", width)),
    }


def _mlp(name: str, theirs: Sequence[str], width: int, hidden: int) -> dict[str, Leaf]:
    inward, outward = theirs
    return {
        **parts.under("mlp/in", parts.linear(f"{name}.{inward}", width, hidden)),
        **parts.under("mlp/out", parts.linear(f"{name}.{outward}", hidden, width)),
    }


def _pool(name: str, width: int, fields: Mapping[str, Any]) -> dict[str, Leaf]:
    """`models.image_tower.AttentionPooling`."""
    view = (3, fields["heads"], width // fields["heads"])
    fused = f"{name}.attention.in_proj"
    return {
        "query": parts.leaf(f"{name}.probe", (1, 1, width), (1, width)),
        "qkv/kernel": parts.leaf(
            f"{fused}_weight", (3 * width, width), (*view, width), (3, 1, 0, 2)
        ),
        "qkv/bias": parts.leaf(f"{fused}_bias", (3 * width,), view, (1, 0, 2)),
        **parts.under("out", parts.linear(f"{name}.attention.out_proj", width, width)),
        **parts.under("norm", parts.norm(f"{name}.layernorm", width)),
        **_mlp(name, ("mlp.fc1", "mlp.fc2"), width, fields["hidden"]),
    }


def _model(name: str, says: str, family: _Family) -> Model:
    return Model(name, says, partial(_plan, family), open=partial(_open, family), beside=_BESIDE)


VIT = _model("vit", "ViT: image tower", _VIT_FAMILY)
DINOV2 = _model("dinov2", "DINOv2, with and without registers: image tower", _DINO_FAMILY)
SIGLIP = _model("siglip", "SigLIP and SigLIP 2: image tower", _SIGLIP_FAMILY)
