# SPDX-License-Identifier: Apache-2.0
"""microflow: Prefect's programming model as an embedded engine. A run is a log; nothing else is needed.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ._arguments import allow_failure, opaque, quote, unmapped
    from .client.orchestration import get_client
    from .context import tags
    from .flow_runs import pause_flow_run, resume_flow_run, suspend_flow_run
    from .flows import Flow, flow
    from .logging import get_run_logger
    from .states import State
    from .tasks import Task, task
    from .transactions import Transaction, transaction
    from .worker import serve

__all__ = [
    "Flow",
    "State",
    "Task",
    "Transaction",
    "allow_failure",
    "flow",
    "get_client",
    "get_run_logger",
    "opaque",
    "pause_flow_run",
    "quote",
    "resume_flow_run",
    "serve",
    "suspend_flow_run",
    "tags",
    "task",
    "transaction",
    "unmapped",
]

_HOMES = {
    "Flow": "flows",
    "State": "states",
    "Task": "tasks",
    "Transaction": "transactions",
    "allow_failure": "_arguments",
    "flow": "flows",
    "get_client": "client.orchestration",
    "get_run_logger": "logging",
    "opaque": "_arguments",
    "pause_flow_run": "flow_runs",
    "quote": "_arguments",
    "resume_flow_run": "flow_runs",
    "serve": "worker",
    "suspend_flow_run": "flow_runs",
    "tags": "context",
    "task": "tasks",
    "transaction": "transactions",
    "unmapped": "_arguments",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # here, because most programs use two or three of the names

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
