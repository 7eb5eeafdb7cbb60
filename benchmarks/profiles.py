# SPDX-License-Identifier: Apache-2.0
"""Where the time of a benchmark goes, by room: said beside a budget that is not met."""

from __future__ import annotations

import cProfile
import pstats
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = ROOT / "microflow"
#: rooms that are named; what the others take is told together
NAMED = 6


def room_of(file: str, function: str) -> str:
    """Who a function belongs to: a room, the operating system, or everything else."""
    if function.startswith("<built-in method posix."):
        return "system calls"
    path = Path(file)
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts) if path.is_relative_to(PACKAGE) else "elsewhere"


def profile(run: Callable[[], object], count: int) -> dict[str, Any]:
    """``calls``: of functions, built-in ones too, for each of the `count` things that `run` does, in its own thread;
    ``shares``: of its time by room, in percent. What a built-in function takes is its caller's; cProfile makes short
    functions look longer than they are."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    spent: Counter[str] = Counter()
    calls = 0
    for (file, _, function), (_, called, own, _, callers) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]  # typeshed has no stats
        calls += called
        room = room_of(file, function)
        if file != "~" or room != "elsewhere":
            spent[room] += own
            continue
        for (calling, _, name), (_, _, its, _) in callers.items():
            spent[room_of(calling, name)] += its
    total = spent.total()
    shares = {room: round(100 * seconds / total) for room, seconds in spent.most_common(NAMED)}
    return {"calls": round(calls / count), "shares": shares}
