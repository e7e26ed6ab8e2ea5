"""Features of a frozen text tower, computed once and then read as if they were data.

A frozen Y-encoder gives the same vector to a text at every step, so a train set's texts are
embedded before the first step and the loader hands out their features. Later runs over the same
dataset, tower and tokenizer find them on disk.

F features of a text, L tokens.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from jepa.data.cache import TextFeatures, read_meta
from jepa.data.config import DataConfig
from jepa.data.dataset import Dataset
from jepa.data.tokenize import Tokenizer, find_tokenizer
from jepa.methods.base import Method

BATCH = 256
LENGTHS = (8, 12, 16, 24)  # texts are padded to the next of these, so that few programs compile


def cache_text_features(data: ConfigDict, method: Method) -> ConfigDict:
    """Returns `data` with `text_features` set, having computed what was missing.

    Does nothing unless the method offers `cached_text_tower`: (pretrained parameters, jittable
    function of them, ids `[B, L]` and mask `[B, L]` that gives `[B, F]`).
    """
    tower = getattr(method, "cached_text_tower", lambda: None)()
    if tower is None or data.get("text_features"):
        return data
    params, encode = tower
    parsed = DataConfig.parse(data)
    directories = [path for path, _ in parsed.sources if not path.startswith("tfds:")]
    texts = sorted({t for d in directories for t in Dataset.open(d).split(parsed.split).texts()})
    tokenizer = Tokenizer(find_tokenizer(parsed.tokenizer, directories[0]), parsed.text_length)
    fingerprint = _fingerprint(params, tokenizer, texts)
    path = Path(directories[0]) / "cache" / f"text_features-{fingerprint[:16]}"
    meta = read_meta(path)
    if meta is None or meta.get("fingerprint") != fingerprint:
        features = _embed(jax.jit(encode), params, tokenizer, texts)
        TextFeatures.write(path, texts, features, fingerprint)
    data = data.copy_and_resolve_references()
    with data.unlocked():
        data.text_features = str(path)
    return data


def _fingerprint(params: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    digest.update(tokenizer.path.read_bytes())
    digest.update(str(tokenizer.length).encode())
    digest.update("\0".join(texts).encode())
    return digest.hexdigest()


def _embed(encode: Any, params: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Features `[len(texts), F]`, float32; short texts run in short batches."""
    tokens = tokenizer(texts)
    lengths = tokens["mask"].sum(axis=1)
    params = jax.device_put(params)
    features: np.ndarray | None = None
    bar = tqdm.tqdm(
        total=len(texts), desc="text features", unit="text", disable=not sys.stderr.isatty()
    )
    if not sys.stderr.isatty():
        print(f"text features: embedding {len(texts)} texts once", file=sys.stderr, flush=True)
    low = 0
    for high in sorted({min(length, tokenizer.length) for length in (*LENGTHS, tokenizer.length)}):
        rows = np.flatnonzero((lengths > low) & (lengths <= high))
        low = high
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            padded = np.resize(chosen, BATCH)  # every batch has one shape; the surplus repeats
            out = encode(params, tokens["ids"][padded, :high], tokens["mask"][padded, :high])
            out = np.asarray(out, np.float32)[: len(chosen)]
            if features is None:
                features = np.empty((len(texts), out.shape[1]), np.float32)
            features[chosen] = out
            bar.update(len(chosen))
    bar.close()
    assert features is not None, "a dataset without texts has no features to ask for"
    return features
