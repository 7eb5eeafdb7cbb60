# SPDX-License-Identifier: Apache-2.0
"""Opening the log of a flow run with ten thousand task runs, beside reading its lines as JSON."""

from __future__ import annotations

from typing import Any

from . import compare, home_on_disk
from .reexecution import read_lines, read_log


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds a record."""
    count = 20 if smoke else 10_000
    with home_on_disk():
        return compare(
            lambda: read_log(count),
            lambda: read_lines(count),
            what=f"a record of a log of {count:,} task runs that is opened",
            beside="json.loads of a line",
            unit="us",
            smoke=smoke,
        )
