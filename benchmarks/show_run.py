# SPDX-License-Identifier: Apache-2.0
"""``python -m microflow show`` of a flow run of a hundred thousand task runs, beside reading its lines as JSON."""

from __future__ import annotations

from typing import Any

from . import compare, home_on_disk
from .list_runs import calls, seconds_of

READ = """
import json, sys
with open(sys.argv[1], "rb") as file:
    lines = [json.loads(line) for line in file]
print(len(lines))
"""


def measure(smoke: bool) -> dict[str, Any]:
    """Seconds from the start of the process to its end."""
    tasks = 100 if smoke else 100_000
    with home_on_disk() as home:
        calls(tasks)
        (log,) = (home / "runs").glob("*.jsonl")
        return compare(
            lambda: seconds_of("-m", "microflow", "show", log.stem, lines=13),
            lambda: seconds_of("-c", READ, str(log), lines=1),
            what=f"`show` of a flow run of {tasks:,} task runs",
            beside="its lines as JSON",
            unit="s",
            smoke=smoke,
        )
