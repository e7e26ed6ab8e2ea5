"""Weights of torch modules as our parameter trees, for parity tests."""

import numpy as np
import torch


def randomise(module, seed=0, scale=0.2):
    """Draws every parameter anew, so that biases and scales count and attention is not flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = scale * torch.randn(p.shape, generator=generator)
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + noise if is_scale else noise)
    return module.eval()


def arrays(module):
    return {name: p.detach().numpy() for name, p in module.state_dict().items()}


def linear(weights, name):
    tree = {"kernel": weights[f"{name}.weight"].T}
    return tree | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def norm(weights, name):
    tree = {"scale": weights[f"{name}.weight"]}
    return tree | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def attention(weights, queries, keys, values, out, *, heads, kv_heads):
    """Fuses three torch projections into `[D, G, R + 2, K]`, group by group."""
    fused = {}
    for kind in ("weight", "bias"):
        if f"{queries}.{kind}" not in weights:
            continue
        q, k, v = (weights[f"{name}.{kind}"] for name in (queries, keys, values))
        head_dim = q.shape[0] // heads
        ratio = heads // kv_heads
        tail = q.shape[1:]
        parts = [
            q.reshape(kv_heads, ratio, head_dim, *tail),
            k.reshape(kv_heads, 1, head_dim, *tail),
            v.reshape(kv_heads, 1, head_dim, *tail),
        ]
        joined = np.concatenate(parts, axis=1)
        fused["kernel" if tail else "bias"] = np.moveaxis(joined, 3, 0) if tail else joined
    projected = linear(weights, out)
    width = projected["kernel"].shape[-1]
    projected["kernel"] = projected["kernel"].reshape(heads, -1, width)
    return {"qkv": fused, "out": projected}


def stack(layers):
    first = layers[0]
    if not isinstance(first, dict):
        return np.stack(layers)
    return {name: stack([layer[name] for layer in layers]) for name in first}
