"""Published weights to parameters for training here, and back.

    python -m experiments.convert --model=v_jepa_2 --from=HUGGING_FACE_DIR --to=DIR
    python -m experiments.convert --model=v_jepa_2 --from=DIR --to=HUGGING_FACE_DIR
    python -m experiments.convert --model=v_jepa_2 --from=EXPORTED_FILE --like=HUGGING_FACE_DIR \
        --to=HUGGING_FACE_DIR
    python -m experiments.convert --model=v_jepa_2 --from=EXPORTED_RUN --set=crop_size=256 \
        --to=HUGGING_FACE_DIR
    python -m experiments.convert --list

The third publishes a network that `experiments.export` wrote, in the frame of what it began as, the
fourth all networks of a run that began as nothing (`experiments.export --part=`).
Which way follows from what --from is. `docs/weights.md` has the models and what is checked.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import cli
from jepa.errors import UserError
from jepa.interop import converted, loading, registry, saving, trained
from jepa.interop.tensors import Tensors, folder

DTYPES = ("float32", "bfloat16", "float16", "float64")


def convert(
    name: str,
    source: str | Path,
    to: str | Path,
    *,
    dtype: str | None = None,
    settings: registry.Settings | None = None,
    like: str | Path | None = None,
) -> dict[str, Any]:
    """Converts a checkpoint, whole or not at all.

    Args:
      name: of the model (`registry.names`).
      source: a published file or directory; a directory that this wrote; a file of
        `experiments.export`.
      to: the directory to write, which must not exist.
      dtype: of what is written; that of the source when absent.
      settings: what a source without `config.json` does not say; on the way back, what
        `config.json` is to say.
      like: directory of the model as which the source, a file of `experiments.export`, began.

    Returns:
      What `model.json` says (of the source, on the way back).

    Raises:
      UserError: there is no such model, the source is not that model's, `to` exists, or a setting
        has no use.
    """
    model, source, to = registry.model(name), Path(source), Path(to)
    settings = settings or registry.Settings()
    if to.exists():
        raise UserError(f"{to} exists already; remove it, or choose another name")
    if like is not None:
        return _publish_trained(model, source, Path(like), to, dtype, settings)
    if converted.is_converted(source):
        return _publish(model, source, to, dtype, settings)
    tensors = model.open(source)
    if trained.is_run(tensors):
        return _publish_run(model, tensors, to, dtype, settings)
    plan = model.plan_of(tensors, settings)
    params = loading.load(tensors, plan.layout, dtype=dtype)
    about = {
        "model": name,
        "source": source.name,
        "parameters": _count(params),
        "fields": plan.fields,
        "config": plan.config,
    }
    converted.save(to, params, about, copies=_beside(model, source))
    return about


def _publish(
    model: registry.Model, source: Path, to: Path, dtype: str | None, settings: registry.Settings
) -> dict[str, Any]:
    """Writes a converted checkpoint in its published form."""
    about = trained.about(model, source)
    plan = trained.leaving(model, about["config"], about["fields"], settings, source)
    params, copies = converted.pending(source), _beside(model, source)
    saving.save(to, params, plan.layout, plan.config, dtype=dtype, copies=copies)
    return about


def _publish_trained(
    model: registry.Model,
    source: Path,
    like: Path,
    to: Path,
    dtype: str | None,
    settings: registry.Settings,
) -> dict[str, Any]:
    """Writes a network of a run in the published form of the model that it began as."""
    frame = trained.frame(model, like, settings)
    params = trained.placed(*trained.read(source), frame, source, like)
    plan, copies = frame[0], _beside(model, like)
    saving.save(to, params, plan.layout, plan.config, dtype=dtype, copies=copies)
    return {"model": model.name, "parameters": _count(params)}


def _publish_run(
    model: registry.Model,
    tensors: Tensors,
    to: Path,
    dtype: str | None,
    settings: registry.Settings,
) -> dict[str, Any]:
    """Writes all networks of a run in their published form."""
    plan, params = trained.whole(model, tensors, settings)
    saving.save(to, params, plan.layout, plan.config, dtype=dtype)
    return {"model": model.name, "parameters": _count(params)}


def _beside(model: registry.Model, source: Path) -> dict[str, Path]:
    """Returns the files that go with a model's tensors and lie beside them."""
    directory = folder(source)
    return {name: directory / name for name in model.beside if (directory / name).is_file()}


def _count(params: Mapping[str, Any]) -> int:
    return sum(math.prod(leaf.shape) for leaf in loading.flatten(params).values())


def _parse(argv: Sequence[str] | None) -> Any:
    parser = cli.ArgumentParser(
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--model", help="which model; see --list")
    parser.add_argument("--from", dest="source", help="published, converted or exported weights")
    parser.add_argument("--to", help="directory to write")
    parser.add_argument("--like", help="of a file of experiments.export: what it began as")
    parser.add_argument("--dtype", choices=DTYPES, help="of what is written (default: as it is)")
    parser.add_argument("--branch", help="which encoder of a .pt file (target_encoder, encoder)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what weights do not say (encoder.heads=4) or config.json is to (crop_size=384); "
        "may be given several times",
    )
    parser.add_argument("--list", action="store_true", help="list the models and end")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = _parse(argv)
    if args.list:
        for name in registry.names():
            print(f"{name:24}{registry.model(name).says}")
        return
    for flag, value in (("model", args.model), ("from", args.source), ("to", args.to)):
        if not value:
            raise UserError(f"--{flag} is needed (see --help)")
    started = time.perf_counter()
    settings = registry.Settings(args.branch, dict(map(_setting, args.set)))
    about = convert(
        args.model, args.source, args.to, dtype=args.dtype, settings=settings, like=args.like
    )
    seconds = time.perf_counter() - started
    print(
        f"{about['model']}, {about['parameters']:,} parameters: {args.to} "
        f"({seconds:.1f} s, at most {_peak_bytes() / 2**30:.2f} GiB of host memory)"
    )


def _setting(text: str) -> tuple[str, Any]:
    """Returns key and value of `KEY=VALUE`, the value as JSON where it is that."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"--set {text}: write KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _peak_bytes() -> int:
    """Returns the most memory this process has had, its libraries included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    cli.run(main)
