"""What `experiments.precompile` says: a page a phase, a table, and a table for a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa.errors import UserError

Entry = Mapping[str, Any]

BEGIN, END = "<!-- precompile: begin -->", "<!-- precompile: end -->"
_GIB = 2**30


def page(entry: Entry) -> str:
    """Returns all that is known of a phase's step."""
    name = f"{entry['config']}, phase {entry['phase']}" if entry["phase"] else entry["config"]
    lines = [
        name,
        f"  {where(entry)}; mesh {mesh(entry)}",
        f"  global batch {entry['global_batch']:,} in {entry['accumulate']} part(s), "
        f"{entry['frames']} frame(s) of {entry['size']} pixels; remat {remat(entry)}",
        f"  parameters {entry['parameters'] / 1e6:,.1f} M, {entry['trained'] / 1e6:,.1f} M trained",
        f"  HBM of a chip: {_memory(entry)}",
        f"  model FLOPs {entry['flops']['useful']:.4g} a step; done with rematerialisation "
        f"{entry['flops']['done_on_a_chip'] * entry['chips']:.4g}",
    ]
    for one in entry["collectives"]:
        lines.append(
            f"  {one['kind']} over {one['axes']}: {one['times']:,} times, each chip sends "
            f"{one['bytes'] / 1e9:.3f} GB"
        )
    lines += [f"  {line}" for line in _roofline(entry)]
    seconds = entry["seconds"]
    what = "counted" if entry["estimated"] else "compiled"
    lines.append(f"  traced in {seconds['lower']:.0f} s, {what} in {seconds['compile']:.0f} s")
    return "\n".join(lines)


def _memory(entry: Entry) -> str:
    memory = entry["memory"]
    capacity = f"of {_gib(memory['capacity'])} GiB"
    if not entry["fits"] and memory["temporaries"] is None:
        need, arguments = memory["total"], _gib(memory["arguments"])
        if need is None:
            return f"arguments {arguments} GiB; DOES NOT FIT {capacity}, by how much is not said"
        over = _gib(need - memory["capacity"])
        return f"arguments {arguments} GiB; DOES NOT FIT: {_gib(need)} {capacity}, {over} too much"
    parts = f"arguments {_gib(memory['arguments'])}, temporaries {_gib(memory['temporaries'])}, "
    parts += f"program {_gib(memory['program'])}, at the peak {_gib(memory['total'])} {capacity}"
    if not entry["fits"]:
        return f"{parts}; DOES NOT FIT"
    kind = "estimated" if entry["estimated"] else "compiled"
    return f"{parts}, {100 * memory['spare']:.0f} % to spare ({kind})"


def _roofline(entry: Entry) -> list[str]:
    roof = entry["roofline"]
    if roof is None:
        return []
    memory = "" if roof["memory"] is None else f", HBM {roof['memory']:.3f} s"
    sent = "".join(f", sending over {axes} {t:.3f} s" for axes, t in roof["sent"].items())
    lines = [f"arithmetic {roof['compute']:.3f} s{memory}{sent}; bound by {roof['bound']}"]
    if entry["estimated"]:
        lines.append(f"step at least {roof['overlapped']:.3f} s, MFU at most {_mfu(entry)} %")
    else:
        lines.append(
            f"step at least {roof['overlapped']:.3f} s with communication overlapped, "
            f"{roof['serial']:.3f} s without: MFU {_mfu(entry)} %"
        )
    return lines


def _mfu(entry: Entry) -> str:
    roof = entry["roofline"]
    if roof is None:
        return "-"
    best, worst = 100 * roof["mfu_overlapped"], 100 * roof["mfu_serial"]
    return f"{best:.0f}" if entry["estimated"] else f"{best:.0f} to {worst:.0f}"


def where(entry: Entry) -> str:
    """Returns the topology and its chips."""
    return f"{entry['topology']}, {entry['chips']} chips"


def mesh(entry: Entry) -> str:
    """Returns the axes of more than one device."""
    return " ".join(f"{axis}={size}" for axis, size in entry["mesh"].items()) or "of one device"


def remat(entry: Entry) -> str:
    """Returns the policies of the networks, once where they are alike."""
    policies = entry["remat"]
    if len(set(policies.values())) == 1:
        return str(next(iter(policies.values())))
    return ", ".join(f"{name} {policy}" for name, policy in policies.items()) or "none"


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / _GIB:.2f}"


HEADINGS = (
    "config",
    "phase",
    "chips",
    "mesh",
    "batch, parts",
    "remat",
    "HBM GiB",
    "to spare",
    "step, s",
    "MFU, %",
    "bound by",
)


def row(entry: Entry) -> list[str]:
    """Returns the cells of a table's row, as `HEADINGS` names them."""
    memory, roof = entry["memory"], entry["roofline"]
    total = _gib(memory["total"])
    cells = [
        entry["config"].rpartition("/")[2].removeprefix("pods.py:").partition("@")[0],
        entry["phase"],
        entry["topology"],
        mesh(entry),
        f"{entry['global_batch']:,}, {entry['accumulate']}",
        remat(entry),
        f"{total} of {_gib(memory['capacity'])}",
        "does not fit" if memory["spare"] is None else f"{100 * memory['spare']:.0f} %",
    ]
    if roof is None:
        return [*cells, "-", "-", "-"]
    times = f"{roof['overlapped']:.3f}"
    if not entry["estimated"]:
        times += f" to {roof['serial']:.3f}"
    return [*cells, times, _mfu(entry), roof["bound"]]


def table(entries: Sequence[Entry]) -> str:
    """Returns aligned rows for a terminal."""
    rows = [list(HEADINGS), *map(row, entries)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    )


def markdown(entries: Sequence[Entry]) -> str:
    """Returns the tables for a document: what was compiled, and below it what was estimated."""
    parts = []
    for estimated, said in ((False, "Compiled"), (True, "Estimated")):
        those = [entry for entry in entries if entry["estimated"] == estimated]
        if those:
            rows = [_line(HEADINGS), _line(["---"] * len(HEADINGS)), *map(_line, map(row, those))]
            parts.append("\n".join([f"{said} with {_versions(those)}.", "", *rows]))
    return "\n\n".join(parts) or "Nothing has been compiled yet."


def _versions(entries: Sequence[Entry]) -> str:
    """What made the results, and when."""
    made = set()
    for entry in entries:
        names = ("jax",) if entry["estimated"] else ("jax", "libtpu")
        made.add(", ".join(f"{name} {entry['versions'][name]}" for name in names))
    dates = sorted({entry["date"] for entry in entries})
    return f"{' and '.join(sorted(made))}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"


def faults(entries: Sequence[Entry], spare: float | None, mfu: float | None) -> Iterator[str]:
    """Yields what falls short of what is asked for, a line each.

    Args:
      entries: to be judged.
      spare: share of HBM to be left; None for none.
      mfu: to be reached by the roofline with communication not overlapped at all; None for none.
    """
    for entry in entries:
        name = f"{entry['config']} {entry['phase']}".strip() + f" on {entry['topology']}"
        share, roof = entry["memory"]["spare"], entry["roofline"]
        if spare is not None and (share is None or not share >= spare):
            fits = share is not None and share >= 0
            left = f"{100 * share:.1f} % is left" if fits else "it does not fit"
            yield f"{name}: {left}, and --spare asks for {100 * spare:g} %"
        if mfu is not None and (roof is None or not roof["mfu_serial"] >= mfu):
            found = (
                "it has no roofline" if roof is None else f"MFU is {100 * roof['mfu_serial']:.1f} %"
            )
            yield f"{name}: {found}, and --mfu asks for {100 * mfu:g} %"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_markdown(path: Path, entries: Sequence[Entry]) -> None:
    """Puts the table between the two marks of a document.

    Raises:
      UserError: there is no such document, or it has no marks.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--markdown={path} cannot be read ({error.strerror})") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"--markdown={path} has no lines {BEGIN!r} and {END!r}; add them")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(entries)}\n\n{END}{after}", encoding="utf-8")
