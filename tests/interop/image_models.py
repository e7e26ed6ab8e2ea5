"""Tiny image towers of `transformers`, of every kind that converts, with random weights."""

import hugging
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

PATCH, SIDE, WIDTH, DEPTH = 4, 3, 24, 2
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
IMAGE = {**SIZES, "image_size": PATCH * SIDE}
# By a name of ours: `--model`, and what makes a model.
KINDS = {
    "vit": ("vit", lambda: ViTModel(ViTConfig(**IMAGE, intermediate_size=40))),
    "dinov2": ("dinov2", lambda: Dinov2Model(Dinov2Config(**IMAGE, mlp_ratio=2))),
    # As the giant is; its own code stretches positions in a way of its own.
    "registers": (
        "dinov2",
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                **IMAGE, mlp_ratio=2, num_register_tokens=3, use_swiglu_ffn=True
            )
        ),
    ),
    "siglip": (
        "siglip",
        lambda: SiglipVisionModel(SiglipVisionConfig(**IMAGE, intermediate_size=40)),
    ),
    "naflex": (
        "siglip",
        lambda: Siglip2VisionModel(
            Siglip2VisionConfig(**SIZES, intermediate_size=40, num_patches=SIDE**2)
        ),
    ),
}


def make(kind):
    """A model with weights that make every parameter count."""
    torch.manual_seed(0)
    return hugging.randomise(KINDS[kind][1]())


def run(theirs, images):
    """Its output for float `[B, H, W, 3]`, at any size."""
    if "siglip2" in theirs.config.model_type:
        return theirs(**_patches(images), output_hidden_states=True)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    more = {"output_hidden_states": True}
    if "dinov2" not in theirs.config.model_type:
        more["interpolate_pos_encoding"] = True
    return theirs(pixels, **more)


def _patches(images):
    """Images as SigLIP 2's processor for any aspect cuts them, without padding."""
    batch, height, width, _ = images.shape
    rows, columns = height // PATCH, width // PATCH
    cut = images.reshape(batch, rows, PATCH, columns, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return {
        "pixel_values": torch.tensor(cut.reshape(batch, rows * columns, -1).copy()),
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.long),
        "spatial_shapes": torch.tensor([[rows, columns]] * batch),
    }
