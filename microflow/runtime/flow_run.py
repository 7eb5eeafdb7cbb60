# SPDX-License-Identifier: Apache-2.0
"""The flow run whose code reads: ``id``, ``name``, ``parameters`` and so on. Outside of flows ``id`` is that of the
environment variable ``MICROFLOW__FLOW_RUN_ID`` or None, collections are empty, counts 0."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..context import FlowRunContext
from ._attributes import reader

if TYPE_CHECKING:
    from collections.abc import Callable

    id: str | None  # noqa: A001 - the attribute's name
    tags: list[str]
    scheduled_start_time: datetime
    name: str | None
    flow_name: str | None
    flow_version: str | None
    parameters: dict[str, Any]
    parent_flow_run_id: str | None
    parent_deployment_id: str | None
    root_flow_run_id: str | None
    run_count: int
    api_url: str | None
    ui_url: str | None
    job_variables: dict[str, Any] | None


def _of(attribute: str, otherwise: Any = None) -> Callable[[], Any]:
    def read() -> Any:
        context = FlowRunContext.get()
        return otherwise if context is None else getattr(context.flow_run, attribute)

    return read


def _id() -> str | None:
    context = FlowRunContext.get()
    return os.environ.get("MICROFLOW__FLOW_RUN_ID") if context is None else str(context.flow_run.id)


def _tags() -> list[str]:
    context = FlowRunContext.get()
    return [] if context is None else sorted(context.flow_run.tags)


def _parameters() -> dict[str, Any]:
    context = FlowRunContext.get()
    return {} if context is None else context.parameters


def _version() -> str | None:
    context = FlowRunContext.get()
    return None if context is None else context.flow.version


def _parent() -> str | None:
    context = FlowRunContext.get()
    parent = None if context is None else context.flow_run.parent_flow_run_id
    return None if parent is None else str(parent)


def _root() -> str | None:
    context = FlowRunContext.get()
    return None if context is None else str(context.flow_run.root_flow_run_id)


def _scheduled() -> datetime:
    context = FlowRunContext.get()
    moment = None if context is None else context.flow_run.expected_start_time
    return datetime.now(timezone.utc) if moment is None else moment


def _nothing() -> None:
    """What only a server has: deployments' parents, URLs, job variables."""


_ATTRIBUTES: dict[str, Callable[[], Any]] = {
    "id": _id,
    "tags": _tags,
    "scheduled_start_time": _scheduled,
    "name": _of("name"),
    "flow_name": _of("flow_name"),
    "flow_version": _version,
    "parameters": _parameters,
    "parent_flow_run_id": _parent,
    "parent_deployment_id": _nothing,
    "root_flow_run_id": _root,
    "run_count": _of("run_count", 0),
    "api_url": _nothing,
    "ui_url": _nothing,
    "job_variables": _nothing,
}

__getattr__ = reader(__name__, _ATTRIBUTES)


def __dir__() -> list[str]:
    return sorted(_ATTRIBUTES)
