# SPDX-License-Identifier: Apache-2.0
"""Run loggers: ordinary loggers below ``microflow`` whose records carry ids and names of the run.

Nothing is configured here: where records go, and from which level on, is the program's own
``logging`` configuration. The loggers are ``microflow.flow_runs`` and ``microflow.task_runs``.

``print`` is logged for runs that ask for it (``log_prints``). What does not work is to swap ``builtins.print`` for
each run: runs overlap, and the wrong one would be left. So there is one replacement, put there when a run first
asks; it looks at a context variable and hands on to the ``print`` that it replaced whatever is not to be logged.
"""

from __future__ import annotations

import builtins
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

from .context import PRINTS_ARE_LOGGED, FlowRunContext, TaskRunContext, get_run_context
from .settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from .client.objects import FlowRun, TaskRun

# the root of our loggers is the package's own name, so that a vendored copy has its own
_ROOT = __name__.rpartition(".")[0]

FLOW_RUNS = logging.getLogger(f"{_ROOT}.flow_runs")
TASK_RUNS = logging.getLogger(f"{_ROOT}.task_runs")
DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

if TYPE_CHECKING:
    RunLogger = logging.LoggerAdapter[logging.Logger]
else:
    RunLogger = logging.LoggerAdapter  # not generic at run time before Python 3.11


class _RunLoggerAdapter(RunLogger):
    """Adds the run's fields to each record; ``extra`` of a single call wins over them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def get_logger(name: str | None = None) -> logging.Logger:
    """The logger `name` below the package's own."""
    if name is None:
        return logging.getLogger(_ROOT)
    return logging.getLogger(name if name.startswith(_ROOT + ".") else f"{_ROOT}.{name}")


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


# ---------------------------------------------------------------------------------------------------- prints

#: frames up from here to the line that prints; before Python 3.11 those of an adapter's methods count as well
_TO_THE_CALLER = 2 if sys.version_info >= (3, 11) else 4

# guards the replacement of ``builtins.print``
_replacing = threading.Lock()
_real_print: Callable[..., Any] | None = None


def effective_log_prints(wanted: bool | None) -> bool | None:
    """The ``log_prints`` of a run whose flow or task says `wanted`; to be given to its context. None there is what the
    run around it has, and the setting ``log_prints`` where there is none."""
    if wanted is None:
        if PRINTS_ARE_LOGGED.get() is not None:
            return None
        wanted = current_settings().log_prints
    if wanted:
        _replace_print()
    return wanted


def _replace_print() -> None:
    global _real_print
    if builtins.print is _print:
        return
    with _replacing:
        if builtins.print is not _print:
            _real_print, builtins.print = builtins.print, _print


def restore_print() -> None:
    """Put back the ``print`` that was replaced, unless somebody has replaced ours meanwhile."""
    with _replacing:
        if builtins.print is _print and _real_print is not None:
            builtins.print = _real_print


def _print(*values: object, **options: Any) -> None:
    """``print`` while some run logs its prints."""
    if PRINTS_ARE_LOGGED.get() and options.get("file") in (None, sys.stdout, sys.stderr):
        sep, end = options.get("sep"), options.get("end")
        text = (" " if sep is None else sep).join(map(str, values)) + ("\n" if end is None else end)
        token = PRINTS_ARE_LOGGED.set(False)  # a handler may print
        try:
            get_run_logger().info("%s", text.rstrip(), stacklevel=_TO_THE_CALLER)
        finally:
            PRINTS_ARE_LOGGED.reset(token)
    elif _real_print is not None:
        _real_print(*values, **options)
