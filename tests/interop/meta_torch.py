"""Plain torch forward passes of Meta's models, written from the facts; and tiny random weights."""

import math

import torch
from torch.nn import functional as F

WRAPPED = "module.backbone."


def linear(outputs, inputs, generator):
    return {
        "weight": 0.15 * torch.randn(outputs, inputs, generator=generator),
        "bias": 0.1 * torch.randn(outputs, generator=generator),
    }


def norm(width, generator):
    return {
        "weight": 1 + 0.1 * torch.randn(width, generator=generator),
        "bias": 0.1 * torch.randn(width, generator=generator),
    }


def conv(width, *cell, generator):
    return {
        "weight": 0.1 * torch.randn(width, 3, *cell, generator=generator),
        "bias": 0.1 * torch.randn(width, generator=generator),
    }


def named(parts):
    return {f"{part}.{name}": t for part, of in parts.items() for name, t in of.items()}


def blocks(prefix, depth, width, hidden, generator):
    found = {}
    for i in range(depth):
        parts = {
            "norm1": norm(width, generator),
            "attn.qkv": linear(3 * width, width, generator),
            "attn.proj": linear(width, width, generator),
            "norm2": norm(width, generator),
            "mlp.fc1": linear(hidden, width, generator),
            "mlp.fc2": linear(width, hidden, generator),
        }
        found |= {f"{prefix}.{i}.{name}": t for name, t in named(parts).items()}
    return found


def wrapped(state, prefix=WRAPPED):
    return {prefix + name: tensor for name, tensor in state.items()}


def layer_norm(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def apply(x, state, name):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def turn(x, place, tiled):
    """Rotates `[B, H, N, K]` by `[B or 1, N]` places, in adjacent pairs."""
    count = x.shape[-1] // 2
    angles = place[:, None, :, None] / 10000 ** (torch.arange(count) / count)
    angles = torch.cat([angles, angles], -1) if tiled else angles.repeat_interleave(2, -1)
    even, odd = x[..., 0::2], x[..., 1::2]
    partner = torch.stack([-odd, even], -1).flatten(-2)
    return x * angles.cos() + partner * angles.sin()


def rope(x, places, tiled):
    """Turns a third each by frame, row and column; what is left over stays."""
    size = 2 * (x.shape[-1] // 3 // 2)
    pieces = [turn(x[..., i * size : (i + 1) * size], places[i], tiled) for i in range(3)]
    return torch.cat([*pieces, x[..., 3 * size :]], -1)


def places_of(ids, grid, stretch=None):
    """Frame, row and column of token ids `[B, N]`; rows and columns stretched to `stretch`."""
    _, rows, columns = grid
    frame, row, column = ids // (rows * columns), ids % (rows * columns) // columns, ids % columns
    if stretch is None:
        return frame.float(), row.float(), column.float()
    row, column = (p * (stretch - 1) / (count - 1) for p, count in ((row, rows), (column, columns)))
    return frame.float(), row, column


def block(x, state, name, heads, places=None, tiled=False):
    batch, tokens, width = x.shape
    y = apply(layer_norm(x, state, f"{name}.norm1"), state, f"{name}.attn.qkv")
    q, k, v = y.reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    if places is not None:
        q, k = rope(q, places, tiled), rope(k, places, tiled)
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
    x = x + apply(y, state, f"{name}.attn.proj")
    y = apply(layer_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1")
    return x + apply(F.gelu(y), state, f"{name}.mlp.fc2")


def tokens_of(video, state, name):
    """Patches of `[B, T, H, W, 3]` as `[B, N, D]`."""
    weight = state[f"{name}.weight"]
    pixels = video.permute(0, 4, 1, 2, 3)
    if weight.ndim == 4:
        x = F.conv2d(pixels[:, :, 0], weight, state[f"{name}.bias"], stride=weight.shape[-2:])
        return x.flatten(2).transpose(1, 2)
    x = F.conv3d(pixels, weight, state[f"{name}.bias"], stride=weight.shape[-3:])
    return x.flatten(2).transpose(1, 2)


def axis_table(count, width):
    frequencies = 1 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def table_3d(grid, width):
    """V-JEPA's table: equal shares for frame, row and column, cut off at the width."""
    share = 2 * math.ceil(width / 6)
    frame, row, column = (axis_table(n, share) for n in grid)
    full = torch.cat(
        [
            frame[:, None, None].expand(*grid, share),
            row[None, :, None].expand(*grid, share),
            column[None, None].expand(*grid, share),
        ],
        -1,
    )
    return full.reshape(1, -1, 3 * share)[..., :width].float()


def table_2d(side, width):
    """I-JEPA's table: the first half says the column, the second the row."""
    axis = axis_table(side, width // 2)
    shape = (side, side, width // 2)
    return (
        torch.cat([axis[None].expand(shape), axis[:, None].expand(shape)], -1)
        .reshape(1, -1, width)
        .float()
    )


def stretched(table, made_for, grid):
    """A table of some (tubelets, rows, columns), or of a square's side, on another grid."""
    width = table.shape[-1]
    if isinstance(made_for, int):
        found = table.reshape(1, made_for, made_for, width).permute(0, 3, 1, 2)
        if grid[1:] != (made_for, made_for):
            found = F.interpolate(found, grid[1:], mode="bicubic")
    else:
        found = table.reshape(1, *made_for, width).permute(0, 4, 1, 2, 3)
        if grid != made_for:
            scales = [to / size for to, size in zip(grid, made_for, strict=True)]
            found = F.interpolate(found, scale_factor=scales, mode="trilinear")
    return found.flatten(2).transpose(1, 2)
