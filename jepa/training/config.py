"""The config sections that training owns: defaults, and the checks made before anything compiles.

Every check raises UserError with one sentence that names the key, the value and the mend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from jepa.errors import UserError, check_known
from jepa.parallel.mesh import AXES
from jepa.training import schedules

SECTIONS = ("mesh", "data", "model", "loss", "optimizer", "ema", "train", "evaluation", "probe")
KEYS = ("seed", "method", "dtype", *SECTIONS, "phases")
DTYPES = ("float32", "bfloat16", "float64")


def default_mesh_config() -> ConfigDict:
    """Returns the section `mesh`: devices along each axis; -1 is all that are left."""
    return ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "context": 1})


def default_optimizer_config() -> ConfigDict:
    """Returns the section `optimizer`.

    Keys:
      name: `adamw`, `muon` (arXiv 2502.16982), `lion` or `sgd` (with momentum `b1`).
      learning_rate: the peak of the schedule.
      schedule: `constant`, `cosine`, `linear` or `wsd`; see `jepa.training.schedules`.
      warmup_steps, decay_steps: its durations; `decay_steps=None` follows from `train.steps`.
      start_factor, final_factor: what the warm-up starts from and what the decay ends at, over the
        peak.
      schedule_scale: the schedules of this section are computed for so many times `train.steps` and
        cut at `train.steps`; the published `ipe_scale`.
      weight_decay: decoupled, times the learning rate; vectors and scalars are never decayed.
      final_weight_decay: where a half cosine takes it by the end; None: it stays.
      no_decay: patterns (full match on the path) of what is not decayed either: biases, gains,
        norms, temperatures, also where a scanned stack makes matrices of them.
      b1, b2, eps: of the moments.
      muon_momentum: Nesterov momentum of Muon's matrices.
      muon_matrices: (pattern, input axes, output axes) of the parameters whose updates Muon makes
        orthogonal, axes not named being a stack of matrices; everything else gets Adam with
        Nesterov momentum (`b1`, `b2`).
      clip_norm: largest global gradient norm; None for no clipping.
      clip_from: steps before the first one that is clipped; V-JEPA leaves the warm-up unclipped.
    """
    return ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 0,
            "decay_steps": config_dict.placeholder(int),
            "start_factor": 0.0,
            "final_factor": 0.0,
            "schedule_scale": 1.0,
            "weight_decay": 0.05,
            "final_weight_decay": config_dict.placeholder(float),
            "no_decay": (
                r"(.*/)?(bias|scale|gain)",
                r"(.*/)?[^/]*[Nn]orm[^/]*(/.*)?",
                r"(.*/)?[^/]*temperature[^/]*",
            ),
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-8,
            "muon_momentum": 0.95,
            # Of scanned blocks: queries, keys and values of each head, output, MLP.
            "muon_matrices": (
                (r".*blocks/attention/qkv/kernel", (1,), (4,)),
                (r".*blocks/attention/out/kernel", (1, 2), (3,)),
                (r".*blocks/mlp/\w+/kernel", (1,), (2,)),
            ),
            "clip_norm": 1.0,
            "clip_from": 0,
        }
    )


def default_ema_config() -> ConfigDict:
    """Returns the section `ema`, for methods with a target encoder (None for the others).

    Keys:
      momentum, final_momentum: of the average, at the first step and after `steps`.
      schedule: `linear`, `cosine` or `constant`, from one to the other.
      steps: length of the rise; None for `train.steps`.
      schedule_scale: the rise takes so many times that, and is cut at `train.steps`.
    """
    return ConfigDict(
        {
            "momentum": 0.998,
            "final_momentum": 1.0,
            "schedule": "linear",
            "steps": config_dict.placeholder(int),
            "schedule_scale": 1.0,
        }
    )


def default_train_config() -> ConfigDict:
    """Returns the section `train`.

    Keys:
      steps: length of the run; with phases, the sum of theirs.
      global_batch: examples a step, over all devices.
      accumulate: micro-batches a step, whose losses and gradients are averaged; a loss that
        compares examples then sees those of its own micro-batch only.
      gradient_cache: with `accumulate` above 1, the loss and the gradient of the whole batch at the
        activation memory of one micro-batch, for one more forward pass (which the FLOPs and the MFU
        of a run do not count); see `jepa.training.gradients.cached`.
      log_every, save_every, eval_every: in steps; the last step logs, saves and evaluates too.
        `save_every=0` saves at the last step only, `eval_every=0` never evaluates.
      health_every: steps between measurements of the representations (effective rank and the like)
        and the verdict on whether they collapse; 0 for none. See `jepa.training.health`, also for
        the cost, and docs/collapse.md.
      keep_last: checkpoints to keep; with one only, there is none to fall back to when it is
        damaged.
      keep_best_metric, keep_best_mode: also keep the best checkpoint by this evaluation metric
        (`max` or `min`); an evaluation that beats the best so far is saved at once.
      profile_steps: (start, stop) to trace with the JAX profiler into WORKDIR/profile; () for none.
        Steps that a resumed run has behind it are not traced.
      log_records: write down which records each step was made of; see `jepa.training.record_log`.
      max_consecutive_skipped: the run stops when so many steps in a row were not finite (looked
        at when a line is logged or a checkpoint is due).
    """
    return ConfigDict(
        {
            "steps": 1000,
            "global_batch": 64,
            "accumulate": 1,
            "gradient_cache": False,
            "log_every": 50,
            "eval_every": 0,
            "save_every": 500,
            "health_every": 100,
            "keep_last": 2,
            "keep_best_metric": config_dict.placeholder(str),
            "keep_best_mode": "max",
            "profile_steps": (),
            "log_records": False,
            "max_consecutive_skipped": 20,
        }
    )


def _check_type(path: str, value: Any, default: Any, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(default, bool):
        good, want = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        good, want = isinstance(value, int) and not isinstance(value, bool), "an integer"
    elif isinstance(default, float):
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        good, want = good and math.isfinite(value), "a finite number"
    elif isinstance(default, str):
        good, want = isinstance(value, str), "a string"
    else:
        good, want = isinstance(value, (tuple, list)), "a tuple"
    if not good:
        raise UserError(f"The config key {path!r} is {value!r}; give {want}.")


# What stands for the type of a key whose default is None, and what may be None besides.
_OPTIONAL = {
    "optimizer.decay_steps": 1,
    "optimizer.final_weight_decay": 1.0,
    "optimizer.clip_norm": 1.0,
    "ema.steps": 1,
    "train.keep_best_metric": "",
}


def _fill(section: str, given: Mapping[str, Any], default: ConfigDict) -> dict[str, Any]:
    """Returns the section with its defaults filled in; checks keys and types."""
    check_known(section, given, default)
    filled = {**default.to_dict(), **dict(given.items())}
    for key, value in filled.items():
        path = f"{section}.{key}"
        _check_type(path, value, _OPTIONAL.get(path, default[key]), path in _OPTIONAL)
    return filled


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy with training's defaults filled in, its keys, types and values checked.

    What `phases` says is checked by `jepa.training.phases.plan`.

    Raises:
      UserError: at the first mistake.
    """
    check_known("", config, KEYS)
    for key in ("method", "data", "model"):
        if key not in config:
            raise UserError(f"The config has no {key!r}; see configs/ for complete ones.")
    full = ConfigDict(config.copy_and_resolve_references(), convert_dict=True)
    full.unlock()
    full.seed = config.get("seed", 0)
    full.dtype = config.get("dtype", "float32")
    phases = config.get("phases")
    _check_type("phases", phases, (), True)
    full.phases = tuple(phases or ())
    for key in ("loss", "evaluation", "probe"):
        if config.get(key) is None:
            full[key] = ConfigDict()
    defaults = {
        "mesh": default_mesh_config(),
        "optimizer": default_optimizer_config(),
        "train": default_train_config(),
    }
    for section, default in defaults.items():
        full[section] = ConfigDict(_fill(section, config.get(section) or {}, default))
    if config.get("ema") is None:
        full["ema"] = None
    else:
        full["ema"] = ConfigDict(_fill("ema", config.ema, default_ema_config()))
    _check_type("seed", full.seed, 0, False)
    if not 0 <= full.seed < 2**32:  # JAX takes the lowest 32 bits, the data pipeline no sign
        raise UserError(f"The config key 'seed' is {full.seed}; give one from 0 to {2**32 - 1}.")
    if full.dtype not in DTYPES:
        raise UserError(f"The config key 'dtype' is {full.dtype!r}; choose one of {DTYPES}.")
    _check_values(full)
    return full


def _check_values(config: ConfigDict) -> None:
    train, optimizer = config.train, config.optimizer
    for key in ("steps", "global_batch", "accumulate", "log_every", "keep_last"):
        _at_least(f"train.{key}", train[key], 1)
    for key in ("eval_every", "save_every", "health_every"):
        _at_least(f"train.{key}", train[key], 0)
    _at_least("train.max_consecutive_skipped", train.max_consecutive_skipped, 1)
    if train.gradient_cache and train.accumulate == 1:
        raise UserError(
            "The config key 'train.gradient_cache' is True, but train.accumulate is 1 and there "
            "are no micro-batches; set train.accumulate to their number, or train.gradient_cache "
            "to False."
        )
    if train.keep_best_mode not in ("max", "min"):
        raise UserError(
            f"The config key 'train.keep_best_mode' is {train.keep_best_mode!r}; "
            "choose 'max' or 'min'."
        )
    if train.keep_best_metric is not None and not train.eval_every:
        raise UserError(
            f"The config key 'train.keep_best_metric' is {train.keep_best_metric!r}, but "
            "train.eval_every is 0 and nothing is ever evaluated; set it to a number of steps."
        )
    profile = tuple(train.profile_steps)
    if profile and (len(profile) != 2 or not 0 <= profile[0] < profile[1]):
        raise UserError(
            f"The config key 'train.profile_steps' is {profile}; give (start, stop) or ()."
        )
    for key in ("learning_rate", "eps"):
        if optimizer[key] <= 0:
            raise UserError(
                f"The config key 'optimizer.{key}' is {optimizer[key]}; make it positive."
            )
    for key in ("weight_decay", "start_factor", "final_factor", "clip_from"):
        _at_least(f"optimizer.{key}", optimizer[key], 0)
    if optimizer.final_weight_decay is not None:
        _at_least("optimizer.final_weight_decay", optimizer.final_weight_decay, 0)
    _at_least("optimizer.schedule_scale", optimizer.schedule_scale, 1)
    if config.ema is not None:
        _at_least("ema.schedule_scale", config.ema.schedule_scale, 1)
        if config.ema.steps is not None:
            _at_least("ema.steps", config.ema.steps, 1)
    for key in ("b1", "b2", "muon_momentum"):
        if not 0 <= optimizer[key] < 1:
            raise UserError(
                f"The config key 'optimizer.{key}' is {optimizer[key]}; make it at least 0 and "
                "less than 1."
            )
    if optimizer.clip_norm is not None and optimizer.clip_norm <= 0:
        raise UserError(
            f"The config key 'optimizer.clip_norm' is {optimizer.clip_norm}; make it positive, "
            "or None."
        )


def _at_least(path: str, value: float, least: int) -> None:
    if value < least:
        raise UserError(f"The config key {path!r} is {value}; make it at least {least}.")


def mesh_sizes(config: ConfigDict, devices: int) -> dict[str, int]:
    """Returns devices along each mesh axis with -1 filled in.

    Raises:
      UserError: if the axes do not multiply to the number of devices.
    """
    sizes = {axis: config.mesh[axis] for axis in AXES}
    rest = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1 or fixed < 1 or devices % fixed or (not rest and fixed != devices):
        raise UserError(
            f"The mesh {sizes} does not fit {devices} devices; the axes have to multiply to that "
            "number, with -1 for one that takes what is left."
        )
    return {axis: devices // fixed if size == -1 else size for axis, size in sizes.items()}


def check_run(config: ConfigDict, method: Any, devices: int) -> None:
    """Checks a resolved config against its method and the machine, before anything compiles.

    Raises:
      UserError: at the first mistake.
    """
    sizes = mesh_sizes(config, devices)
    shards = sizes["data"] * sizes["fsdp"]
    batch, accumulate = config.train.global_batch, config.train.accumulate
    if batch % shards:
        raise UserError(
            f"The config key 'train.global_batch' is {batch}, which the {shards} batch shards of "
            f"the mesh (data {sizes['data']} x fsdp {sizes['fsdp']}) do not divide; make it a "
            f"multiple of {shards}."
        )
    if (batch // shards) % accumulate:
        raise UserError(
            f"The config key 'train.accumulate' is {accumulate}, which does not divide the "
            f"{batch // shards} examples a device has of train.global_batch={batch}."
        )
    if method.requirements.ema and config.ema is None:
        raise UserError(
            "The config key 'ema' is None, but the method has a target encoder; set it to "
            "jepa.training.config.default_ema_config()."
        )
    if not method.requirements.ema and config.ema is not None:
        raise UserError(
            "The config key 'ema' is set, but the method has no target encoder; set it to None."
        )
    check_method = getattr(method, "check", None)
    if check_method is not None:
        resolved = config.copy_and_resolve_references()
        resolved.mesh.update(sizes)
        check_method(resolved)


def check_best(config: ConfigDict, known: Iterable[str]) -> None:
    """Checks that `train.keep_best_metric` names something that evaluation gives.

    Args:
      config: resolved.
      known: names of metrics, or prefixes of them that end in `/`.

    Raises:
      UserError: it does not; the names are told.
    """
    metric, known = config.train.keep_best_metric, sorted(known)
    if metric is None or any(
        metric.startswith(name) if name.endswith("/") else metric == name for name in known
    ):
        return
    names = ", ".join(f"{name}..." if name.endswith("/") else name for name in known)
    raise UserError(
        f"The config key 'train.keep_best_metric' is {metric!r}, which no evaluation gives; "
        f"choose one of {names or 'none, there is no evaluation'}."
    )


def ema_schedule(config: ConfigDict, first: int = 0) -> schedules.Schedule | None:
    """Returns the momentum schedule of a resolved config, or None without target encoder.

    Args:
      config: of the run, or of a phase.
      first: step of the run at which the schedule begins.
    """
    if config.ema is None:
        return None
    length = config.ema.steps or config.train.steps
    momentum = schedules.momentum(
        config.ema.schedule,
        start=config.ema.momentum,
        final=config.ema.final_momentum,
        steps=schedules.stretched(length, config.ema.schedule_scale),
    )
    return schedules.shifted(momentum, first)
