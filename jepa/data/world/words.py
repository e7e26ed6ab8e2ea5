"""The world's vocabulary: classes, their pixel sizes, and all that can be said of a clip.

Classes
    shapes (6)      circle, square, triangle, star, cross, ring
    colours (8)     red, orange, yellow, green, cyan, blue, purple, white
    sizes (2)       small: radius 6.0 to 7.5 px; large: radius 11.0 to 13.0 px (of a 64-pixel frame)
    directions (4)  left, right, up, down

A radius is that of the circle the shape is drawn in: tips lie on it. A square's half side is 0.8
radii, which puts its corners 0.13 radii outside and its area nearer to the circle's.
"""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (222, 32, 32),
    "orange": (250, 132, 20),
    "yellow": (246, 228, 40),
    "green": (36, 184, 52),
    "cyan": (40, 214, 226),
    "blue": (48, 84, 250),
    "purple": (168, 52, 216),
    "white": (240, 240, 240),
}
SIZES = {"small": (6.0, 7.5), "large": (11.0, 13.0)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DIRECTION_PHRASES = {
    "left": "to the left",
    "right": "to the right",
    "up": "upwards",
    "down": "downwards",
}
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}

#: (colour, shape) pairs that only ever appear in the split `novel`. Each shape is held out with one
#: colour, so that what remains still has every colour and every shape equally often.
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("green", "cross"),
        ("blue", "circle"),
        ("yellow", "triangle"),
        ("purple", "square"),
        ("cyan", "ring"),
    }
)

#: Caption templates of each kind of scene, as (level, template). `{s}` is "a large red star", or "a
#: red star" beside another object, `{n}` "a star", `{z}` "a large star"; `{o}` and `{m}` are the
#: second object as `{s}` and `{n}`; `{v}` and `{w}` verbs, `{d}` a direction phrase, `{old}` and
#: `{new}` colours. The first "full" is the caption proper; the others say it in other words.
CAPTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "move": (
        ("brief", "{s}"),
        ("motion", "something moves {d}"),
        ("motion", "{n} moves {d}"),
        ("full", "{s} moves {d}"),
        ("full", "there is {s} moving {d}"),
        ("full", "{s} travels {d}"),
    ),
    "move_beside": (
        ("brief", "{n} and {m}"),
        ("motion", "something moves {d}"),
        ("motion", "{n} moves {d}"),
        ("full", "{s} moves {d} while {o} stays still"),
        ("full", "{o} stays still and {s} moves {d}"),
        ("full", "{s} travels {d} and {o} does not move"),
    ),
    "fall": (
        ("brief", "{s}"),
        ("motion", "something falls down"),
        ("motion", "{n} falls down"),
        ("full", "{s} falls down and lands on the floor"),
        ("full", "{s} drops to the floor and stays there"),
        ("full", "there is {s} falling down to the floor"),
    ),
    "bounce": (
        ("brief", "{s}"),
        ("motion", "something bounces"),
        ("motion", "{n} bounces"),
        ("full", "{s} falls and bounces on the floor"),
        ("full", "{s} drops and bounces up again"),
        ("full", "there is {s} bouncing on the floor"),
    ),
    "throw": (
        ("brief", "{s}"),
        ("motion", "something flies in an arc {d}"),
        ("motion", "{n} flies in an arc {d}"),
        ("full", "{s} is thrown {d}"),
        ("full", "{s} flies in an arc {d}"),
        ("full", "someone throws {s} {d}"),
    ),
    "slide": (
        ("brief", "{s}"),
        ("motion", "something slides {d} and stops"),
        ("motion", "{n} slides {d} and stops"),
        ("full", "{s} slides {d} and stops"),
        ("full", "{s} slides {d}, slows down and stops"),
        ("full", "there is {s} sliding {d} until it stops"),
    ),
    "collide": (
        ("brief", "{n} and {m}"),
        ("motion", "one shape hits another"),
        ("motion", "{n} hits {m}"),
        ("full", "{s} hits {o}"),
        ("full", "{s} moves {d} and hits {o}"),
        ("full", "{o} is hit by {s}"),
    ),
    "occlude": (
        ("brief", "{s}"),
        ("motion", "something moves {d} behind a wall and comes out again"),
        ("motion", "{n} moves {d} behind a wall"),
        ("full", "{s} moves {d} behind a wall and comes out again"),
        ("full", "{s} passes behind a wall, moving {d}"),
        ("full", "{s} hides behind a wall and comes back, moving {d}"),
    ),
    "appear": (
        ("brief", "{s}"),
        ("motion", "something appears"),
        ("motion", "{n} appears"),
        ("full", "{s} appears"),
        ("full", "suddenly {s} appears"),
        ("full", "first there is nothing, then {s} shows up"),
    ),
    "vanish": (
        ("brief", "{s}"),
        ("motion", "something vanishes"),
        ("motion", "{n} vanishes"),
        ("full", "{s} vanishes"),
        ("full", "suddenly {s} vanishes"),
        ("full", "first there is {s}, then it is gone"),
    ),
    "recolour": (
        ("brief", "{z}"),
        ("motion", "something changes colour"),
        ("motion", "{n} changes colour"),
        ("full", "{z} changes from {old} to {new}"),
        ("full", "{s} turns {new}"),
        ("full", "{z} is {old} and then becomes {new}"),
    ),
    "order": (
        ("brief", "{n} and {m}"),
        ("motion", "{n} {v} before {m} {w}"),
        ("full", "{s} {v} before {o} {w}"),
        ("full", "first {s} {v}, then {o} {w}"),
        ("full", "{o} {w} after {s} {v}"),
    ),
    "count": (
        ("brief", "{count} shapes"),
        ("motion", "{count} shapes {v}"),
        ("full", "{list}"),
        ("full", "there are {count} shapes: {list}"),
        ("full", "{count} shapes {v}: {list}"),
    ),
    "control": (
        ("brief", "{n} and {m}"),
        ("motion", "{n} is steered around"),
        ("full", "{s} is steered around near {o}"),
        ("full", "{s} moves about and {o} stays still"),
        ("full", "someone steers {s} around beside {o}"),
    ),
    "control_touch": (
        ("brief", "{n} and {m}"),
        ("motion", "{n} is steered around"),
        ("full", "{s} is steered around and touches {o}"),
        ("full", "{s} moves about and touches {o}"),
        ("full", "someone steers {s} until it touches {o}"),
    ),
    "push": (
        ("brief", "{n} and {m}"),
        ("motion", "{n} pushes {m}"),
        ("full", "{s} is steered around and pushes {o}"),
        ("full", "{s} moves about and pushes {o}"),
        ("full", "{o} is pushed by {s}"),
    ),
    "wall_possible": (
        ("brief", "{s}"),
        ("motion", "{n} bounces off a wall"),
        ("full", "{s} hits a wall and bounces back"),
    ),
    "wall_impossible": (
        ("brief", "{s}"),
        ("motion", "{n} passes through a wall"),
        ("full", "{s} hits a wall and passes through it"),
    ),
    "gone_possible": (
        ("brief", "{s}"),
        ("motion", "{n} comes out from behind a wall"),
        ("full", "{s} goes behind a wall and comes out again"),
    ),
    "gone_impossible": (
        ("brief", "{s}"),
        ("motion", "{n} never comes out from behind a wall"),
        ("full", "{s} goes behind a wall and never comes out"),
    ),
    "swap_possible": (
        ("brief", "{z}"),
        ("motion", "{n} comes out from behind a wall unchanged"),
        ("full", "{z} goes behind a wall {old} and comes out {old}"),
    ),
    "swap_impossible": (
        ("brief", "{z}"),
        ("motion", "{n} comes out from behind a wall in another colour"),
        ("full", "{z} goes behind a wall {old} and comes out {new}"),
    ),
    "teleport_possible": (
        ("brief", "{s}"),
        ("motion", "{n} moves {d}"),
        ("full", "{s} moves {d}"),
    ),
    "teleport_impossible": (
        ("brief", "{s}"),
        ("motion", "{n} is suddenly somewhere else"),
        ("full", "{s} moves {d} and is suddenly somewhere else"),
    ),
}


def with_article(words: str) -> str:
    """`words` behind "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _class_texts() -> dict[str, dict[str, list[str]]]:
    # A class of things is named by every brief caption that has it, so that what the captions
    # differ in averages out.
    things = {
        (size, colour, shape): with_article(f"{size} {colour} {shape}")
        for size in SIZES
        for colour in COLOURS
        for shape in SHAPES
    }
    texts: dict[str, dict[str, list[str]]] = {"colour": {}, "shape": {}, "size": {}}
    for thing, text in things.items():
        for label, value in zip(("size", "colour", "shape"), thing, strict=True):
            texts[label].setdefault(value, []).append(text)
    texts["direction"] = {
        d: [f"something moves {p}", f"a shape moves {p}"] for d, p in DIRECTION_PHRASES.items()
    }
    # Which of two events comes first, by its place: the other one is in the opposite corner.
    texts["first"] = {
        p: [f"something happens in the {p} first"] for p in ("upper left", "lower right")
    }
    texts["count"] = {w: [f"{w} shape" + ("s" if n > 1 else "")] for n, w in COUNTS.items()}
    return texts


#: Class texts for zero-shot classification, phrased like captions: {label: {value: texts}}.
ATTRIBUTES = _class_texts()

#: What asks for a caption, and for one of a level that has a question of its own.
CAPTION_QUERIES = ("What happens in the clip?", "Describe the video.")
LEVEL_QUERIES = {"brief": "What is in the clip?", "motion": "What moves, and how?"}


def listing(items: list[str]) -> str:
    """Such as "x", "x and y", or "x, y and z"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
