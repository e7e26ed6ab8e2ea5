"""Questions about a scene, with short answers from closed lists.

Every kind is asked only where its answers are drawn uniformly, so that they balance without any
rejection: colours, shapes and sizes are uniform draws; directions are asked where all four are
equally likely; each outcome belongs to one kind of scene, and those kinds have equal weights in
every mixture; which of two things came first or hit the other is a fair coin; as many falls end
without a bounce as with one; whether the steered body pushes the other is drawn before its path.
"""

from __future__ import annotations

import numpy as np

from jepa.data.world import words
from jepa.data.world.stage import Scene

OUTCOMES = (
    "it bounces",
    "it stops",
    "it hides and comes back",
    "it appears",
    "it vanishes",
    "it changes colour",
)

#: Three phrasings of each kind. `{shape}` and `{colour}` name the one that is asked about.
PHRASINGS: dict[str, tuple[str, str, str]] = {
    "colour": (
        "What colour is the {shape}?",
        "Which colour does the {shape} have?",
        "What is the colour of the {shape}?",
    ),
    "shape": (
        "What shape is the {colour} object?",
        "Which shape does the {colour} thing have?",
        "What is the {colour} object?",
    ),
    "size": (
        "What size is the {shape}?",
        "Is the {shape} small or large?",
        "How big is the {shape}?",
    ),
    "direction": (
        "Which way does the {shape} move?",
        "In which direction does the {shape} move?",
        "Where does the {shape} go?",
    ),
    "count": (
        "How many objects are there?",
        "How many shapes can be seen?",
        "What is the number of objects?",
    ),
    "outcome": (
        "What happens to the {shape}?",
        "What happens next?",
        "What does the {shape} do?",
    ),
    "bounce": (
        "Does it bounce?",
        "Does the {shape} bounce?",
        "Does the {shape} come up again?",
    ),
    "order": (
        "What happens first?",
        "Which event comes first?",
        "What is the first thing to happen?",
    ),
    "hit": (
        "Which object moves first?",
        "Which one hits the other?",
        "What starts the collision?",
    ),
    "change": (
        "What colour does the {shape} become?",
        "Which colour does the {shape} have at the end?",
        "What colour is the {shape} in the end?",
    ),
    "possible": (
        "Could this really happen?",
        "Is this possible?",
        "Can this be real?",
    ),
    "push": (
        "Does one object push the other?",
        "Is one of the objects pushed?",
        "Is the other object pushed away?",
    ),
}

ARTICLED = {shape: words.with_article(shape) for shape in words.SHAPES}

#: Kinds whose answer is the fact itself.
_PLAIN = ("colour", "size", "count", "outcome", "bounce", "push", "possible", "change")

CANDIDATES: dict[str, tuple[str, ...]] = {
    "colour": tuple(words.COLOURS),
    "shape": tuple(ARTICLED.values()),
    "size": tuple(words.SIZES),
    "direction": tuple(words.DIRECTION_PHRASES.values()),
    "count": tuple(words.COUNTS[n] for n in (2, 3, 4)),
    "outcome": OUTCOMES,
    "bounce": ("yes", "no"),
    "push": ("yes", "no"),
    "possible": ("yes", "no"),
    "change": tuple(words.COLOURS),
}


def ask(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Questions of a scene: (kind, query, answer, candidates)."""
    facts = scene.facts
    answers: dict[str, str] = {kind: facts[kind] for kind in _PLAIN if kind in facts}
    if "shape" in facts and "colour" in facts:
        answers["shape"] = ARTICLED[facts["shape"]]
    if "direction" in facts:
        answers["direction"] = words.DIRECTION_PHRASES[facts["direction"]]
    candidates = dict(CANDIDATES)
    for kind, right, wrong in (("order", "first", "second"), ("hit", "hitter", "target")):
        if right in facts:
            answers[kind] = facts[right]
            candidates[kind] = tuple(sorted((facts[right], facts[wrong])))
    asked = []
    for kind in PHRASINGS:
        turn = int(rng.integers(3))
        if kind in answers:
            query = PHRASINGS[kind][turn].format(**facts)
            asked.append((kind, query, answers[kind], candidates[kind]))
    return asked
