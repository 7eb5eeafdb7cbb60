# SPDX-License-Identifier: Apache-2.0
"""The results as a picture: drawn from ``results.json``, which the last full run wrote."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.sax.saxutils import escape

from . import ROOT

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
    "microflow": "#0b57d0",
    "parsl": "#a1887f",
    "dbos": "#2e7d32",
    "dask": "#ef9a00",
    "prefect": "#7b1fa2",
}
LEFT, WIDTH, RIGHT, TOP, BAR, GAP = 190, 560, 130, 74, 15, 14
STYLE = "text{font:13px sans-serif;fill:#222}.small{font-size:11px}.title{font-size:15px;font-weight:bold}"


def read_results() -> Results:
    """What the last full run measured."""
    results: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def bars(results: Results, name: str) -> list[tuple[str, float]]:
    """Who is drawn in one row, and how long: the floor, microflow, then the peers that have a figure."""
    ours = results["microflow"][name]
    found = {"floor": ours["floor"], "microflow": ours["microflow"]}
    found.update({who: peer["figures"][name] for who, peer in results["peers"].items() if name in peer["figures"]})
    return [(who, found[who]) for who in COLOURS if who in found]


def draw(results: Results) -> str:
    """The picture, as SVG: one group of bars for each row, on a logarithmic scale."""
    groups = {name: bars(results, name) for name in ROWS if name in results["microflow"]}
    values = [value for group in groups.values() for _, value in group]
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - first) / (last - first) * WIDTH

    parts: list[str] = []
    y = TOP
    for name, group in groups.items():
        middle = y + len(group) * BAR / 2 + 3
        parts.append(f'<text x="{LEFT - 12}" y="{middle:.0f}" text-anchor="end">{escape(ROWS[name])}</text>')
        for who, value in group:
            width = max(1.0, x(value) - LEFT)
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[who]}"/>')
            parts.append(
                f'<text x="{LEFT + width + 5:.1f}" y="{y + BAR - 4}" class="small">{who} {shown(value)}</text>'
            )
            y += BAR
        y += GAP
    bottom = y - GAP + 4
    scale = "".join(
        f'<path d="M{x(10.0**power):.1f} {TOP - 6}V{bottom}" stroke="#{999 if power == first else "ddd"}"/>'
        f'<text x="{x(10.0**power):.1f}" y="{TOP - 11}" text-anchor="middle" class="small">{10.0**power:,.10g}</text>'
        for power in range(first, last + 1)
    )
    width, height = LEFT + WIDTH + RIGHT, bottom + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Time that microflow and its peers take, on a logarithmic scale">'
        f'<style>{STYLE}</style><rect width="{width}" height="{height}" rx="8" fill="white"/>'
        f'<text x="16" y="24" class="title">What things take: shorter is better; each line is ten times the last</text>'
        f'<text x="16" y="42" class="small">{escape(results["machine"])}</text>'
        f"{scale}{''.join(parts)}</svg>\n"
    )


def shown(figure: float) -> str:
    """A figure with three digits that count, and no exponent."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"
