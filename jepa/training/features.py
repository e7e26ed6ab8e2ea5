"""Features of a frozen text tower, computed once and then read as if they were data.

A frozen Y-encoder gives the same vector to a text at every step, so a train set's texts are
embedded before the first step and the loader hands out their features. Later runs over the same
dataset, tower and tokenizer find them on disk.

F features of a text, L tokens.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jepa.data import sources
from jepa.data.cache import TextFeatures
from jepa.data.config import DataConfig
from jepa.data.dataset import Dataset
from jepa.data.jobs import Progress
from jepa.data.tokenize import Tokenizer, find_prompt, find_tokenizer
from jepa.errors import UserError
from jepa.methods.base import Method
from jepa.training import fingerprint

BATCH = 256
LENGTHS = (8, 12, 16, 24)  # texts are padded to the next of these, so that few programs compile

Encode = Callable[[Any, Any, Any], jax.Array]


def cache_text_features(data: ConfigDict, method: Method) -> ConfigDict:
    """Returns `data` with `text_features` set, having computed what was missing.

    Does nothing unless the method offers `cached_text_tower`: (pretrained parameters, jittable
    function of them, ids `[B, L]` and mask `[B, L]` that gives `[B, F]`). Nor where a source is a
    TFDS set, whose texts are not listed anywhere: the tower then runs in every step.

    Raises:
      UserError: a dataset has no texts, or its directory cannot be written.
    """
    tower = getattr(method, "cached_text_tower", lambda: None)()
    if tower is None or data.get("text_features"):
        return data
    params, encode = tower
    parsed = DataConfig.parse(data)
    directories = [path for path, _ in parsed.sources]
    if not all(map(sources.is_dataset, directories)):
        return data
    texts = _texts(directories, parsed.split)
    found = find_tokenizer(parsed.tokenizer, directories[0])
    prompt = find_prompt(parsed.text_prompt, found)
    tokenizer = Tokenizer(found, parsed.text_length, prompt)
    check_vocabulary = getattr(method, "check_vocabulary", None)
    if check_vocabulary is not None:
        check_vocabulary({"text": tokenizer.vocabulary_size})
    fingerprint = _fingerprint(encode, params, tokenizer, texts)
    path = Path(directories[0]) / "cache" / f"text_features-{fingerprint[:16]}"
    if not TextFeatures.whole(path, fingerprint):
        check_writable(path.parent, "features of a dataset's texts")
        features = _embed(jax.jit(encode), params, tokenizer, texts)
        TextFeatures.write(path, texts, features, fingerprint)
    data = data.copy_and_resolve_references()
    with data.unlocked():
        data.text_features = str(path)
    return data


def _texts(directories: Sequence[str], split: str) -> list[str]:
    """Distinct texts of the datasets, sorted; UserError naming one that has none."""
    texts: set[str] = set()
    for directory in directories:
        own = Dataset.open(directory).split(split).texts()
        if not own:
            raise UserError(
                f"the split {split!r} of {directory} has no caption and no answer, which this "
                "method learns from; add them and prepare the dataset again, or name another one"
            )
        texts.update(own)
    return sorted(texts)


def check_writable(directory: Path, what: str) -> None:
    """Raises UserError before the work of minutes, not after it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(
            f"the {what} are kept beside it, but {directory} cannot be written "
            f" ({error.strerror or error}); free space or make it writable, or copy the "
            "dataset to where it is"
        ) from error


def _fingerprint(encode: Encode, params: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    """Of all that decides the features: the program, its types, the weights and the inputs."""
    digest = hashlib.sha256()
    ids = jax.ShapeDtypeStruct((1, LENGTHS[0]), np.int32)
    mask = jax.ShapeDtypeStruct((1, LENGTHS[0]), np.bool_)
    program = fingerprint.program(encode, params, ids, mask)
    digest.update(f"2 {jax.default_backend()} {program}".encode())
    fingerprint.add_arrays(digest, params)
    digest.update(tokenizer.path.read_bytes())
    digest.update(f"{tokenizer.length}{tokenizer.prompt}".encode())
    digest.update("\0".join(texts).encode())
    return digest.hexdigest()


def _embed(encode: Encode, params: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Features `[len(texts), F]`, float32; short texts run in short batches."""
    tokens = tokenizer(texts)
    lengths = tokens["mask"].sum(axis=1)
    params = jax.device_put(params)
    features = np.empty((0, 0), np.float32)
    low = 0
    shown = Progress("embedding the texts once", len(texts), "text", main=jax.process_index() == 0)
    with shown as progress:
        for high in sorted({min(n, tokenizer.length) for n in (*LENGTHS, tokenizer.length)}):
            rows = np.flatnonzero((lengths > low) & (lengths <= high))
            low = high
            for start in range(0, len(rows), BATCH):
                chosen = rows[start : start + BATCH]
                padded = np.resize(chosen, BATCH)  # every batch has one shape; the surplus repeats
                out = encode(params, tokens["ids"][padded, :high], tokens["mask"][padded, :high])
                if not features.size:
                    features = np.empty((len(texts), out.shape[1]), np.float32)
                features[chosen] = np.asarray(out, np.float32)[: len(chosen)]
                progress.add(len(chosen))
    return features
