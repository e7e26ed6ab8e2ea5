"""The suite `losses`: what the contrastive losses and SIGReg cost, beside what is promised of them.

Each part runs in a process of its own: parts show different numbers of CPU devices, and none should
inherit another's memory.
"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.benchmarks import child
from experiments.benchmarks.measurement import Measurement, progress
from jepa.errors import UserError
from jepa.models.vit import VITS

PARTS = ("infonce", "sigreg", "tpu", "share", "gradient_cache")

# The sizes that the bars name: flag, value, what it is. A part has its bars at these alone.
_SIZES: dict[str, tuple[Any, str]] = {
    "infonce_batch": (24_576, "global batch"),
    "infonce_dim": (1_536, "width of the embeddings"),
    "infonce_devices": (8, "CPU devices"),
    "sigreg_samples": (2_048, "samples"),
    "sigreg_dim": (512, "width of the embeddings"),
    "sigreg_slices": (1_024, "slices, in the parts sigreg, tpu and share"),
    "sigreg_knots": (17, "knots, in the parts sigreg, tpu and share"),
    "share_model": ("base", "size of the vision transformer"),
    "share_batch": (256, "images a step"),
    "share_size": (224, "height and width of images"),
    "share_dim": (512, "width of the projections"),
    "cache_model": ("micro", "size of the vision transformer"),
    "cache_batch": (64, "examples"),
    "cache_size": (64, "height and width of images"),
    "cache_parts": ((8, 16), "numbers of micro-batches"),
}
# Sizes that no bar names.
_OTHERS: dict[str, tuple[Any, str]] = {
    "infonce_rounds": (3, "rounds of the comparison, minutes each"),
    "tpu_sigreg_chips": ("v5e:4x4", "topology that SIGReg is compiled for"),
    "tpu_infonce_chips": ("v5e:16x16", "topology that InfoNCE is compiled for"),
    "tpu_dim": (1_024, "width of InfoNCE's embeddings on it"),
    "tpu_batches": ((32_768, 131_072, 524_288, 1_048_576), "global batches on it"),
    "tpu_naive_batches": ((32_768, 131_072), "those of them with the full matrix beside"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this suite's flags."""
    group = parser.add_argument_group("losses")
    group.add_argument("--parts", type=_names, default=PARTS, help=f"some of {','.join(PARTS)}")
    for name, (value, what) in {**_SIZES, **_OTHERS}.items():
        kind = _numbers if isinstance(value, tuple) else type(value)
        group.add_argument(f"--{name}", type=kind, default=value, help=f"{what} ({_text(value)})")


def check(args: argparse.Namespace) -> None:
    """Checks the flags.

    Raises:
        UserError: One that is out of range, or two that do not fit.
    """
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown or not args.parts:
        raise UserError(f"--parts is {','.join(args.parts)!r}; name some of {', '.join(PARTS)}")
    for name in (*_SIZES, *_OTHERS):
        value = getattr(args, name)
        least = 2 if name == "sigreg_knots" else 1
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number < least:
                raise UserError(f"--{name} is {_text(value)}; it must be at least {least}")
    for name in ("share_model", "cache_model"):
        if getattr(args, name) not in VITS:
            raise UserError(f"--{name} is {getattr(args, name)!r}; use one of {', '.join(VITS)}")
    for name, unit in (("share_size", 16), ("cache_size", 8), ("cache_batch", 16)):
        if getattr(args, name) % unit:
            raise UserError(f"--{name} is {getattr(args, name)}; use a multiple of {unit}")
    if args.infonce_batch % args.infonce_devices:
        raise UserError(
            f"--infonce_batch is {args.infonce_batch}, which --infonce_devices="
            f"{args.infonce_devices} does not divide; change one of them"
        )
    for count in args.cache_parts:
        if args.cache_batch % count:
            raise UserError(
                f"--cache_parts has {count}, which does not divide --cache_batch="
                f"{args.cache_batch}; change one of them"
            )


def suite(args: argparse.Namespace) -> list[Measurement]:
    """Runs the parts that are asked for, in the order of `PARTS`."""
    arguments = _arguments(args)
    found = []
    for part in PARTS:
        if part in args.parts:
            progress(f"part {part}")
            # The share is measured on an accelerator where there is one; all else is CPU's.
            platform = None if part == "share" else "cpu"
            items = child.call(
                f"{__package__}.{part}:measure",
                {**arguments[part], "bar": _at_bar(args, part)},
                platform=platform,
            )
            found += [Measurement(**item) for item in items]
    return found


def _arguments(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    quadrature = {"slices": args.sigreg_slices, "knots": args.sigreg_knots}
    return {
        "infonce": {
            "batch": args.infonce_batch,
            "dim": args.infonce_dim,
            "devices": args.infonce_devices,
            "rounds": args.infonce_rounds,
        },
        "sigreg": {
            "samples": args.sigreg_samples,
            "dim": args.sigreg_dim,
            "rounds": args.rounds,
            **quadrature,
        },
        "tpu": {
            "samples": args.sigreg_samples,
            "sigreg_dim": args.sigreg_dim,
            "sigreg_chips": args.tpu_sigreg_chips,
            "batches": args.tpu_batches,
            "naive_batches": args.tpu_naive_batches,
            "infonce_dim": args.tpu_dim,
            "infonce_chips": args.tpu_infonce_chips,
            **quadrature,
        },
        "share": {
            "model": args.share_model,
            "batch": args.share_batch,
            "size": args.share_size,
            "dim": args.share_dim,
            "rounds": args.rounds,
            **quadrature,
        },
        "gradient_cache": {
            "model": args.cache_model,
            "batch": args.cache_batch,
            "size": args.cache_size,
            "parts": args.cache_parts,
        },
    }


def _at_bar(args: argparse.Namespace, part: str) -> bool:
    """Whether all sizes of a part are those of its bars."""
    prefix = {"gradient_cache": "cache_", "tpu": "sigreg_"}.get(part, f"{part}_")
    names = [name for name in _SIZES if name.startswith(prefix)]
    if part == "share":
        names += ["sigreg_slices", "sigreg_knots"]
    return all(getattr(args, name) == _SIZES[name][0] for name in names)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
