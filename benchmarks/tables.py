# SPDX-License-Identifier: Apache-2.0
"""The results as the tables of README's section on figures, which :func:`write` puts there.

A table is never edited by hand: it follows from ``results.json`` and from :data:`WHY`.
"""

from __future__ import annotations

from typing import Any

from . import ROOT
from .chart import PICTURE, ROWS, Results, bars, shown

README = ROOT / "README.md"
BEGINNING, END = "<!-- figures: python -m benchmarks report -->\n", "<!-- end of figures -->\n"

#: what a budget that is missed costs, and why it is missed: said beside it. Braces are filled from the benchmark's own
#: line, and after ``all`` from that of another
WHY = {
    "task_call": (
        "It is paid by each task that is called, and seen where tasks take less than a millisecond. No part of it "
        "stands out: a call is recognised by its inputs, has a state, a context and a place in the graph of runs, and "
        "appends two lines whose damage a reader would find"
    ),
    "async_task": (
        "It is paid by each task, like that of a blocking one: the lifecycle is the same code, on an event loop"
    ),
    "submit_wait": (
        "It is paid by each task that is submitted. The pool beside it runs a function and keeps nothing; here a run "
        "is recorded when it is submitted too, and a call of the same task without a pool takes "
        "{all[task_call][microflow]:.0f} µs. While a task waits for something, others use that time"
    ),
    "map_wait": "It is paid by each element, as by a task that is submitted",
    "empty_flow": (
        "It is paid by each flow run, not by each task. A run has a file of its own, a claim that other processes see, "
        "a runner, and a last line before its caller goes on"
    ),
    "reexecution": (
        "It is paid once for each call that had ended when a run is resumed, instead of the call. Half of it is "
        "reading: each line of the log is checked and folded, before the first call can be handed back"
    ),
    "show_run": (
        "It is paid by who looks at a run of a hundred thousand task runs. Most of it is reading: each line is checked "
        "(its checksum, its place, no name twice), decoded and folded"
    ),
    "disk_group": (
        "It is seen where a sync takes little time beside a task of Python: then there is little to be shared. On a "
        "slower disk more ends share a sync"
    ),
    "wheel": (
        "It costs a download, nothing at run time. Of it {shares[run]:.0f} KiB are the code that a run loads, "
        "{shares[rest]:.0f} KiB other code (workers, processes, transactions, inputs, caching), "
        "{shares[extensions]:.0f} KiB the command line, AWS Lambda, vendoring, help for tests, and examples, "
        "{shares[prose]:.0f} KiB docstrings and comments in all of these, {shares[readme]:.0f} KiB README and licence; "
        "the rest is the archive's own. The package is there to be read and vendored, so its prose stays in it"
    ),
}


def budgets(measured: dict[str, dict[str, Any]]) -> str:
    """The budgets and what was measured, as a Markdown table."""
    lines = ["| what | measured | beside | floor | ratio | budget | |", "|---|---:|---|---:|---:|---:|---|"]
    for result in measured.values():
        budget, unit = result["budget"], result["unit"]
        of = {"ratio": "x", "microflow": unit, "above": f"{unit} above"}[budget["of"]]
        limit = f"{budget['limit']:g} {of}"
        verdict = {True: "kept", False: "**short**", None: "-"}[result["within_budget"]]
        lines.append(
            f"| {result['what']} | {shown(result['microflow'])} {unit} | {result['beside']} | "
            f"{shown(result['floor'])} {unit} | {result['ratio']:.3g} x | {limit} | {verdict} |"
        )
    return "\n".join(lines).replace(" us ", " µs ") + "\n"


def peers(results: Results) -> str:
    """What the peers take for the same, as a Markdown table; nothing when none was measured."""
    who = list(results["peers"])
    if not who:
        return ""
    names = [f"{peer} {results['peers'][peer]['version']}" for peer in who]
    lines = [f"| | microflow | {' | '.join(names)} |"]
    lines.append("|---" + "|---:" * (len(who) + 1) + "|")
    for name in ROWS:
        if name in results["microflow"] and any(name in results["peers"][peer]["figures"] for peer in who):
            figures = dict(bars(results, name))
            cells = [shown(figures[each]) if each in figures else "" for each in ("microflow", *who)]
            lines.append(f"| {ROWS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def missed(measured: dict[str, dict[str, Any]]) -> str:
    """The budgets that are not met, each with what that costs and why, as a Markdown table; nothing when all are."""
    short = {name: result for name, result in measured.items() if result["within_budget"] is False}
    if not short:
        return ""
    lines = ["| budget not met | of it | what it costs, and why |", "|---|---:|---|"]
    for name, result in short.items():
        used = result[result["budget"]["of"]] / result["budget"]["limit"]
        why = WHY[name].format_map({**result, "all": measured}) if name in WHY else "Nobody has said"
        lines.append(f"| {result['what']} | {used:.0%} | {why}.{_profile(result)} |")
    return "\n".join(lines) + "\n"


def _profile(result: dict[str, Any]) -> str:
    """Where the time goes, by room, if the benchmark says so."""
    if "profile" not in result:
        return ""
    shares = ", ".join(f"`{room}` {share} %" for room, share in result["profile"]["shares"].items())
    return f" Profile: {result['profile']['calls']} calls of functions; {shares}, the others less each."


def section(results: Results) -> str:
    """All that stands between the two marks in the README."""
    picture = f"![what microflow and its peers take]({PICTURE.relative_to(ROOT).as_posix()})\n"
    tables = [picture, peers(results), budgets(results["microflow"]), missed(results["microflow"])]
    return f"Measured on {results['machine']}.\n\n" + "\n".join(table for table in tables if table)


def parts_of(readme: str) -> tuple[str, str, str]:
    """The README before the figures, the figures, and what follows."""
    before, _, rest = readme.partition(BEGINNING)
    figures, _, after = rest.partition(END)
    return before + BEGINNING, figures, END + after


def write(results: Results) -> None:
    """Put the figures into the README."""
    before, _, after = parts_of(README.read_text(encoding="utf-8"))
    README.write_text(f"{before}\n{section(results)}\n{after}", encoding="utf-8")
