"""One picture of a result, for the front page: what is asked, what is found, how often right."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jepa.data import storage
from jepa.evaluation import gallery, pictures

if TYPE_CHECKING:
    from jepa.evaluation.headline import Headline
    from jepa.evaluation.report import Material

_INK, _SOFT, _GOOD, _BAD, _BLUE = "#1d2129", "#5d6573", "#1a7f4b", "#b3362b", "#2f5bd0"
_BYTES = 300_000


def write(path: str | Path, material: Material, *, queries: int = 5) -> Path:
    """Writes a PNG below 300 kB with a few queries, the clips they find, and the headlines.

    The queries are drawn by the evaluation's seed, not picked.

    Args:
      path: of the PNG.
      material: what the report is made from; retrieval has to be among it.
      queries: how many to show.
    """
    # Pictures are drawn off screen, and only here: no pyplot, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.95 * queries + 1.1), facecolor="white", dpi=110)
    canvas = FigureCanvasAgg(figure)
    panels: Any = figure.subfigures(1, 2, width_ratios=(1.45, 1.0))
    left, right = panels
    _draw_queries(left, material, queries)
    _draw_headlines(right, material)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    path = Path(path)
    with storage.storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(image))
    return path


def _png(image: Image.Image) -> bytes:
    """Encodes with as many colours as fit into the size allowed."""
    for colours in (None, 256, 128, 64):
        buffer = io.BytesIO()
        reduced = image if colours is None else image.quantize(colours)
        reduced.save(buffer, "PNG", optimize=True)
        if buffer.tell() < _BYTES:
            break
    return buffer.getvalue()


def _draw_queries(figure: Any, material: Material, count: int) -> None:
    evidence, numbers = material.evidence["retrieval",], material.numbers["retrieval"]
    chosen = gallery.draw(material.rng, list(range(len(evidence["captions"]))), count)
    order = {query: np.argsort(-evidence["scores"][query], kind="stable")[:2] for query in chosen}
    indices = {evidence["indices"][int(i)] for places in order.values() for i in places}
    frames = material.source.frames(numbers["split"], sorted(indices))
    axes = figure.subplots(len(chosen), 2, squeeze=False)
    figure.subplots_adjust(left=0.02, right=0.99, top=0.86, bottom=0.02, hspace=0.75, wspace=0.05)
    figure.text(
        0.02,
        0.955,
        f"a sentence, and the two nearest of {len(evidence['captions'])} clips",
        fontsize=11,
        weight="bold",
        color=_INK,
    )
    for row, query in zip(axes, chosen, strict=True):
        caption = textwrap.shorten(evidence["captions"][query], 70, placeholder="…")
        row[0].text(
            0,
            1.12,
            f"“{caption}”",
            transform=row[0].transAxes,
            fontsize=9,
            color=_INK,
        )
        for axis, place in zip(row, order[query], strict=False):
            axis.imshow(pictures.strip(frames[evidence["indices"][int(place)]], height=64))
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color=_GOOD if place == query else _BAD, linewidth=2.2)


def _draw_headlines(figure: Any, material: Material) -> None:
    lines = [line for line in material.headlines if not line.is_gain][::-1]
    axis = figure.subplots()
    figure.subplots_adjust(left=0.5, right=0.9, top=0.86, bottom=0.08)
    figure.text(0.06, 0.955, "right on held-out clips", fontsize=11, weight="bold", color=_INK)
    for row, line in enumerate(lines):
        _draw_bar(axis, row, line)
    axis.set(xlim=(0, 1), ylim=(-0.7, len(lines) - 0.3), xticks=[0, 0.5, 1])
    axis.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8, color=_INK)
    axis.set_xticklabels(["0%", "50%", "100%"], fontsize=8, color=_SOFT)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.plot([], [], color=_BAD, linestyle="--", linewidth=1.3, label="chance")
    axis.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=8,
        frameon=False,
        labelcolor=_SOFT,
    )


def _draw_bar(axis: Any, row: int, line: Headline) -> None:
    measure = line.measure
    axis.barh(row, measure["value"], height=0.62, color=_BLUE)
    axis.plot([measure["low"], measure["high"]], [row, row], color=_INK, linewidth=1.1)
    axis.text(
        max(measure["value"], measure["high"]) + 0.02,
        row,
        f"{measure['value']:.0%}",
        va="center",
        fontsize=8.5,
        weight="bold",
        color=_INK,
    )
    if measure["chance"] is not None:
        axis.plot([measure["chance"]] * 2, [row - 0.38, row + 0.38], color=_BAD, linestyle="--")
