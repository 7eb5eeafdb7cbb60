# SPDX-License-Identifier: Apache-2.0
"""The task run whose code reads: ``id``, ``name``, ``parameters`` and so on. Outside of tasks they are empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..context import TaskRunContext
from ._attributes import reader

if TYPE_CHECKING:
    from collections.abc import Callable

    id: str | None  # noqa: A001 - the attribute's name
    tags: list[str]
    name: str | None
    parameters: dict[str, Any]
    run_count: int
    task_name: str | None
    api_url: str | None
    ui_url: str | None


def _id() -> str | None:
    context = TaskRunContext.get()
    return None if context is None else str(context.task_run.id)


def _tags() -> list[str]:
    context = TaskRunContext.get()
    return [] if context is None else sorted(context.task_run.tags)


def _name() -> str | None:
    context = TaskRunContext.get()
    return None if context is None else context.task_run.name


def _parameters() -> dict[str, Any]:
    context = TaskRunContext.get()
    return {} if context is None else context.parameters


def _run_count() -> int:
    context = TaskRunContext.get()
    return 0 if context is None else context.task_run.run_count


def _task_name() -> str | None:
    context = TaskRunContext.get()
    return None if context is None else context.task.name


def _nothing() -> None:
    """What only a server has: URLs."""


_ATTRIBUTES: dict[str, Callable[[], Any]] = {
    "id": _id,
    "tags": _tags,
    "name": _name,
    "parameters": _parameters,
    "run_count": _run_count,
    "task_name": _task_name,
    "api_url": _nothing,
    "ui_url": _nothing,
}

__getattr__ = reader(__name__, _ATTRIBUTES)


def __dir__() -> list[str]:
    return sorted(_ATTRIBUTES)
