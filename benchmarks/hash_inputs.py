# SPDX-License-Identifier: Apache-2.0
"""The cache key of a call with 1,000,000 entries of plain data, beside the standard library's JSON text of them."""

from __future__ import annotations

import json
import time
from typing import Any

from microflow.cache_policies import INPUTS

from . import compare


def value(entries: int) -> list[dict[str, Any]]:
    """Rows as a task might be given them, four entries in each."""
    return [{"id": row, "name": f"row {row}", "share": row / 7, "seen": row % 2 == 0} for row in range(entries // 4)]


def make_key(inputs: dict[str, Any], entries: int) -> float:
    """Microseconds an entry for the key."""
    start = time.perf_counter()
    INPUTS.compute_key(None, inputs, {})
    return (time.perf_counter() - start) / entries * 1e6


def write_text(inputs: dict[str, Any], entries: int) -> float:
    """Microseconds an entry for the text, in the order of keys that any hash needs."""
    start = time.perf_counter()
    json.dumps(inputs, sort_keys=True)
    return (time.perf_counter() - start) / entries * 1e6


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds an entry."""
    entries = 400 if smoke else 1_000_000
    inputs = {"rows": value(entries)}
    return compare(
        lambda: make_key(inputs, entries),
        lambda: write_text(inputs, entries),
        what=f"the cache key of an argument of {entries:,} entries",
        beside="json.dumps with sorted keys",
        unit="us an entry",
        smoke=smoke,
    )
