"""Reads damaged videos through the library's loader: no crash, no hang, each one counted.

    python -m tests.faults.fuzz --out=DIR [--videos=10000] [--seed=0]

Sound clips in many containers and codecs (`tests.faults.clip_files`) are damaged at random places
(`tests.faults.damage`) and put into datasets, a third as many sound ones beside them. Child
processes read each dataset for one epoch, twice: by one thread, and by two or by a worker process.
For every damaged clip this holds, or the command fails and names it:

- the decoder gives frames, or says `DecodeError`; `verify` and, for each tenth, `transcode`, which
  preparing data calls, give what they should, or say `BadVideo`; likewise what reads the headers of
  files in folders. No other exception, no signal, no hang, less than 4 GiB;
- a batch has its shapes and types;
- the loader counts exactly those that the decoder refuses, and their rows, and no others, hold
  another record, the same one both times, with the same pixels.

Figures are printed and written to DIR/fuzz.json. `make fuzz`.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.benchmarks import machine
from tests.faults import damage
from tests.faults.harness import ROOT

_CHUNK = 500
_SECONDS = 900.0  # for a chunk, many times of what it takes


def damaged(originals: list[tuple[str, Any]], number: int, seed: int) -> tuple[str, str, bytes]:
    """(format, kind of damage, bytes) of the damaged clip `number`."""
    rng = random.Random(f"{seed}:{number}")
    name, record = rng.choice(originals)
    kind = rng.choice(sorted(damage.KINDS))
    data = record.video
    while data == record.video or not data:
        data = damage.KINDS[kind](record.video, rng)
    return name, kind, data


def read(directory: Path, begin: int, end: int, seed: int) -> tuple[int, dict[str, Any] | None]:
    """Lets a child process read the clips `begin` to `end`; its exit code, and what it found."""
    path = directory / f"{begin}-{end}.json"
    command = [sys.executable, "-m", "tests.faults.fuzz_child"]
    with open(path.with_suffix(".log"), "wb") as log:
        try:
            code = subprocess.run(
                [*command, str(directory), str(begin), str(end), str(seed)],
                cwd=ROOT, timeout=_SECONDS, stdout=log, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = -1000
    return code, json.loads(path.read_text()) if code == 0 else None


def blame(directory: Path, begin: int, end: int, seed: int) -> list[dict[str, Any]]:
    """The clips of a failed chunk that fail alone; the chunk itself if none does."""
    if end - begin == 1:
        code, _ = read(directory, begin, end, seed)
        return [{"number": begin, "code": code}] if code else []
    middle = (begin + end) // 2
    found = []
    for low, high in ((begin, middle), (middle, end)):
        if read(directory, low, high, seed)[0]:
            found += blame(directory, low, high, seed) or [{"numbers": [low, high]}]
    return found


def fuzz(directory: Path, videos: int, seed: int, tell: Any) -> dict[str, Any]:
    """Reads so many damaged clips; returns the figures."""
    from tests.faults import clip_files

    directory.mkdir(parents=True, exist_ok=True)
    originals = list(clip_files.originals())
    (directory / "originals.pickle").write_bytes(pickle.dumps(originals))
    totals: collections.Counter[str] = collections.Counter()
    by: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    problems: list[Any] = []
    peak = 0
    for begin in range(0, videos, _CHUNK):
        end = min(begin + _CHUNK, videos)
        code, found = read(directory, begin, end, seed)
        if found is None:
            totals["hangs" if code == -1000 else "crashes"] += 1
            problems += blame(directory, begin, end, seed) or [{"numbers": [begin, end]}]
            continue
        totals.update(found["totals"])
        for name, counts in found["by"].items():
            by[name].update(counts)
        problems += found["problems"]
        peak = max(peak, found["peak_mib"])
        tell(f"{end} of {videos}: {dict(totals)}")
    return {
        "videos": videos,
        "crashes": totals.pop("crashes", 0),
        "hangs": totals.pop("hangs", 0),
        **totals,
        "problems": problems,
        "peak_mib": peak,
        "by_format_and_damage": {name: dict(sorted(c.items())) for name, c in sorted(by.items())},
    }


def main() -> int:
    """Runs it; 1 if anything failed."""
    parser = cli.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", required=True, metavar="DIR", help="where JSON and logs go")
    parser.add_argument("--videos", type=int, default=10_000, help="so many damaged clips")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    args = parser.parse_args()
    begin = time.monotonic()
    found = fuzz(
        Path(args.out),
        args.videos,
        args.seed,
        lambda text: print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True),
    )
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "settings": vars(args),
        "seconds": round(time.monotonic() - begin),
        "results": found,
    }
    (Path(args.out) / "fuzz.json").write_text(json.dumps(report, indent=1) + "\n")
    told = {k: v for k, v in found.items() if k not in ("by_format_and_damage", "problems")}
    print(", ".join(f"{k} {v}" for k, v in told.items()), f"in {report['seconds']} s")
    for problem in found["problems"]:
        print(f"PROBLEM {problem}")
    return int(bool(found["problems"] or found["crashes"] or found["hangs"]))


if __name__ == "__main__":
    cli.run(main)
