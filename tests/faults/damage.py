"""Bytes that went wrong: what disks, networks and half-finished uploads make of a file."""

from __future__ import annotations

import random
import struct

# What a length or an offset is when it is wrong in the worst way.
_EXTREMES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def flip(data: bytes, rng: random.Random) -> bytes:
    """A few bits turned over."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 32, 256))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def header(data: bytes, rng: random.Random) -> bytes:
    """Some of the first bytes are others."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        out[rng.randrange(min(len(out), 1024))] = rng.randrange(256)
    return bytes(out)


def number(data: bytes, rng: random.Random) -> bytes:
    """Four bytes are an extreme number, of either byte order."""
    at = rng.randrange(max(1, len(data) - 4))
    return data[:at] + struct.pack(rng.choice("<>") + "I", rng.choice(_EXTREMES)) + data[at + 4 :]


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    length = min(len(data), rng.choice((1, 16, 512, max(1, len(data) // 4))))
    at = rng.randrange(len(data) - length + 1)
    return at, at + length


def zero(data: bytes, rng: random.Random) -> bytes:
    """A stretch of zeros."""
    begin, end = _span(data, rng)
    return data[:begin] + bytes(end - begin) + data[end:]


def noise(data: bytes, rng: random.Random) -> bytes:
    """A stretch of random bytes."""
    begin, end = _span(data, rng)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def cut(data: bytes, rng: random.Random) -> bytes:
    """A stretch is missing."""
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """A stretch of random bytes too many."""
    begin, end = _span(data, rng)
    return data[:begin] + rng.randbytes(end - begin) + data[begin:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """The end is missing, now and then all of it."""
    return data[: rng.randrange(len(data))]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Two parts have changed places: boxes of an MP4, or else blocks."""
    places = _boxes(data)
    if len(places) < 2:
        size = max(1, len(data) // 8)
        places = [(at, min(at + size, len(data))) for at in range(0, len(data), size)]
    if len(places) < 2:
        return data[::-1]
    (a, b), (c, d) = sorted(rng.sample(places, 2))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _boxes(data: bytes) -> list[tuple[int, int]]:
    """Where the outermost boxes of an MP4 lie; [] for something else."""
    found, at = [], 0
    if data[4:8] != b"ftyp":
        return []
    while at + 8 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        if size < 8 or at + size > len(data):
            break
        found.append((at, at + size))
        at += size
    return found


KINDS = {f.__name__: f for f in (flip, header, number, zero, noise, cut, insert, truncate, swap)}
