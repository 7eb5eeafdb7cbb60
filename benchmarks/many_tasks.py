# SPDX-License-Identifier: Apache-2.0
"""What a task costs in a flow run of a hundred thousand, beside one in a flow run of a thousand."""

from __future__ import annotations

from typing import Any

from . import compare, home_on_disk
from .task_call import call_often


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds a task."""
    many, few = (100, 10) if smoke else (100_000, 1_000)
    with home_on_disk():
        return compare(
            lambda: call_often(many),
            lambda: call_often(few),
            what=f"a task among {many:,} in one flow run",
            beside=f"a task among {few:,}",
            unit="us",
            smoke=smoke,
        )
