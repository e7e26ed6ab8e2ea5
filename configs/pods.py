"""The published configs on pods: mesh, rematerialisation and micro-batches of each, from evidence.

    python -m experiments.train --config=configs/pods.py:v_jepa_2_giant@v5p_4x4x8 --workdir=DIR
    python -m experiments.precompile --config=configs/pods.py:v_jepa_2_giant@v5p_4x4x8

What stands before the @ is a config of `CONFIGS`, what stands behind it a pod of `PODS`; nothing
but where and how it runs differs from that config, and its global batch is the published one. The
evidence is the table of docs/pods.md, which `python -m experiments.precompile --all` makes.
"""

from __future__ import annotations

import importlib
from typing import Any

from ml_collections import ConfigDict

from jepa.errors import UserError

# Module and argument.
CONFIGS: dict[str, tuple[str, str]] = {
    "v_jepa_2_large": ("configs.v_jepa_2.pretrain", "large"),
    "v_jepa_2_huge": ("configs.v_jepa_2.pretrain", "huge"),
    "v_jepa_2_giant": ("configs.v_jepa_2.pretrain", "giant_384"),
    "lejepa_huge": ("configs.lejepa.imagenet", "huge14"),
    "vl_jepa": ("configs.vl_jepa.paper", "sft"),
}
# Topology: 256, 128 and 256 chips (v5p's product names count cores, of which a chip has two), and 8
# nodes of 8 GPUs.
PODS = {
    "v5e_16x16": "v5e:16x16",
    "v5p_4x4x8": "v5p:4x4x8",
    "v6e_16x16": "v6e:16x16",
    "h100_64": "h100:64",
}

# What a config needs everywhere: by dotted key, in a phase by its name.
_EVERYWHERE: dict[str, dict[str, Any]] = {
    # How far parameters are cut: until their state is small beside the activations, and into pieces
    # of widths that fill a TPU's tiles, of 16 rows. Cut into 128 pieces of 11, a width of 1408 is
    # filled up to 2048, and summed over the chips instead of gathered: twice the bytes
    # (docs/pods.md).
    "v_jepa_2_large": {"mesh.fsdp": 8},
    "v_jepa_2_huge": {"mesh.fsdp": 8},
    "v_jepa_2_giant": {"mesh.fsdp": 8},
    "lejepa_huge": {"mesh.fsdp": 16},
    # Caches of hundreds of TB are not taken for granted: the frozen X-encoder runs in every step.
    "vl_jepa": {"mesh.fsdp": 16, "model.x_encoder.cache_features": False},
}
# What it needs on a pod besides.
_ON_PODS: dict[tuple[str, str], dict[str, Any]] = {
    # 221,000 tokens a chip; a quarter of them at a time.
    ("v_jepa_2_giant", "v5e_16x16"): {"cooldown": {"train.accumulate": 4}},
    ("v_jepa_2_giant", "v6e_16x16"): {"cooldown": {"train.accumulate": 4}},
    # 48 clips a chip.
    ("v_jepa_2_giant", "h100_64"): {"cooldown": {"train.accumulate": 4}},
}


def get_config(argument: str = "v_jepa_2_large@v5e_16x16") -> ConfigDict:
    """Returns a config of `CONFIGS` for a pod of `PODS`, as `NAME@POD` says."""
    name, _, pod = argument.partition("@")
    for value, table, what in ((name, CONFIGS, "config"), (pod, PODS, "pod")):
        if value not in table:
            raise UserError(
                f"configs/pods.py has no {what} {value!r}; write NAME@POD with one of "
                f"{', '.join(CONFIGS)} and one of {', '.join(PODS)}"
            )
    module, size = CONFIGS[name]
    config: ConfigDict = importlib.import_module(module).get_config(size)
    config.mesh.update(data=-1, fsdp=1, tensor=1, context=1)
    for overrides in (_EVERYWHERE.get(name, {}), _ON_PODS.get((name, pod), {})):
        for path, value in overrides.items():
            _set(config, path, value)
    return config


def _set(config: ConfigDict, path: str, value: Any) -> None:
    """Sets a dotted key, or for the name of a phase the keys of that phase."""
    named = [phase for phase in config.get("phases", ()) if phase["name"] == path]
    if named:
        for key, each in value.items():
            # Phases have keys by section, or by their dotted names.
            within, _, last = key.rpartition(".")
            inside = within in named[0]
            (named[0][within] if inside else named[0])[last if inside else key] = each
        return
    *parents, last = path.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[last] = value
