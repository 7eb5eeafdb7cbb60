# SPDX-License-Identifier: Apache-2.0
"""Run loggers: ordinary loggers below ``microflow`` whose records carry ids and names of the run.

Nothing is configured here: where records go, and from which level on, is the program's own
``logging`` configuration. The loggers are ``microflow.flow_runs`` and ``microflow.task_runs``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ._loggers import get_logger as get_logger
from .context import FlowRunContext, TaskRunContext, get_run_context

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from .client.objects import FlowRun, TaskRun

FLOW_RUNS = get_logger("flow_runs")
TASK_RUNS = get_logger("task_runs")

if TYPE_CHECKING:
    RunLogger = logging.LoggerAdapter[logging.Logger]
else:
    RunLogger = logging.LoggerAdapter  # not generic at run time before Python 3.11


class _RunLoggerAdapter(RunLogger):
    """Adds the run's fields to each record; ``extra`` of a single call wins over them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def flow_run_logger(flow_run: FlowRun, **extra: Any) -> RunLogger:
    """The logger of a flow run."""
    fields = {"flow_run_id": flow_run.id, "flow_run_name": flow_run.name, "flow_name": flow_run.flow_name}
    return _RunLoggerAdapter(FLOW_RUNS, {**fields, **extra})


def task_run_logger(
    task_run: TaskRun, task_name: str, flow_run: FlowRun | None = None, flow_name: str | None = None, **extra: Any
) -> RunLogger:
    """The logger of a task run."""
    fields = {
        "task_run_id": task_run.id,
        "task_run_name": task_run.name,
        "task_name": task_name,
        "flow_run_id": task_run.flow_run_id,
        "flow_run_name": flow_run.name if flow_run is not None else "<unknown>",
        "flow_name": flow_name or (flow_run.flow_name if flow_run is not None else "<unknown>"),
    }
    return _RunLoggerAdapter(TASK_RUNS, {**fields, **extra})


def get_run_logger(context: FlowRunContext | TaskRunContext | None = None, **extra: Any) -> RunLogger:
    """The logger of the run whose code calls; its records carry the run's ids and names, and `extra`.

    MissingContextError outside of runs, unless both run loggers are disabled."""
    if context is None:
        if FLOW_RUNS.disabled and TASK_RUNS.disabled and not (FlowRunContext.get() or TaskRunContext.get()):
            return _RunLoggerAdapter(FLOW_RUNS, extra)
        context = get_run_context()
    if isinstance(context, TaskRunContext):
        flow_context = FlowRunContext.get()
        flow_run = flow_context.flow_run if flow_context is not None else None
        return task_run_logger(context.task_run, context.task.name, flow_run, **extra)
    return flow_run_logger(context.flow_run, **extra)
