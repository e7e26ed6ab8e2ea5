"""What probes found, by encoder: `WORKDIR/probes/ENCODER.json`, and one table of all of them.

An encoder's file keeps each number with the identity of what decided it, so that nothing is
measured twice, and with what each test clip earned, so that encoders can be compared clip by clip.
`WORKDIR/probes.json` joins the files: what was measured by the protocol of the last run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data import storage
from jepa.evaluation import intervals

FILE = "probes.json"
DIRECTORY = "probes"
VERSION = 1
TRAINED = "trained"

# encoder -> label -> probe -> {"identity", "protocol", "numbers", "hits"}
Found = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]


class Measured:
    """The file of one encoder.

    Attributes:
      path: of the file.
      about: what the encoder is, for readers of the file.
    """

    def __init__(self, workdir: str | Path, encoder: str, about: Mapping[str, Any] | None = None):
        """Opens it; one that cannot be read, or that is of another encoder, is begun anew.

        Args:
          workdir: of the run.
          encoder: its name.
          about: what the encoder is, to the last digit of its parameters' digest; None for what the
            file says.
        """
        self.path = Path(workdir) / DIRECTORY / f"{encoder}.json"
        self._entries: dict[str, dict[str, dict[str, Any]]] = {}
        self.about = dict(about or {})
        try:
            said = json.loads(self.path.read_text(encoding="utf-8"))
            if said["version"] == VERSION and about in (None, said["about"]):
                self._entries, self.about = said["labels"], said["about"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it is absent, or what a crash of the machine left

    @property
    def entries(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """Label -> probe -> what was found."""
        return self._entries

    def has(self, label: str, probe: str, identity: str) -> bool:
        """Returns whether a number of this identity is there."""
        return self._entries.get(label, {}).get(probe, {}).get("identity") == identity

    def add(
        self,
        label: str,
        probe: str,
        *,
        identity: str,
        protocol: str,
        numbers: Mapping[str, Any],
        hits: Sequence[float],
    ) -> None:
        """Keeps a number and writes the file; UserError if the disk refuses."""
        entry = {"identity": identity, "protocol": protocol, "numbers": numbers, "hits": hits}
        self._entries.setdefault(label, {})[probe] = entry
        said = {"version": VERSION, "about": self.about, "labels": self._entries}
        storage.write_atomically(self.path, json.dumps(said, allow_nan=False) + "\n")


def read(workdir: str | Path) -> dict[str, Measured]:
    """Returns the files of a workdir by encoder, the trained one first."""
    names = [path.stem for path in sorted((Path(workdir) / DIRECTORY).glob("*.json"))]
    names.sort(key=lambda name: (not name.startswith(TRAINED), name))
    return {name: Measured(workdir, name) for name in names}


def comparable(
    files: Mapping[str, Measured], labels: Sequence[str], protocol: Callable[[str, str], str]
) -> Found:
    """Returns what was measured of `labels` by the present protocol.

    Args:
      files: as `read`.
      labels: which to take.
      protocol: (label, probe) -> its digest.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, file in files.items():
        for label in labels:
            for probe, entry in file.entries.get(label, {}).items():
                if entry["protocol"] == protocol(label, probe):
                    found.setdefault(name, {}).setdefault(label, {})[probe] = entry
    return found


def join(
    found: Found, files: Mapping[str, Measured], groups: Callable[[str], np.ndarray], *, seed: int
) -> dict[str, Any]:
    """Returns the content of probes.json.

    `encoders.NAME.labels.LABEL.PROBE` are the numbers; `gains.LABEL.PROBE.over_NAME` is how far the
    trained encoder is above another one on the same test clips, with its 95 % interval.

    Args:
      found: as `comparable`.
      files: for what each encoder is.
      groups: label -> `[m]`, the group of each test clip.
      seed: of the bootstrap.
    """
    encoders = {
        name: {
            **files[name].about,
            "labels": {
                label: {probe: entry["numbers"] for probe, entry in probes.items()}
                for label, probes in labels.items()
            },
        }
        for name, labels in found.items()
    }
    gains: dict[str, dict[str, dict[str, Any]]] = {}
    for label, probes in found.get(TRAINED, {}).items():
        for probe, entry in probes.items():
            for name in found:
                other = found[name].get(label, {}).get(probe)
                if name == TRAINED or other is None:
                    continue
                gain = intervals.paired_gain(
                    np.array(entry["hits"]), np.array(other["hits"]), groups(label), seed=seed
                )
                gains.setdefault(label, {}).setdefault(probe, {})[f"over_{name}"] = gain
    return {"version": VERSION, "encoders": encoders, "gains": gains}


def write(workdir: str | Path, numbers: Mapping[str, Any]) -> Path:
    """Writes probes.json whole and returns its path; UserError if the disk refuses."""
    path = Path(workdir) / FILE
    storage.write_atomically(path, json.dumps(numbers, indent=2, allow_nan=False) + "\n")
    return path


def table(numbers: Mapping[str, Any]) -> str:
    """Returns accuracies in per cent, a row for each label and probe, a column an encoder.

    Behind an accuracy are its 95 % interval over test clips and, where there are several seeds, the
    standard deviation over them.
    """
    encoders = numbers["encoders"]
    rows = sorted(
        {
            (label, probe)
            for encoder in encoders.values()
            for label, probes in encoder["labels"].items()
            for probe in probes
        }
    )
    lines = [["label", "probe", *(_head(name, about) for name, about in encoders.items())]]
    for label, probe in rows:
        cells = [encoder["labels"].get(label, {}).get(probe) for encoder in encoders.values()]
        lines.append([label, probe, *map(_cell, cells)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _head(name: str, about: Mapping[str, Any]) -> str:
    step = about.get("checkpoint_step")
    return name if step is None else f"{name} (step {step})"


def _cell(numbers: Mapping[str, Any] | None) -> str:
    if numbers is None:
        return "-"
    measure, spread = numbers["accuracy"], numbers["spread"]
    value, low, high = (100 * measure[key] for key in ("value", "low", "high"))
    seeds = "" if spread is None else f" sd {100 * spread:.1f}"
    return f"{value:.1f} [{low:.1f}, {high:.1f}]{seeds}"
