# SPDX-License-Identifier: Apache-2.0
"""How fast microflow is, each time beside something that the reader knows: ``python -m benchmarks``.

Each module measures one thing and, in the same run, its floor: the least that the standard library takes for
something comparable. The two take turns, so that a machine that slows down slows both. A figure is the median of
five runs; ``spread`` shows the lowest and the highest. Speed is never judged inside the test suite.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5


class Budget(NamedTuple):
    """The most that a benchmark may take: ``limit`` is held against what ``of`` names: ratio, microflow or above."""

    limit: float
    of: str


# What may be taken, by the name of the module that measures it. A budget is never loosened to fit a change.
BUDGETS = {
    "import_time": Budget(1.0, "ratio"),
    "task_call": Budget(60.0, "microflow"),
    "submit_wait": Budget(4.0, "ratio"),
    "map_wait": Budget(10.0, "ratio"),
    "async_task": Budget(70.0, "microflow"),
    "empty_flow": Budget(400.0, "microflow"),
    "many_tasks": Budget(1.2, "ratio"),
    "memory": Budget(400.0, "microflow"),
    "reexecution": Budget(30.0, "microflow"),
    "resume_here": Budget(1.0, "microflow"),
    "resume_elsewhere": Budget(25.0, "microflow"),
    "worker_wakeup": Budget(25.0, "microflow"),
    "open_log": Budget(8.0, "microflow"),
    "list_runs": Budget(1.0, "microflow"),
    "show_run": Budget(2.0, "microflow"),
    "disk_group": Budget(0.333, "ratio"),
    "hash_inputs": Budget(1.0, "microflow"),
    "wheel": Budget(150.0, "microflow"),
    "lambda_cold_start": Budget(60.0, "above"),
}


def compare(
    ours: Callable[[], float],
    floor: Callable[[], float],
    *,
    what: str,
    beside: str,
    unit: str,
    smoke: bool,
    profiled: tuple[Callable[[], object], int] | None = None,
) -> dict[str, Any]:
    """Measure both in turns and return what one JSON line says; with ``smoke`` a single run proves that it works.
    ``above`` is the median of the differences.
    `profiled` says what to run, after that, to see where the time goes, and for how many things."""
    runs = [(ours(), floor()) for _ in range(1 if smoke else RUNS)]
    mine, least = ([run[side] for run in runs] for side in (0, 1))
    median, floor_median = statistics.median(mine), statistics.median(least)
    measured = {
        "what": what,
        "beside": beside,
        "unit": unit,
        "microflow": round(median, 3),
        "spread": [round(min(mine), 3), round(max(mine), 3)],
        "floor": round(floor_median, 3),
        "floor_spread": [round(min(least), 3), round(max(least), 3)],
        "ratio": round(median / floor_median, 2),
        "above": round(statistics.median(our - its for our, its in runs), 3),
        "runs": len(runs),
    }
    if profiled is not None and not smoke:
        from .profiles import profile  # imports this module

        measured["profile"] = profile(*profiled)
    return measured


@contextmanager
def home_on_disk() -> Iterator[Path]:
    """An empty home folder for the runs of one benchmark; ``TMPDIR`` says on which disk."""
    before = os.environ.get("MICROFLOW_HOME")
    with tempfile.TemporaryDirectory(prefix="microflow-benchmark-") as folder:
        os.environ["MICROFLOW_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["MICROFLOW_HOME"]
            else:
                os.environ["MICROFLOW_HOME"] = before
