"""Makes tables and figures of the benchmark results.

    python benchmarks/show.py

Writes docs/speed_tables.md (between its marks) and docs/images/speed_*.png.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
OURS = "#c2410c"
THEIRS = "#94a3b8"
MANY = 8  # cases


def studies() -> list[tuple[str, dict[str, Any]]]:
    """All results with times of several engines, with their file names."""
    results = [(path.stem, json.loads(path.read_text())) for path in sorted((HERE / "results").glob("*.json"))]
    return [(name, report) for name, report in results if isinstance(report.get("seconds"), dict)]


def table(report: dict[str, Any]) -> str:
    """One row per engine, one column per case: median, spread, and the ratio to the first engine's median.

    With many cases, rows and columns are swapped.
    """
    cases = report["seconds"]
    engines = list(dict.fromkeys(engine for times in cases.values() for engine in times))
    cells = [[_cell(times, engine) for times in cases.values()] for engine in engines]
    across, down = list(cases), engines
    if len(cases) > MANY:
        across, down, cells = down, across, [list(row) for row in zip(*cells, strict=True)]
    lines = [f"| | {' | '.join(across)} |", f"|---|{'---|' * len(across)}"]
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in zip(down, cells, strict=True)]
    kept = {case: more["saved_mib"] for case, more in report.get("more", {}).items() if "saved_mib" in more}
    if kept:
        lines += ["", "Kept for the backward pass, MiB:", "", f"| | {' | '.join(kept)} |", f"|---|{'---|' * len(kept)}"]
        for engine in next(iter(kept.values())):
            lines.append(f"| {engine} | {' | '.join(_share(row, engine) for row in kept.values())} |")
    peaks = {case: row for case, row in report.get("peak_gib", {}).items() if row}
    if peaks:
        lines += ["", "Peak memory of two steps, beyond the process's imports, GiB (share of the first row):", ""]
        lines += [f"| | {' | '.join(peaks)} |", f"|---|{'---|' * len(peaks)}"]
        for engine in dict.fromkeys(engine for row in peaks.values() for engine in row):
            shares = [_share(row, engine, 2) if engine in row else "" for row in peaks.values()]
            lines.append(f"| {engine} | {' | '.join(shares)} |")
    if "parts" in report:
        whole = sum(report["parts"].values())
        lines += ["", "Where the time of one image goes, focalnet, float32:", "", "| | ms | share |", "|---|---|---|"]
        lines += [f"| {part} | {1e3 * s:.0f} | {s / whole:.1%} |" for part, s in report["parts"].items()]
    return "\n".join(lines)


def profile(report: dict[str, Any]) -> str:
    """One row an engine of each case, one column a kind of operation: milliseconds."""
    rows = {f"{case}: {engine}": parts for case, of in report["profile"].items() for engine, parts in of.items()}
    kinds = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(kinds)} | all |", f"|---|{'---|' * (len(kinds) + 1)}"]
    for name, parts in rows.items():
        cells = " | ".join(f"{1e3 * seconds:.1f}" for seconds in [*parts.values(), sum(parts.values())])
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def _cell(times: dict[str, list[float]], engine: str) -> str:
    if engine not in times:
        return ""
    baseline = statistics.median(next(iter(times.values())))
    low, median, high = (1e3 * q for q in statistics.quantiles(times[engine], n=4, method="inclusive"))
    return f"{median:.1f} ms ({low:.1f} to {high:.1f}), {1e3 * baseline / median:.2f}x"


def _share(row: dict[str, float], engine: str, digits: int = 0) -> str:
    return f"{row[engine]:.{digits}f} ({row[engine] / next(iter(row.values())):.2f})"


def draw_figure(report: dict[str, Any], path: Path) -> None:
    """Bars of the medians, one panel a case; ours stand out.

    Growing image sizes become lines instead, and of many cases only the last engine's ratio to the first is shown.
    """
    cases = report["seconds"]
    if all(case.isdigit() for case in cases):
        _lines(cases)
    elif len(cases) > MANY:
        _ratios(cases)
    else:
        _bars(cases)
    plt.gcf().savefig(path, dpi=140, bbox_inches="tight")
    plt.close()


def _bars(cases: dict[str, dict[str, list[float]]]) -> None:
    columns = min(len(cases), 2)
    rows = -(-len(cases) // columns)
    most = max(len(times) for times in cases.values())
    _, panels = plt.subplots(rows, columns, figsize=(5.5 * columns, (0.32 * most + 0.8) * rows), squeeze=False)
    for panel, (case, times) in zip(panels.flat, cases.items(), strict=False):
        medians = {engine: 1e3 * statistics.median(values) for engine, values in times.items()}
        colors = [OURS if engine.startswith("focalnet") else THEIRS for engine in medians]
        bars = panel.barh(list(medians), list(medians.values()), color=colors)
        panel.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        panel.set_title(f"{case}: milliseconds", fontsize=9)
        panel.invert_yaxis()
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(panels.flat)[len(cases) :]:
        panel.axis("off")
    plt.tight_layout()


def _ratios(cases: dict[str, dict[str, list[float]]]) -> None:
    _, panel = plt.subplots(figsize=(7, 0.24 * len(cases) + 0.8))
    engines = [[statistics.median(values) for values in times.values()] for times in cases.values()]
    bars = panel.barh(list(cases), [medians[0] / medians[-1] for medians in engines], color=OURS)
    panel.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    first, *_, last = next(iter(cases.values()))
    panel.set_title(f"times as fast: {last} against {first}", fontsize=9)
    panel.invert_yaxis()
    panel.margins(x=0.1, y=0.01)
    panel.tick_params(axis="y", labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _lines(cases: dict[str, dict[str, list[float]]]) -> None:
    _, panel = plt.subplots(figsize=(6, 4))
    engines = list(dict.fromkeys(engine for times in cases.values() for engine in times))
    for engine in engines:
        points = [(int(c), 1e3 * statistics.median(t[engine])) for c, t in cases.items() if engine in t]
        style = {"color": OURS, "linewidth": 2.5} if engine.startswith("focalnet") else {}
        panel.plot(*zip(*points, strict=True), marker="o", label=engine, **style)
    panel.set(xlabel="side of the image in pixels", ylabel="milliseconds", yscale="log")
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Writes the figures, and the tables between the marks of docs/speed_tables.md."""
    page = DOCS / "speed_tables.md"
    text = page.read_text()
    for name, report in studies():
        draw_figure(report, DOCS / "images" / f"speed_{name}.png")
        head = (
            f"`{report['command']}`, {report['hardware']}, {report['date']}; median (quartiles), speed over the first."
        )
        if "copy_gb_per_s" in report:
            head += f" In this run memory was copied at {report['copy_gb_per_s']} GB/s, read and written together."
        body = f"{head}\n\n{table(report)}\n\n![{name}](images/speed_{name}.png)"
        text = _between(text, name, body)
    for path in sorted((HERE / "results").glob("*_profile.json")):
        report = json.loads(path.read_text())
        head = f"`{report['command']}`, {report['hardware']}, {report['date']}; milliseconds."
        text = _between(text, path.stem, f"{head}\n\n{profile(report)}")
    page.write_text(text)


def _between(text: str, name: str, body: str) -> str:
    """The text with another body between the marks of that name."""
    mark = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(mark, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
