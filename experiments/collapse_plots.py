"""The plots of `experiments.collapse_demo`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_HEALTHY, _BROKEN, _GREY = "#2f5bd0", "#c2410c", "#5d6573"

History = Sequence[tuple[int, Mapping[str, float]]]


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    # Pictures are drawn off screen: no pyplot, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor="white", dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.tick_params(which="both", labelsize=8)  # log axes may have minor labels only
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    image.quantize(64).save(path, "PNG", optimize=True)  # lines need few colours


def array_of(history: History) -> str:
    """Returns the array that is shown: the targets where there are any, else the features."""
    names = {name.split("/examples/")[0] for name in history[-1][1] if "/examples/" in name}
    for name in sorted(names):
        if name.startswith("target"):
            return name
    return "features" if "features" in names else min(names)


def write_health(path: Path, runs: Sequence[tuple[str, bool, History]]) -> None:
    """Draws the measures of all runs, a column a method: (name, whether broken, measurements)."""
    methods = sorted({name.split(",")[0] for name, _, _ in runs})
    measures = (
        ("spread", "share of an embedding's length\nthat differs between pictures"),
        ("effective_rank", "effective rank (centred)"),
        ("rankme", "RankMe (not centred)"),
    )
    figure, axes = _panels(len(measures), len(methods), (4.2 * len(methods), 7.2))
    for column, method in enumerate(methods):
        for row, (measure, label) in enumerate(measures):
            axis = axes[row, column]
            for name, broken, history in runs:
                if name.split(",")[0] != method:
                    continue
                where = f"{array_of(history)}/examples"
                steps = [step for step, _ in history]
                if measure == "spread":
                    ys = [
                        math.sqrt(max(0.0, 1 - values[f"{where}/mean_cosine"]))
                        for _, values in history
                    ]
                else:
                    ys = [values[f"{where}/{measure}"] for _, values in history]
                axis.plot(steps, ys, color=_BROKEN if broken else _HEALTHY, linewidth=1, alpha=0.8)
            axis.set_ylim(bottom=0)
            if column == 0:
                axis.set_ylabel(label, fontsize=8)
        names = {broken: name for name, broken, _ in runs if name.split(",")[0] == method}
        axes[0, column].set_title(method, fontsize=10)
        axes[-1, column].set_xlabel("step", fontsize=8)
        handles = [
            axes[0, column].plot([], [], color=colour, label=names[broken])[0]
            for broken, colour in ((False, _HEALTHY), (True, _BROKEN))
            if broken in names
        ]
        axes[0, column].legend(handles=handles, fontsize=8, frameon=False)
    _save(figure, path)


def write_losses(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draws the loss of longer runs and what their features are worth, a column a run."""
    figure, axes = _panels(2, len(runs), (2.9 * len(runs), 4.6))
    for column, (name, rows) in enumerate(runs.items()):
        for row, (key, label) in enumerate(
            (("loss", "loss"), ("neighbours/accuracy", "accuracy of 20 neighbours"))
        ):
            axis = axes[row, column]
            points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
            colour = _BROKEN if "," in name else _HEALTHY
            axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.2)
            axis.set_xlim(0, 1.03 * rows[-1]["step"])  # a step above the same step
            if row:
                axis.set_ylim(0, 0.8)
                axis.axhline(0.1, color=_GREY, linewidth=0.8, linestyle=":")
                axis.set_xlabel("step", fontsize=8)
            else:
                axis.set_title(name, fontsize=9)
                axis.set_yscale("log")
            if column == 0:
                axis.set_ylabel(label, fontsize=8)
    _save(figure, path)
