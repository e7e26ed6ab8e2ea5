"""Numbers in words, the same wherever they are told."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Returns `42s`, `3m05s` or `2h07m`."""
    seconds = max(int(round(seconds)), 0)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
