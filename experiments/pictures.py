"""Pictures of what a trained encoder sees, and of masks.

    python -m experiments.pictures --config=configs/v_jepa_2/world.py --workdir=DIR --out=DIR \
        [--kinds=pca,neighbours,masks] [--checkpoint=latest|best|STEP] [--split=validation]

Writes into OUT

    pca.png, pca.gif, pca.mp4   main components of the tokens of a few clips, as colours
    neighbours.png              clips of the split, and those with the most similar features
    masks.png                   masks of the first samples, as training draws them

Of a method with a target encoder, the moving average is taken, as in every evaluation. Masks need
no checkpoint, nor a workdir.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from experiments import cli, restoring, train
from jepa import methods
from jepa.data import storage
from jepa.data.config import DataConfig
from jepa.data.evalset import EvalSet
from jepa.errors import UserError
from jepa.evaluation import neighbours, patch_pca
from jepa.masks.config import from_config
from jepa.masks.picture import picture
from jepa.methods.base import Method, Outputs
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import workdir

ALL = ("pca", "neighbours", "masks")

# --config, --workdir and --devices are those of training, --checkpoint of restoring.
OUT = flags.DEFINE_string("out", None, "Directory of the pictures.")
KINDS = flags.DEFINE_list("kinds", list(ALL), "Which pictures.")
SPLIT = flags.DEFINE_string("split", "validation", "Split of the dataset to show.")
CLIPS = flags.DEFINE_integer("clips", 4, "Clips, or samples with masks, to show.", lower_bound=1)
NEAREST = flags.DEFINE_integer("nearest", 5, "Neighbours to show of each.", lower_bound=1)
AMONG = flags.DEFINE_integer("among", 600, "Clips to find neighbours among.", lower_bound=2)

Embed = Callable[[Any], Outputs]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A restored encoder and the split it is shown on.

    Attributes:
      embed: video stream `[B, ...]`, B always the same, to outputs on the host.
      batch: B.
      grid: tubelets, rows and columns of the tokens of a clip.
      data: how clips are seen.
      split: of the dataset.
    """

    embed: Embed
    batch: int
    grid: tuple[int, int, int]
    data: DataConfig
    split: str

    def tokens(self, count: int) -> np.ndarray:
        """Returns float32 `[count, t, h, w, D]` of the first clips."""
        tokens = self._all(count, "tokens")
        if tokens.shape[1] != math.prod(self.grid):
            raise UserError(
                f"the encoder gives {tokens.shape[1]} tokens a clip, and the config's patch and "
                f"tubelet make {self.grid}; pca draws tokens on a grid only"
            )
        return tokens.reshape(len(tokens), *self.grid, -1)

    def pooled(self, count: int) -> np.ndarray:
        """Returns float32 `[count, S]` of the first clips."""
        return self._all(count, "pooled")

    def _all(self, count: int, kind: str) -> np.ndarray:
        parts = []
        for valid, video in EvalSet(self.data, self.split, count).batches(self.batch):
            arrays = getattr(self.embed(video), kind)
            if "video" not in arrays:
                raise UserError(
                    f"the method's embed gives no {kind}['video'] for clips alone, which these "
                    "pictures show; let it return them"
                )
            parts.append(np.asarray(arrays["video"][:valid], np.float32))
            if not np.isfinite(parts[-1]).all():
                raise UserError(
                    f"the encoder's {kind}['video'] are not finite, so there is nothing to show; "
                    "take an earlier checkpoint (--checkpoint=STEP)"
                )
        return np.concatenate(parts)

    def clips(self, numbers: Sequence[int]) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """Returns uint8 frames `[T, H, W, 3]` of some clips, and their labels, by number."""
        shown = EvalSet(dataclasses.replace(self.data, pixels="rgb"), self.split)
        frames: list[np.ndarray] = []
        for valid, video in shown.batches(self.batch, np.asarray(numbers)):
            frames.extend(np.asarray(video)[:valid])
        records = [shown.dataset.split.record(number, video=False) for number in numbers]
        words = [" ".join(record.labels.values()) for record in records]
        return dict(zip(numbers, frames, strict=True)), dict(zip(numbers, words, strict=True))


def token_grid(config: ConfigDict) -> tuple[int, int, int]:
    """Returns tubelets, rows and columns of the tokens of a clip, as the config sets them.

    Raises:
      UserError: no section of the model names a patch.
    """
    sections = [config.data] if config.data.get("patch") else []
    sections += [x for x in config.model.values() if hasattr(x, "keys") and "patch" in x]
    for section in sections:
        side = config.data.size // section["patch"]
        return -(-config.data.frames // section.get("tubelet", 1)), side, side
    raise UserError("config.data.patch and config.model name no patch; pca needs a grid of tokens")


def load(
    config: ConfigDict, directory: str | Path, checkpoint: str, split: str, batch: int = 16
) -> Encoder:
    """Restores the encoder of a run.

    Args:
      config: resolved.
      directory: the workdir.
      checkpoint: `latest`, `best` or a step.
      split: of the dataset.
      batch: clips at a time.

    Raises:
      UserError: a config that does not fit, or no such checkpoint.
    """
    wanted = restoring.find_step(directory, checkpoint, config)
    here = restoring.of_phase(config, directory, wanted)
    mesh = meshes.make_mesh(config.mesh)
    train.distrust_cache(mesh)
    method: Method = methods.from_config(here)
    configs.check_run(here, method, mesh.size)
    state = restoring.restore(config, directory, wanted, method, mesh).state
    params = state.averaged
    shards = meshes.batch_shards(mesh)
    batch = -(-batch // shards) * shards
    run = jax.jit(
        lambda params, state, video: method.embed(params, state, {"video": video}),
        out_shardings=meshes.replicated(mesh),
    )

    def embed(video: Any) -> Outputs:
        with jax.set_mesh(mesh):
            video = jax.device_put(video, meshes.batch_sharding(mesh))
            return jax.device_get(run(params, state.method_state, video))

    # A cache would decode the whole of a split for the few clips that are looked at.
    data = dataclasses.replace(
        DataConfig.parse(here.data), cache="none", streams=("video",), text_features=None
    )
    return Encoder(embed, batch, token_grid(here), data, split)


def draw_pca(encoder: Encoder, clips: int, out: Path) -> list[Path]:
    """Draws the main components of the tokens of the first clips."""
    tokens = encoder.tokens(clips)
    count, least = tokens[..., 0].size, patch_pca.COMPONENTS + 1
    if count < least or tokens.shape[-1] < patch_pca.COMPONENTS:
        raise UserError(
            f"--clips={clips} gives {count} tokens of {tokens.shape[-1]} numbers, and three "
            f"components need {least} tokens of {patch_pca.COMPONENTS}; raise --clips, or leave "
            "pca out of --kinds"
        )
    palette = patch_pca.fit(tokens.reshape(-1, tokens.shape[-1]))
    found, _ = encoder.clips(range(len(tokens)))
    frames = np.stack(list(found.values()))
    painted = np.stack(
        [patch_pca.enlarge(one, *frames.shape[1:4]) for one in patch_pca.paint(tokens, palette)]
    )
    shares = ", ".join(f"{share:.0%}" for share in palette.explained)
    print(f"pca: red, green and blue hold {shares} of the variance of {count} tokens")
    written = [_png(out / "pca.png", patch_pca.grid(frames, painted))]
    if frames.shape[1] > 1:
        moving = patch_pca.beside(frames, painted)
        written.append(_write(out / "pca.gif", patch_pca.gif(moving)))
        written.append(_write(out / "pca.mp4", patch_pca.mp4(moving)))
    return written


def draw_neighbours(encoder: Encoder, clips: int, k: int, among: int, out: Path) -> list[Path]:
    """Draws evenly spread clips of the split beside their nearest neighbours."""
    vectors = encoder.pooled(among)
    if len(vectors) < 2:
        raise UserError(
            f"--split={encoder.split} has one clip, which has no neighbours; name another, or "
            "leave neighbours out of --kinds"
        )
    queries = np.unique(np.linspace(0, len(vectors) - 1, clips).round().astype(int))
    k = min(k, len(vectors) - 1)
    places, similarities = neighbours.nearest(vectors[queries], vectors, k, own=queries)
    frames, words = encoder.clips(sorted({*queries.tolist(), *places.ravel().tolist()}))
    sheet = neighbours.sheet(frames, queries.tolist(), places, similarities, words=words)
    return [_png(out / "neighbours.png", sheet)]


def draw_masks(config: ConfigDict, samples: int, out: Path) -> list[Path]:
    """Draws the masks of the first samples; the kinds of a sampler below one another.

    Raises:
      UserError: the config draws no masks.
    """
    data = DataConfig.parse(config.data)
    if "masks" not in data.streams:
        raise UserError(
            "config.data.streams has no 'masks', so there are none to draw; leave masks out of "
            "--kinds"
        )
    grid = token_grid(config)
    drawn = from_config(data.masks, grid, "data.masks").sample(config.seed, np.arange(samples))
    kinds = {"": drawn} if "context" in drawn else drawn
    cell = max(3, 112 // grid[1])
    rows = []
    for sample in range(samples):
        for name in sorted(kinds):
            mask = kinds[name]
            targets = mask["targets"] if "targets" in mask else mask["target"]
            drawing = picture(mask["context"][sample], targets[sample], grid, cell)
            rows.append(_spaced(np.split(drawing, grid[0], axis=1), axis=1))
    # Of images, samples stand beside one another; of clips, that is where frames are.
    return [_png(out / "masks.png", _spaced(rows, axis=1 if grid[0] == 1 else 0))]


def _spaced(parts: Sequence[np.ndarray], axis: int, gap: int = 4) -> np.ndarray:
    """Puts pictures in a row or a column, with white between them."""
    spaced: list[np.ndarray] = []
    for part in parts:
        shape = list(part.shape)
        shape[axis] = gap
        spaced += [part, np.full(shape, 255, np.uint8)]
    return np.concatenate(spaced[:-1], axis=axis)


def _png(path: Path, image: np.ndarray) -> Path:
    with storage.storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, "PNG", optimize=True)
    return path


def _write(path: Path, content: bytes) -> Path:
    with storage.storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path


def main(
    config: ConfigDict,
    directory: str | Path | None,
    out: str | Path,
    *,
    kinds: Sequence[str] = ALL,
    split: str = "validation",
    clips: int = 4,
    nearest: int = 5,
    among: int = 600,
    checkpoint: str = "latest",
    devices: int | None = None,
) -> list[Path]:
    """Draws in this process and returns what was written.

    Args:
      config: of the run.
      directory: the workdir; None if only masks are drawn.
      out: where to.
      kinds: of `ALL`.
      split: of the dataset.
      clips: how many clips, queries or samples to show.
      nearest: neighbours of each.
      among: how many clips neighbours are looked for in.
      checkpoint: `latest`, `best` or a step.
      devices: CPU devices to show JAX, if its backend has not started.

    Raises:
      UserError: an unknown kind, a config that does not fit, or no checkpoint.
    """
    unknown = sorted(set(kinds) - set(ALL))
    if unknown or not kinds:
        raise UserError(f"--kinds={','.join(kinds)}: choose from {','.join(ALL)}")
    config, out = configs.resolve(config), Path(out)
    written: list[Path] = []
    if "masks" in kinds:
        written += draw_masks(config, clips, out)
    if set(kinds) - {"masks"}:
        if directory is None:
            raise UserError("--workdir=DIR is needed for all kinds of pictures but masks")
        workdir.check(directory, config)
        train.check_data(config)
        train.setup(config, devices=devices)
        encoder = load(config, directory, checkpoint, split)
        if "pca" in kinds:
            written += draw_pca(encoder, clips, out)
        if "neighbours" in kinds:
            written += draw_neighbours(encoder, clips, nearest, among, out)
    for path in written:
        print(f"picture: {path}")
    return written


def _from_flags() -> None:
    if train.CONFIG.value is None or OUT.value is None:
        raise UserError("--config=FILE and --out=DIR are both needed (see --help)")
    if train.WORKDIR.value is not None:
        train.check_path(train.WORKDIR.value)
    main(
        train.CONFIG.value,
        train.WORKDIR.value,
        OUT.value,
        kinds=KINDS.value,
        split=SPLIT.value,
        clips=CLIPS.value,
        nearest=NEAREST.value,
        among=AMONG.value,
        checkpoint=restoring.CHECKPOINT.value,
        devices=train.DEVICES.value,
    )


if __name__ == "__main__":
    cli.run_absl(_from_flags)
