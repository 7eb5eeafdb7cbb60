# SPDX-License-Identifier: Apache-2.0
"""What the command line says of runs: rows, reports in JSON, and all there is to know of one.

Nothing is unpickled for it, and what comes from a log is made safe for a terminal.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ._progress import printable
from .client.fold import shown, shown_result
from .exceptions import MicroflowException
from .serializers import to_json

if TYPE_CHECKING:
    from .client.fold import Run
    from .client.orchestration import SyncClient
    from .states import State

    Report = dict[str, Any]


def row_of(run: Run, client: SyncClient, problem: MicroflowException | None) -> tuple[str, ...]:
    """The cells of a run in a listing."""
    flow_run, seen = run.flow_run, seen_state(run, client, problem)
    started = flow_run.start_time.strftime("%Y-%m-%d %H:%M:%S") if flow_run.start_time else "-"
    seconds = f"{flow_run.estimated_run_time.total_seconds():.1f}"
    if flow_run.end_time is None and not client.is_alive(run):
        seconds = "-"
    return run.run_id, str(seen and seen.name), flow_run.flow_name, flow_run.name, started, seconds


def seen_state(run: Run, client: SyncClient, problem: MicroflowException | None) -> State[Any] | None:
    """The state to show; of a damaged log only the beginning is known, and that is what the message says then."""
    seen = client.seen(run)
    if seen is not None and problem is not None and not run.states[-1].is_final():
        seen.message = str(problem)
    return seen


def report_of(run: Run, state: State[Any] | None) -> Report:
    """What is said of a run in JSON."""
    flow_run = run.flow_run
    return {
        "id": run.run_id,
        "name": flow_run.name,
        "flow_name": flow_run.flow_name,
        "state_type": None if state is None else state.type.value,
        "state_name": None if state is None else state.name,
        "message": None if state is None else state.message,
        "result": None if state is None or not state.is_completed() else _plain_result(state),
    }


def _plain_result(state: State[Any]) -> Any:
    """The result of a completed run in plain JSON form; nothing is unpickled for it."""
    entry = getattr(state.data, "entry", None)
    if entry is not None:
        if entry.get("format") == "json":
            try:
                return shown(state.data.document())
            except (MicroflowException, ValueError):  # its file is missing or damaged: say what it was
                pass
        return shown_result(entry)
    value = state.data.load() if hasattr(state.data, "load") else state.data
    try:
        return shown(to_json(value))
    except (MicroflowException, ValueError):
        return f"<{type(value).__name__}>"


def print_run(run: Run, report: Report, seen: State[Any] | None) -> None:
    """Print what there is to know of a run; of its task runs how many there are, and which did not complete."""
    flow_run = run.flow_run
    owner = f"process {run.owner_pid} on {run.owner_host}" if run.owner else "nobody"
    facts = [
        ("task run" if run.is_task else "flow run", f"{flow_run.name} ({run.run_id})"),
        ("task" if run.is_task else "flow", f"{flow_run.flow_name}, {flow_run.entrypoint or 'entrypoint unknown'}"),
        ("state", f"{report['state_name']} ({report['state_type']})"),
        ("message", report["message"] or "-"),
        ("parameters", json.dumps(flow_run.parameters)),
        ("created", str(flow_run.created)),
        ("owner", owner),
        ("result", json.dumps(report["result"])[:2000]),
    ]
    for name, value in facts:
        print(f"{name:11s} {printable(value)}")
    print("states")
    for state in run.states:
        print(f"  {state.timestamp:%Y-%m-%d %H:%M:%S.%f}  {printable(str(state))}")
    counts: dict[str, int] = {}
    troubles: list[tuple[str, ...]] = []
    for task_id, history in run.tasks.items():
        state_name = history.completed_as
        if state_name is None:
            task_run = run.seen_task(task_id, seen)
            state_name = str(task_run.state_name)
            if task_run.state is not None:
                troubles.append((task_id, task_run.name, str(task_run.state)))
        counts[state_name] = counts.get(state_name, 0) + 1
    print(f"task runs   {len(run.tasks)}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    for trouble in troubles[:50]:
        print("  " + "  ".join(map(printable, trouble)))
    if len(troubles) > 50:
        print(f"  … and {len(troubles) - 50} more")


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows of cells as columns."""
    safe = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in safe) for column in range(len(safe[0]))]
    for row in safe:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
