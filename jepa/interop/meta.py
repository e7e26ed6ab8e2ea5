"""The tensors of Meta's checkpoints (`.pt`) of I-JEPA, V-JEPA, V-JEPA 2 and 2.1.

Such a file holds branches (`encoder`, `predictor`, `target_encoder` or `ema_encoder`, `opt`, ...)
of tensors whose names begin with what training wrapped the networks in (`module.backbone.`). It
says nothing of its model: sizes follow from shapes, the number of heads from the width.

The way back is a safetensors file of the same names under `target_encoder.` and `predictor.`,
beside a `config.json` of our own, which is read again like the original.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop.layout import Leaf
from jepa.interop.registry import Settings
from jepa.interop.sections import section
from jepa.interop.tensors import Tensors

Fields = dict[str, Any]
# In the order of preference: what the authors evaluate is the moving average.
ENCODERS = ("target_encoder", "ema_encoder", "encoder")
PREDICTOR = "predictor"
# What a section of a `config.json` of ours must say of each.
ENCODER_FIELDS = ("width", "depth", "heads", "mlp_ratio", "patch", "tubelet")
PREDICTOR_FIELDS = ("features", "width", "depth", "heads", "mlp_ratio", "mask_tokens")
# Branches that hold no network: the optimizer's memory and loss scaling.
_OTHERS = ("opt", "scaler")
# Heads of V-JEPA 2's and 2.1's sizes by their width (see `models.vit.VITS`).
HEADS: Mapping[int, int] = {
    192: 3,
    384: 6,
    768: 12,
    1024: 16,
    1280: 16,
    1408: 22,
    1664: 26,
}


class Branches:
    """Where in a checkpoint the networks are.

    Attributes:
      encoder: what the names of the encoder's tensors begin with.
      predictor: the same of the predictor; None where there is none.
      ignored: patterns of the names of other branches.
    """

    def __init__(self, tensors: Tensors, branch: str | None):
        """Looks for them.

        Args:
          tensors: the opened checkpoint.
          branch: which encoder to take; the first there is of `ENCODERS` when None.

        Raises:
          UserError: there is no encoder, or not that one.
        """
        found = _prefixes(tensors, "patch_embed.proj.weight")
        choice = [branch] if branch else [*ENCODERS, ""]
        encoder = next((found[name] for name in choice if name in found), None)
        if encoder is None:
            has = ", ".join(sorted(name or "one without a name" for name in found)) or "none"
            raise UserError(
                f"{tensors.path} has no encoder {branch or ' or '.join(ENCODERS)}; of such "
                f"branches it has {has}"
            )
        self.encoder: str = encoder
        predictor = _prefixes(tensors, "predictor_norm.weight").get(PREDICTOR)
        self.predictor: str | None = predictor
        chosen = encoder.split(".")[0]
        others = [name for name in (*ENCODERS, *_OTHERS) if name != chosen]
        self.ignored = tuple(rf"{name}\..*" for name in others)


def _prefixes(tensors: Tensors, suffix: str) -> dict[str, str]:
    """Returns what comes before a name, by branch; "" for a network that is all there is."""
    found = {}
    for name in tensors:
        if name.endswith(suffix):
            prefix = name.removesuffix(suffix)
            branch = prefix.split(".")[0]
            found[branch if branch in (*ENCODERS, PREDICTOR) else ""] = prefix
    return found


def shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    """Returns the shape of a tensor that must be there.

    Raises:
      UserError: it is missing or of another number of dimensions.
    """
    if name not in tensors:
        raise UserError(f"{tensors.path} lacks {name}, so it is of another model")
    found = tensors.shape(name)
    if len(found) != dimensions:
        raise UserError(f"{tensors.path}: {name} has shape {found}, so it is of another model")
    return found


def depth(tensors: Tensors, prefix: str) -> int:
    """Returns how many blocks there are whose names begin with `prefix` and a number."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\..*")
    numbers = [int(m[1]) for m in map(pattern.fullmatch, tensors) if m]
    return max(numbers, default=-1) + 1


def encoder_fields(
    tensors: Tensors, prefix: str, *, flat: bool = False, heads: Mapping[int, int] = HEADS
) -> Fields:
    """Returns the sizes of an encoder; `heads` is None where its width is none of the published.

    Args:
      tensors: the opened checkpoint.
      prefix: what the names of its tensors begin with.
      flat: whether patches are of images (a 2-D convolution).
      heads: of the published sizes, by width.
    """
    kernel = shape(tensors, f"{prefix}patch_embed.proj.weight", 4 if flat else 5)
    hidden, width = shape(tensors, f"{prefix}blocks.0.mlp.fc1.weight", 2)
    return {
        "width": width,
        "depth": depth(tensors, f"{prefix}blocks"),
        "heads": heads.get(width),
        "mlp_ratio": hidden / width,
        "patch": kernel[-1],
        "tubelet": 1 if flat else kernel[2],
    }


def predictor_fields(tensors: Tensors, prefix: str, heads: int | None) -> Fields:
    """Returns the sizes of a predictor with that many heads."""
    hidden, width = shape(tensors, f"{prefix}predictor_blocks.0.mlp.fc1.weight", 2)
    fields: Fields = {
        "features": shape(tensors, f"{prefix}predictor_proj.weight", 2)[0],
        "width": width,
        "depth": depth(tensors, f"{prefix}predictor_blocks"),
        "heads": heads,
        "mlp_ratio": hidden / width,
        "mask_tokens": max(_count(tensors, f"{prefix}mask_tokens"), 1),
    }
    if f"{prefix}predictor_embed.0.weight" in tensors:
        fields["embed_hidden"] = shape(tensors, f"{prefix}predictor_embed.0.weight", 2)[0]
    return fields


def _count(tensors: Tensors, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.\d+")
    return sum(1 for name in tensors if pattern.fullmatch(name))


def settle(config: dict[str, Any], settings: Settings, needed: Sequence[str]) -> dict[str, Any]:
    """Puts in what the user says and the file cannot; what is needed must then be known.

    Raises:
      UserError: it is not, or cannot be that.
    """
    settled = settings.apply(config)
    for path in needed:
        value: Any = settled
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None:
            example = "[6,12,18,24]" if path.endswith("taps") else "NUMBER"
            raise UserError(
                f"these sizes are none of the published models', so {path} cannot be told; say it "
                f"with --set {path}={example}"
            )
    for name in ("encoder", PREDICTOR):
        if name in settled:
            section(settled, name, (), "--set")
    return settled


def blocks(prefix: str, count: int, width: int, heads: int, hidden: int) -> dict[str, Leaf]:
    """`nn.stack.Stack` of pre-norm blocks called `PREFIX.0.norm1`, ..."""

    def layer(i: int) -> dict[str, Leaf]:
        name = f"{prefix}.{i}"
        attention = parts.fused_attention(f"{name}.attn.qkv", f"{name}.attn.proj", width, heads)
        return {
            **parts.under("norm1", parts.norm(f"{name}.norm1", width)),
            **parts.under("attention", attention),
            **parts.under("norm2", parts.norm(f"{name}.norm2", width)),
            **parts.under("mlp/in", parts.linear(f"{name}.mlp.fc1", width, hidden)),
            **parts.under("mlp/out", parts.linear(f"{name}.mlp.fc2", hidden, width)),
        }

    return parts.stacked("blocks", count, layer)


def encoder(fields: Mapping[str, Any], prefix: str, *, flat: bool = False) -> dict[str, Leaf]:
    """`models.vit.VideoTransformer`; with `taps` and `image_tokenizer` that of V-JEPA 2.1."""
    width, patch = fields["width"], fields["patch"]
    _check_heads(fields)
    hidden = round(width * fields["mlp_ratio"])
    tubelet = None if flat else fields["tubelet"]
    levels = len(fields.get("taps", ()))
    norm = f"{prefix}norms_block.{levels - 1}" if levels else f"{prefix}norm"
    leaves = {
        **parts.under("patches", parts.patches(f"{prefix}patch_embed.proj", width, patch, tubelet)),
        **blocks(f"{prefix}blocks", fields["depth"], width, fields["heads"], hidden),
        **parts.under("norm", parts.norm(norm, width)),
    }
    for i in range(levels - 1):
        tap = parts.norm(f"{prefix}norms_block.{i}", width)
        leaves.update(parts.under(f"tap_norms_{i}", tap))
    if fields.get("image_tokenizer"):
        images = parts.patches(f"{prefix}patch_embed_img.proj", width, patch, 1)
        leaves.update(parts.under("image_patches", images))
        leaves["modality"] = _modality(prefix, width)
    return leaves


def predictor(
    fields: Mapping[str, Any], prefix: str, inputs: int, *, single: bool = False
) -> dict[str, Leaf]:
    """`models.mask_predictor.MaskPredictor`.

    Args:
      fields: of the module.
      prefix: what the names of its tensors begin with.
      inputs: numbers of each context token.
      single: whether there is one mask token, with a name of its own (I-JEPA).
    """
    width, features = fields["width"], fields["features"]
    _check_heads(fields)
    hidden = round(width * fields["mlp_ratio"])
    embed = f"{prefix}predictor_embed"
    leaves: dict[str, Leaf] = {}
    if fields.get("embed_hidden"):
        first = parts.linear(f"{embed}.0", inputs, fields["embed_hidden"])
        leaves.update(parts.under("embed_in", first))
        leaves.update(
            parts.under("embed", parts.linear(f"{embed}.2", fields["embed_hidden"], width))
        )
    else:
        leaves.update(parts.under("embed", parts.linear(embed, inputs, width)))
    names = [f"{prefix}mask_tokens.{i}" for i in range(fields["mask_tokens"])]
    names = [f"{prefix}mask_token"] if single else names
    tokens = [parts.leaf(name, (1, 1, width), (1, width)) for name in names]
    leaves |= {
        "mask_tokens": parts.joined(tokens, 0),
        **blocks(f"{prefix}predictor_blocks", fields["depth"], width, fields["heads"], hidden),
        **parts.under("norm", parts.norm(f"{prefix}predictor_norm", width)),
        **parts.under("out", parts.linear(f"{prefix}predictor_proj", width, features)),
    }
    if fields.get("predicts_context"):
        context = parts.linear(f"{prefix}predictor_proj_context", width, features)
        leaves.update(parts.under("context_out", context))
    if fields.get("modalities"):
        leaves["modality"] = _modality(prefix, width)
    return leaves


def _modality(prefix: str, width: int) -> Leaf:
    """The learned vectors of clips and of images, in the order of `models.vit`."""
    names = (f"{prefix}video_mod_embed", f"{prefix}img_mod_embed")
    return parts.joined([parts.leaf(name, (1, 1, width), (1, width)) for name in names], 0)


def _check_heads(fields: Mapping[str, Any]) -> None:
    if fields["width"] % fields["heads"]:
        raise UserError(f"{fields['heads']} heads do not divide a width of {fields['width']}")
