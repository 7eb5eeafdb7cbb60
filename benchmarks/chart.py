# SPDX-License-Identifier: Apache-2.0
"""The results as a picture and as a table: drawn from ``results.json``, which the last full run wrote."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.sax.saxutils import escape

from . import BUDGETS, ROOT

RESULTS = ROOT / "benchmarks" / "results.json"
PICTURE = ROOT / "benchmarks" / "results.svg"

Results = dict[str, Any]

#: what is drawn: benchmark -> label
ROWS = {
    "import_time": "import (ms)",
    "task_call": "task called in a flow (µs)",
    "submit_wait": "submit, then result (µs)",
    "map_wait": "map, each element (µs)",
    "empty_flow": "empty flow run (µs)",
}
COLOURS = {
    "floor": "#9e9e9e",
    "microflow": "#1565c0",
    "parsl": "#6d4c41",
    "dbos": "#2e7d32",
    "dask": "#ef6c00",
    "prefect": "#6a1b9a",
}
LEFT, WIDTH, BAR, GAP = 200, 620, 13, 16


def read_results() -> Results:
    """What the last full run measured."""
    results: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def _bars(results: Results, name: str) -> list[tuple[str, float]]:
    ours = results["microflow"][name]
    bars = {"floor": ours["floor"], "microflow": ours["microflow"]}
    bars.update({peer: figures[name] for peer, figures in results["peers"].items() if name in figures})
    return [(who, bars[who]) for who in COLOURS if who in bars]


def draw(results: Results) -> str:
    """The picture, as SVG: one group of bars for each row, on a logarithmic scale."""
    groups = {name: _bars(results, name) for name in ROWS}
    low = min(value for bars in groups.values() for _, value in bars)
    high = max(value for bars in groups.values() for _, value in bars)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - first) / (last - first) * WIDTH

    parts: list[str] = []
    y = 40
    for name, bars in groups.items():
        middle = y + len(bars) * BAR / 2 + 4
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(ROWS[name])}</text>')
        for who, value in bars:
            width = max(1.0, x(value) - LEFT)
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[who]}"/>')
            parts.append(f'<text x="{LEFT + width + 5:.1f}" y="{y + BAR - 4}" class="s">{who} {value:,.4g}</text>')
            y += BAR
        y += GAP
    scale = "".join(
        f'<line x1="{x(10.0**power):.1f}" y1="30" x2="{x(10.0**power):.1f}" y2="{y - GAP}" stroke="#ddd"/>'
        f'<text x="{x(10.0**power):.1f}" y="24" text-anchor="middle" class="s">{10.0**power:,.10g}</text>'
        for power in range(first, last + 1)
    )
    style = "text{font:12px sans-serif;fill:#333}.s{font-size:10px}"
    size = f'width="{LEFT + WIDTH + 110}" height="{y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="white"/>{scale}{"".join(parts)}</svg>\n'
    )


def table(measured: dict[str, dict[str, Any]]) -> str:
    """The budgets and what was measured, as a Markdown table."""
    lines = ["| what | beside | measured | floor | ratio | budget | |", "|---|---|---|---|---|---|---|"]
    for name, result in measured.items():
        budget = BUDGETS[name]
        unit = {"ratio": "x", "microflow": result["unit"], "above": f"{result['unit']} above"}[budget.of]
        limit = f"{budget.limit:g} {unit}"
        verdict = {True: "pass", False: "short", None: "-"}[result["within_budget"]]
        lines.append(
            f"| {result['what']} | {result['beside']} | {result['microflow']:,.4g} {result['unit']} | "
            f"{result['floor']:,.3g} {result['unit']} | {result['ratio']:.3g} x | {limit} | {verdict} |"
        )
    return "\n".join(lines)
