"""An encoder leaves one run and teaches another: every step by the entry points."""

import gzip
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import export, train
from jepa import methods
from jepa.errors import UserError
from jepa.interop import parameters, starting
from jepa.methods import v_jepa_2_1
from jepa.training import config as configs


def write(directory):
    """Pictures in MNIST's files."""
    rng = np.random.default_rng(0)
    for name, shape in (("images-idx3", (12, 8, 8)), ("labels-idx1", (12,))):
        array = rng.integers(0, 9, shape, np.uint8)
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (directory / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def tiny(directory, *, teacher=None):
    name = "VJEPA21" if teacher is None else "Distillation"
    config = ConfigDict({"seed": 0, "method": f"jepa.methods.v_jepa_2_1.{name}"})
    config.mesh = {"data": 1}
    config.data = {
        "path": f"idx:{directory}",
        "streams": ("video", "masks"),
        "frames": 1,
        "size": 8,
    }
    kinds = {"image": {"blocks": 3, "scale": 0.2}}
    config.data.update(patch=2, tubelet=2, masks={"sampler": "tubes", "kinds": kinds})
    config.model = v_jepa_2_1.default_model()
    size = {"patch": 2, "width": 16, "depth": 1, "heads": 2, "taps": ()}
    config.model.encoder.update(size)
    config.ema = configs.default_ema_config()
    if teacher is not None:
        config.model = v_jepa_2_1.default_distillation()
        config.model.encoder.update(size, width=12, heads=1)
        config.model.teacher.update(size, weights=str(teacher))
        del config.ema
    config.model.predictor.update(width=12, depth=1, heads=1)
    config.loss = v_jepa_2_1.default_loss()
    config.train = {"steps": 1, "global_batch": 4, "health_every": 0}
    return config


@pytest.mark.slow
def test_a_teacher_is_exported_and_put_into_the_student(tmp_path, capsys):
    write(tmp_path)
    result = train.main(tiny(tmp_path), tmp_path / "teacher")
    out = tmp_path / "teacher.safetensors"
    export.main(tiny(tmp_path), tmp_path / "teacher", out)
    assert "encoder of step 1" in capsys.readouterr().out
    want, got = result.state.target_params["encoder"], parameters.load(out)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(want), got)
    export.main(tiny(tmp_path), tmp_path / "teacher", tmp_path / "all.safetensors", part="")
    want = {"encoder": want, "predictor": result.state.params["predictor"]}
    everything = parameters.load(tmp_path / "all.safetensors")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(want), everything)
    fields = json.loads(parameters.about(tmp_path / "all.safetensors")["fields"])
    assert fields["encoder"]["width"] == 16 and fields["predictor"]["width"] == 12
    student = methods.from_config(configs.resolve(tiny(tmp_path, teacher=out)))
    found = starting.read(student.pretrained())
    jax.tree.map(np.testing.assert_array_equal, found, {"teacher": got})
    with pytest.raises(UserError, match="--part=decoder: the parameters have encoder, predictor"):
        export.main(tiny(tmp_path), tmp_path / "teacher", out, part="decoder")
