# SPDX-License-Identifier: Apache-2.0
"""The in-process API over the state log: run objects, the fold that makes them, the client that appends.

Its public names are loaded when they are first used: every part of the engine imports from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inputs import FlowRunInput
    from .objects import FlowRun, FlowRunResult, RunInput, TaskRun, TaskRunInput, TaskRunResult
    from .orchestration import Client, SyncClient, get_client

__all__ = [
    "Client",
    "FlowRun",
    "FlowRunInput",
    "FlowRunResult",
    "RunInput",
    "SyncClient",
    "TaskRun",
    "TaskRunInput",
    "TaskRunResult",
    "get_client",
]

_HOMES = {
    "Client": ".orchestration",
    "FlowRunInput": ".inputs",
    "SyncClient": ".orchestration",
    "get_client": ".orchestration",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # only for programs that take the names from here

    value = getattr(import_module(_HOMES.get(name, ".objects"), __name__), name)
    globals()[name] = value
    return value
