"""Pictures through their entry point, of a tiny model that was trained for a step."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import pictures, restoring
from jepa import methods
from jepa.data import config as data_configs
from jepa.data import loader
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.methods import i_jepa
from jepa.methods.base import Outputs
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop


def write_idx(directory, split, count):
    rng = np.random.default_rng(0)
    for name, array in (
        ("images-idx3", rng.integers(0, 256, (count, 16, 16), np.uint8)),
        ("labels-idx1", rng.integers(0, 3, count).astype(np.uint8)),
    ):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (directory / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())


def make_config(data):
    config = ConfigDict({"seed": 0, "method": "jepa.methods.i_jepa.IJEPA", "dtype": "float32"})
    config.mesh = configs.default_mesh_config()
    config.data = data_configs.default_data_config()
    config.data.update(
        path=f"idx:{data}", streams=("video", "masks"), frames=1, size=16, patch=4,
        masks={"sampler": "multiblock"},
    )  # fmt: skip
    config.model = i_jepa.default_model()
    config.model.encoder.update(patch=4, width=8, depth=1, heads=2)
    config.model.predictor.update(width=8, depth=1, heads=2)
    config.loss = i_jepa.default_loss()
    config.optimizer = configs.default_optimizer_config()
    config.ema = configs.default_ema_config()
    config.train = configs.default_train_config()
    config.train.update(steps=1, global_batch=8)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data, workdir = (tmp_path_factory.mktemp(name) for name in ("data", "run"))
    for split in ("train", "test"):
        write_idx(data, split, 20)
    config = configs.resolve(make_config(data))
    mesh = meshes.make_mesh(config.mesh)
    batches = loader.make_train_loader(config.data, global_batch=8, seed=0)
    loop.train(config, workdir, method=methods.from_config(config), loader=batches, mesh=mesh)
    return make_config(data), workdir


def test_every_kind_of_picture_is_of_the_moving_average(trained, tmp_path, capsys, monkeypatch):
    config, workdir = trained
    kept = {}

    def keep(module, name):
        called = getattr(module, name)

        def call(*given, **named):
            kept[name] = called(*given, **named)
            return kept[name]

        monkeypatch.setattr(module, name, call)

    keep(pictures, "load")
    keep(restoring, "restore")
    written = pictures.main(config, workdir, tmp_path, split="test", clips=3, nearest=2)
    assert [path.name for path in written] == ["masks.png", "pca.png", "neighbours.png"]
    sizes = [Image.open(path).size for path in written]
    assert sizes[0] == (3 * 4 * 28 + 2 * 4, 4 * 28)  # a 4 x 4 grid, three samples
    assert sizes[1] == (72, 3 * (72 + 2 + 72) + 2 * 8)
    assert "red, green and blue hold" in capsys.readouterr().out

    encoder, state = kept["load"], kept["restore"].state
    frames, words = encoder.clips(range(5))
    assert set(words.values()) <= {"0", "1", "2"}
    video = np.stack([frames[n] for n in range(5)])
    method = methods.from_config(configs.resolve(config))
    wanted = method.embed(state.target_params, state.method_state, {"video": video})
    np.testing.assert_allclose(encoder.pooled(5), wanted.pooled["video"], atol=1e-5)
    np.testing.assert_allclose(
        encoder.tokens(5).reshape(5, 16, 8), wanted.tokens["video"], atol=1e-5
    )
    scales = [x["encoder"]["norm"]["scale"] for x in (state.params, state.target_params)]
    assert not np.array_equal(*scales)


def test_a_clip_moves(tmp_path):
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)

    class Fake(pictures.Encoder):
        def tokens(self, count):
            return np.random.default_rng(1).standard_normal((count, 2, 4, 4, 8))

        def clips(self, numbers):
            return {n: clips[n] for n in numbers}, {}

    encoder = Fake(None, 2, (2, 4, 4), DataConfig(), "test")
    written = pictures.draw_pca(encoder, 2, tmp_path)
    assert [path.name for path in written] == ["pca.png", "pca.gif", "pca.mp4"]
    with Image.open(tmp_path / "pca.gif") as image:
        assert image.n_frames == 4 and image.size == (2 * 128 + 4, 2 * 128 + 4)


def test_masks_need_no_run(trained, tmp_path):
    config, _ = trained
    tubes = make_config(config.data.path.removeprefix("idx:"))
    tubes.data.update(frames=4, tubelet=2, masks={"sampler": "tubes"})
    tubes.model.encoder.tubelet = 2
    written = pictures.main(tubes, None, tmp_path, kinds=["masks"], clips=2)
    assert Image.open(written[0]).size == (2 * 4 * 28 + 4, 4 * 4 * 28 + 3 * 4)


def test_mistakes_are_named(trained, tmp_path):
    config, workdir = trained
    for kinds, run, words in (
        (["pca", "mask"], workdir, "--kinds=pca,mask: choose from"),
        ([], workdir, "--kinds="),
        (["pca"], None, "--workdir=DIR is needed"),
        (["neighbours"], tmp_path / "none", "holds no checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            pictures.main(config, run, tmp_path / "out", kinds=kinds)
    plain = make_config("x")
    plain.data.streams = ("video",)
    with pytest.raises(UserError, match="leave masks out of --kinds"):
        pictures.main(plain, None, tmp_path / "out", kinds=["masks"])
    with pytest.raises(UserError, match="test2"):
        pictures.main(config, workdir, tmp_path / "out", kinds=["pca"], split="test2")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_drawn_is_said_in_a_sentence(tmp_path):
    write_idx(tmp_path, "test", 3)
    data = DataConfig.parse({"path": f"idx:{tmp_path}", "frames": 1, "size": 16})

    def encoder(value, width=8):
        def embed(video):
            made = np.full((len(video), 1, width), value, np.float32)
            return Outputs(tokens={"video": made}, pooled={"video": made[:, 0]})

        return pictures.Encoder(embed, 2, (1, 1, 1), data, "test")

    with pytest.raises(UserError, match="3 tokens of 8 numbers.*raise --clips"):
        pictures.draw_pca(encoder(1.0), 4, tmp_path)
    with pytest.raises(UserError, match="not finite.*earlier checkpoint"):
        pictures.draw_pca(encoder(np.nan), 4, tmp_path)
    with pytest.raises(UserError, match="not finite"):
        pictures.draw_neighbours(encoder(np.nan), 2, 1, 3, tmp_path)
    with pytest.raises(UserError, match="--split=test has one clip"):
        pictures.draw_neighbours(encoder(1.0), 2, 1, 1, tmp_path)
