"""What tests of conversion share: tiny random models, comparisons, warnings that must not come."""

import contextlib
import logging

import numpy as np
import torch
from safetensors import safe_open

# Without optimisation XLA compiles in a fraction of the time; results are the same to rounding.
FAST = {"xla_backend_optimization_level": 0}


def randomise(module, seed=0, scale=0.1):
    """Draws every parameter anew, so that biases and scales count and attention is not flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = scale * torch.randn(p.shape, generator=generator)
            p.copy_(1 + noise if p.ndim == 1 and name.endswith("weight") else noise)
    return module.eval()


def tensors(directory):
    """All tensors of a directory by name, as bytes with their types and shapes."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                found[name] = (tensor.dtype, tuple(tensor.shape), raw)
    return found


def assert_close(ours, theirs, tolerance=1e-4):
    """Largest difference, as a share of the largest number of the expected (`pytest -s`)."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"largest difference: {difference:.1e} of {tolerance:.0e}")
    assert difference <= tolerance
    assert theirs.std() > 1e-3


@contextlib.contextmanager
def silent(caplog):
    """Fails when `transformers` warns of anything."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    caplog.clear()
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def torch_video(video):
    """`[B, T, H, W, C]` as `transformers` takes it, `[B, T, C, H, W]`."""
    return torch.tensor(video.transpose(0, 1, 4, 2, 3).copy())
