"""A source and methods without networks: the answer is painted into the clip.

Frame values of clip i spell its index; the toy methods look up what belongs to it. The letters of a
text are its ids, so a text's vector can be drawn from its hash alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jepa.data.schema import Caption, Question, Record
from jepa.data.tokenize import text_hashes
from jepa.methods.base import Outputs

COLOURS, WAYS = ("red", "green", "blue"), ("left", "right")
ATTRIBUTES = {
    "colour": {name: [f"a {name} shape", f"something {name}"] for name in COLOURS},
    "direction": {way: [f"moves {way}"] for way in WAYS},
}
CAPTION = "What happens?"
LENGTH = 48


def record(index: int, split: str) -> Record:
    colour, way = COLOURS[index % 3], WAYS[index % 2]
    noun = f"thing {index // 2 if split == 'hard' else index}"
    return Record(
        key=f"{split}-{index}",
        video=b"",
        width=4,
        height=4,
        frames=4,
        fps=4.0,
        captions=(
            Caption("0", f"{colour}", "brief"),
            Caption("1", f"{split} {noun} moves {way}", "full"),
        ),
        questions=(
            Question("c", "Which colour?", colour, "colour", COLOURS),
            Question("w", "Which way?", way, "direction", WAYS),
        ),
        labels={"colour": colour, "direction": way},
        group=f"g{index // 2}" if split == "hard" else None,
    )


class ToySource:
    attributes = ATTRIBUTES
    caption_query = CAPTION

    def __init__(self, count: int = 40, frame_control: str = "none"):
        self.frame_control = frame_control
        self.splits = {
            split: [record(i, split) for i in range(count)]
            for split in ("validation", "hard", "novel")
        }
        self.passes: list[tuple[str, str, int]] = []

    def records(self, split):
        return self.splits[split]

    def clips(self, split, control, indices):
        self.passes.append((split, control, max(indices) + 1))
        number = list(self.splits).index(split)
        for start in range(0, len(indices), 7):
            video = np.zeros((7, 2, 4, 4, 3), np.uint8)
            for row, index in enumerate(indices[start : start + 7]):
                video[row, :, 0, 0, 0] = index if control == "none" else 255
                video[row, :, 0, 0, 1] = number
            yield len(indices[start : start + 7]), video

    def frames(self, split, indices):
        rng = np.random.default_rng(0)
        return {i: rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8) for i in indices}

    def encode_queries(self, texts):
        ids = np.zeros((len(texts), LENGTH), np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = [ord(letter) for letter in text[:LENGTH]]
        return {"ids": ids, "mask": ids > 0}

    def encode_texts(self, texts):
        return {**self.encode_queries(texts), "hash": text_hashes(texts)}


def _vectors(hashes):
    def draw(value):
        vector = jax.random.normal(jax.random.key(value), (32,))
        return vector / jnp.linalg.norm(vector)

    return jax.vmap(draw)(hashes)


class Perfect:
    """Answers every query about a clip with the right text; knows the source by heart.

    Args:
      hears: a query -> the text that answers it, or None for one vector that never changes.
    """

    def __init__(self, source: ToySource):
        self.traces = 0
        queries = (CAPTION, "Which colour?", "Which way?")
        self.ids = source.encode_queries(queries)["ids"]
        answers = []
        for split in source.splits:
            rows = source.records(split)
            answers.append(
                [[r.captions[-1].text, r.questions[0].answer, r.questions[1].answer] for r in rows]
            )
        flat = [text for split in answers for row in split for text in row]
        shape = (len(answers), len(answers[0]), 3)
        self.table = jnp.asarray(text_hashes(flat).reshape(shape))

    def embed(self, params, state, batch):
        self.traces += 1
        pooled = {}
        if "video" in batch:
            index = batch["video"][:, 0, 0, 0, 0].astype(jnp.int32)
            split = batch["video"][:, 0, 0, 0, 1].astype(jnp.int32)
            same = (batch["query"]["ids"][:, None] == self.ids[None]).all(-1)
            known = self.table[split, jnp.clip(index, 0, self.table.shape[1] - 1), same.argmax(1)]
            # An index of 255 is a clip whose content a control took away.
            pooled["prediction"] = _vectors(jnp.where(index == 255, 0, known))
        if "text" in batch:
            pooled["target"] = _vectors(batch["text"]["hash"])
        return Outputs(pooled=pooled)


class Random(Perfect):
    """Answers with a vector drawn from the clip alone."""

    def embed(self, params, state, batch):
        outputs = super().embed(params, state, batch)
        if "video" in batch:
            pixel = batch["video"][:, 0, 0, 0].astype(jnp.int32)
            seeds = pixel[:, 0] + 1000 * pixel[:, 1] + 7 * batch["query"]["ids"].sum(1)
            return Outputs(pooled={"prediction": _vectors(seeds)})
        return outputs
