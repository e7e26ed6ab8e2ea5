"""Reads compiled programs."""

import re

import numpy as np

COLLECTIVE = re.compile(r"\s*(?:ROOT )?\S+ = (.*?) (all-[a-z]+|reduce-scatter|collective-[a-z]+)")


def collective_sizes(text):
    """How many numbers each collective of a compiled program yields, one entry an array."""
    found = []
    for line in text.splitlines():
        match = COLLECTIVE.match(line)
        if match and f"{match.group(2)}-done" not in line:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match.group(1))
            found += [int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes]
    return found


def array_sizes(text):
    """How many numbers each array has that a compiled program names."""
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", text)
    return [int(np.prod([int(d) for d in s.split(",")])) for s in shapes]
