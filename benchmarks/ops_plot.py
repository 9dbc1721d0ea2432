"""Draw what the operations' benchmarks kept.

    python -m benchmarks.ops_plot

Reads ops_scan.json and ops_length.json in benchmarks/results/, writes pictures and tables beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.report import RESULTS

TITLES = {"forward": "forward", "both": "forward and backward"}


def main() -> None:
    """Draw everything there is."""
    for name, draw in (("ops_scan", draw_scan), ("ops_length", draw_length)):
        if (RESULTS / f"{name}.json").is_file():
            draw()


def draw_scan() -> None:
    """Table and picture of the element-wise scan's results."""
    kept = json.loads((RESULTS / "ops_scan.json").read_text())
    (RESULTS / "ops_scan.md").write_text(scan_table(kept))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(2, 1), TITLES.items(), strict=True):
        _bars(axes, [row for row in kept["results"] if row["pass"] == kind], title)
    figure.suptitle(f"Element-wise scan, {kept['device']}, bf16 ({kept['commit']})")
    figure.savefig(RESULTS / "ops_scan.png", dpi=110)


def draw_length() -> None:
    """Table and picture of time and memory against length."""
    kept = json.loads((RESULTS / "ops_length.json").read_text())
    (RESULTS / "ops_length.md").write_text(length_table(kept))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(11, 4), layout="constrained")
    plots = (("ms", "forward"), ("ms", "both"), ("peak_bytes_per_element", "both"))
    measured = [p for p in plots if any(row[p[0]] is not None for row in kept["results"])]
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (value, kind) in zip(panels, measured, strict=True):
        _lines(axes, [row for row in kept["results"] if row["pass"] == kind], value)
        axes.set_title(f"{TITLES[kind]}: {'ms' if value == 'ms' else 'bytes an element'}")
    figure.suptitle(f"One row of {kept['results'][0]['channels']} channels, {kept['device']}, bf16")
    figure.savefig(RESULTS / "ops_length.png", dpi=110)


def length_table(kept: Mapping[str, Any]) -> str:
    """The results as Markdown: a line a length, columns by contender and pass."""
    rows = kept["results"]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    pairs = [(name, kind) for kind in TITLES for name in names]
    lines = [["tokens", *(f"{name}, {TITLES[kind]}, ms (B)" for name, kind in pairs)]]
    lines.append(["---"] * len(lines[0]))
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        found = {(r["contender"], r["pass"]): r for r in rows if r["tokens"] == tokens}
        cells = [found.get(pair, {}) for pair in pairs]
        lines.append([f"{tokens:,}", *(_time_and_bytes(cell) for cell in cells)])
    where = f"{kept['device']}, torch {kept['torch']}, {kept['commit']}"
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        f"One row of {rows[0]['channels']} channels, bf16, {where}. ms: median time; B: bytes held"
        f" by element of y beyond the inputs, at the fullest.\n\n{body}\n"
    )


def _time_and_bytes(row: Mapping[str, Any]) -> str:
    time, held = row.get("ms"), row.get("peak_bytes_per_element")
    return "" if time is None else f"{time:.3f} ({_number(held, '.1f')})"


def _lines(axes: Any, rows: list[dict[str, Any]], value: str) -> None:
    """A value against length, a line a contender; times on a logarithmic scale."""
    for name in dict.fromkeys(row["contender"] for row in rows):
        found = [row for row in rows if row["contender"] == name and row[value] is not None]
        axes.plot([r["tokens"] for r in found], [r[value] for r in found], "o-", label=name, ms=3)
    axes.set_xscale("log", base=2)
    if value == "ms":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens")
    axes.legend(fontsize=8)


def scan_table(kept: Mapping[str, Any]) -> str:
    """The results as Markdown: a line a shape and pass, a column a contender."""
    rows = kept["results"]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    head = ["B, T, D", "pass", "share of copy", *(f"{name}, ms" for name in names)]
    head += [f"{name}, B" for name in names]
    lines = [head, ["---"] * len(head)]
    for shape, kind in dict.fromkeys((_shape(row), row["pass"]) for row in rows):
        found = {r["contender"]: r for r in rows if (_shape(r), r["pass"]) == (shape, kind)}
        cells = [shape, TITLES[kind], _number(found.get("ours", {}).get("share_of_copy"), ".0%")]
        cells += [_number(found.get(name, {}).get("ms"), ".3f") for name in names]
        held = [found.get(name, {}).get("peak_bytes_per_element") for name in names]
        lines.append([*cells, *(_number(value, ".1f") for value in held)])
    where = f"{kept['device']}, torch {kept['torch']}, triton {kept['triton']}, {kept['commit']}"
    where += f"; {kept['how']}" if "how" in kept else ""
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        f"Element-wise scan, bf16, {where}. ms: median time; B: bytes held by element of y beyond"
        f" the inputs, at the fullest.\n\n{body}\n"
    )


def _bars(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    """Times by shape, a bar a contender, on a logarithmic scale."""
    shapes = list(dict.fromkeys(_shape(row) for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    width = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        found = {_shape(row): row["ms"] for row in rows if row["contender"] == name}
        places = [k + (i - (len(names) - 1) / 2) * width for k in range(len(shapes))]
        bars = axes.bar(places, [found.get(s) or 0 for s in shapes], width, label=name)
        axes.bar_label(bars, [f"{found.get(s) or 0:.2f}" for s in shapes], fontsize=7)
    axes.set_xticks(range(len(shapes)), [f"({shape})" for shape in shapes])
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    axes.set_title(title)
    axes.legend(fontsize=8, ncols=3)


def _shape(row: Mapping[str, Any]) -> str:
    return f"{row['batch']}, {row['tokens']}, {row['channels']}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
