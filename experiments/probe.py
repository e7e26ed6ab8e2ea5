"""Measures features by probes: WORKDIR/probes.json, and a table of the encoders measured so far.

    python -m experiments.probe --config=CONFIG --workdir=DIR --probes=knn,linear,attentive
    python -m experiments.probe --config=CONFIG --workdir=DIR --random_init --pixels

The first line measures a checkpoint, the second its controls: the same network at its random start,
and no network. `--frame_control=shuffled` measures an encoder on clips without their order. What is
measured already is not measured again, and features lie in WORKDIR/features. The section `probe` of
the config says by what protocol; see docs/evaluation.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, restoring, train
from jepa import methods
from jepa.data import config as data_configs
from jepa.data import idx, sources
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import probes, probes_config, probes_features, probes_results
from jepa.methods.base import Method
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import workdir
from jepa.training.checkpoints import Restored

# --config, --workdir, --devices and the like are those of training; --checkpoint of restoring.
PROBES = flags.DEFINE_list("probes", ["knn", "linear"], "Of knn, linear, attentive, finetune.")
RANDOM_INIT = flags.DEFINE_bool(
    "random_init", False, "Measure the random start of the network, not a checkpoint."
)
PIXELS = flags.DEFINE_bool("pixels", False, "Measure raw pixels, not a checkpoint.")
ONLINE = flags.DEFINE_bool(
    "online", False, "Measure the trained parameters themselves, not their moving average."
)
FRAME_CONTROL = flags.DEFINE_enum(
    "frame_control",
    "none",
    data_configs.CHOICES["frame_control"],
    "Take this away from the clips that the encoder sees.",
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be measured.

    Attributes:
      probes: of `probes_config.PROBES`.
      checkpoint: `latest`, `best` or a step.
      random_init: the network at its random start instead.
      pixels: raw pixels instead; with `random_init`, both.
      online: the parameters themselves where a method keeps a moving average of them.
      frame_control: what is taken away from the clips.
    """

    probes: Sequence[str] = ("knn", "linear")
    checkpoint: str = "latest"
    random_init: bool = False
    pixels: bool = False
    online: bool = False
    frame_control: str = "none"

    def check(self) -> None:
        """Raises UserError for what does not exist or excludes each other."""
        unknown = [name for name in self.probes if name not in probes_config.PROBES]
        if unknown or not self.probes:
            known = ", ".join(probes_config.PROBES)
            raise UserError(f"--probes={','.join(self.probes)}: give one or more of {known}")
        for name in {"attentive", "finetune"} & set(self.probes) if self.pixels else ():
            raise UserError(
                f"--pixels has no network, so {name!r} has nothing to read; leave it out of "
                "--probes"
            )
        control = self.random_init or self.pixels
        if control and (self.online or self.checkpoint != "latest"):
            raise UserError(
                "--random_init and --pixels measure no checkpoint; leave out --online and "
                "--checkpoint, or measure the checkpoint by a command of its own"
            )


def main(
    config: ConfigDict, directory: str | Path, wanted: Wanted, *, devices: int | None = None
) -> dict[str, Any]:
    """Measures in this process and returns the content of probes.json.

    Args:
      config: of the run; its `probe` section may differ.
      directory: the workdir.
      wanted: what to measure.
      devices: CPU devices to show JAX, if its backend has not started.

    Raises:
      UserError: a config or a flag that does not fit, no checkpoint, or features that cannot be
        measured.
    """
    wanted.check()
    config = configs.resolve(config)
    section = config.probe if len(config.probe) else probes_config.default_probe()
    probes_config.check(section)
    workdir.check(directory, config)
    train.check_data(config)
    train.setup(config, devices=devices)
    control = wanted.random_init or wanted.pixels
    step = None if control else restoring.find_step(directory, wanted.checkpoint, config)
    here = restoring.of_phase(config, directory, step)
    mesh = meshes.make_mesh(here.mesh)
    train.distrust_cache(mesh)
    data = _data(here, wanted.frame_control)
    store = probes_features.FeatureStore(
        Path(directory) / "features",
        mesh,
        batch_size=section.batch_size,
        storage=section.storage,
    )
    suite = probes.Suite(data, section, store, mesh=mesh, dtype=_narrow(here.dtype))
    run = functools.partial(restoring.restore, config, directory, step)
    for encoder, about in _encoders(here, wanted, run, section, mesh):
        _measure(directory, suite, encoder, about, wanted)
    files = probes_results.read(directory)
    found = probes_results.comparable(files, tuple(suite.labels), suite.protocol)
    numbers = probes_results.join(found, files, suite.groups, seed=section.seed)
    numbers["protocol"] = workdir.plain(section)
    if jax.process_index() == 0:
        path = probes_results.write(directory, numbers)
        print(probes_results.table(numbers))
        print(f"numbers: {path}", flush=True)
    return numbers


def _data(config: ConfigDict, control: str) -> DataConfig:
    data = DataConfig.parse(config.data)
    if control != "none" and data.frame_control not in ("none", control):
        raise UserError(
            f"--frame_control={control}, but the run itself has data.frame_control="
            f"{data.frame_control!r} and is measured on that; leave the flag out"
        )
    # A clip is read once: nothing is gained by keeping it in memory.
    cache = "none" if data.cache == "memory" else data.cache
    control = control if control != "none" else data.frame_control
    return dataclasses.replace(data, cache=cache, text_features=None, frame_control=control)


def _narrow(dtype: str) -> str:
    """The type in which attentive probes compute: that of the run, but float64 is not needed."""
    return "float32" if dtype == "float64" else dtype


def _encoders(
    config: ConfigDict,
    wanted: Wanted,
    restore: Callable[[Method, jax.sharding.Mesh], Restored],
    section: ConfigDict,
    mesh: jax.sharding.Mesh,
) -> list[tuple[probes_features.Encoder, dict[str, Any]]]:
    """What is measured, and what the files say it is."""
    if wanted.pixels and not wanted.random_init:
        return [_pixels(config, section)]
    method = methods.from_config(config)
    configs.check_run(config, method, mesh.size)
    if wanted.random_init:
        state, about = restoring.initializer(config, method, mesh).create(), {"seed": config.seed}
        name = "random_init"
    else:
        restored = restore(method, mesh)
        state, about = restored.state, {"checkpoint_step": restored.step}
        name = probes_results.TRAINED
    averaged = state.target_params is not None and not wanted.online
    if wanted.online and state.target_params is None:
        raise UserError(
            f"--online: {config.method} keeps no moving average of its parameters, so there is "
            "nothing else to measure; leave the flag out"
        )
    params = state.averaged if averaged else state.params
    about |= {"parameters": "moving average" if averaged else "as trained"}
    encoder = _encoder(
        config, section, method, params, state.method_state, f"{name}{'_online' * wanted.online}"
    )
    return [(encoder, about), *([_pixels(config, section)] if wanted.pixels else [])]


def _encoder(
    config: ConfigDict, section: ConfigDict, method: Method, params: Any, state: Any, name: str
) -> probes_features.Encoder:
    # How training saw the clips makes no other network.
    model = {key: value for key, value in config.model.items() if key != "augment"}
    described = [config.method, workdir.plain(model), config.dtype]
    return probes_features.of_method(
        method, params, state, described, pooling=section.pooling, name=name
    )


def _pixels(
    config: ConfigDict, section: ConfigDict
) -> tuple[probes_features.Encoder, dict[str, Any]]:
    path = DataConfig.parse(config.data).sources[0][0]
    grey = isinstance(sources.open_source(path, section.test_split).split, idx.IdxSplit)
    encoder = probes_features.of_pixels(section.pixel_size, grey=grey)
    return encoder, {"pixels": f"at most {section.pixel_size} a side, {'grey' if grey else 'RGB'}"}


def _measure(
    directory: str | Path,
    suite: probes.Suite,
    encoder: probes_features.Encoder,
    about: dict[str, Any],
    wanted: Wanted,
) -> None:
    name = encoder.name
    if wanted.frame_control != "none":
        name = f"{name}_{wanted.frame_control}"
    about = {**about, "frame_control": wanted.frame_control, "digest": encoder.digest}
    measured = probes_results.Measured(directory, name, about)
    for label in suite.labels:
        for probe in wanted.probes:
            identity = suite.identity(encoder, label, probe)
            if measured.has(label, probe, identity):
                continue
            if jax.process_index() == 0:
                print(f"measuring {label} of {name} with {probe}", flush=True)
            numbers, hits = suite.measure(encoder, label, probe)
            if jax.process_index() == 0:
                measured.add(
                    label,
                    probe,
                    identity=identity,
                    protocol=suite.protocol(label, probe),
                    numbers=numbers,
                    hits=hits,
                )


def _from_flags() -> None:
    config, directory = train.from_flags()
    wanted = Wanted(
        probes=tuple(PROBES.value),
        checkpoint=restoring.CHECKPOINT.value,
        random_init=RANDOM_INIT.value,
        pixels=PIXELS.value,
        online=ONLINE.value,
        frame_control=FRAME_CONTROL.value,
    )
    with hosts.together():
        main(config, directory, wanted, devices=train.DEVICES.value)


if __name__ == "__main__":
    cli.run_absl(_from_flags)
