# SPDX-License-Identifier: Apache-2.0
"""The client for coroutines: the methods of ``orchestration.SyncClient`` in the other colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from uuid import UUID

    from ..flows import Flow
    from ..states import State
    from ..tasks import Task
    from .asset_events import AssetEvent
    from .deployments import Deployment
    from .live import Answer
    from .objects import FlowRun, TaskRun
    from .orchestration import SyncClient


class Client:
    """The methods of :class:`SyncClient` as coroutines, for ``async with get_client() as client``."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def create_flow_run(self, flow: Flow[Any, Any], **fields: Any) -> FlowRun:
        """See :meth:`SyncClient.create_flow_run`."""
        return self._client.create_flow_run(flow, **fields)

    async def create_deployment(self, flow: Flow[Any, Any] | str, name: str, *given: Any, **fields: Any) -> UUID:
        """See :meth:`SyncClient.create_deployment`."""
        return self._client.create_deployment(flow, name, *given, **fields)

    async def read_deployment(self, deployment_id: UUID | str) -> Deployment:
        """See :meth:`SyncClient.read_deployment`."""
        return self._client.read_deployment(deployment_id)

    async def read_deployments(self) -> list[Deployment]:
        """See :meth:`SyncClient.read_deployments`."""
        return self._client.read_deployments()

    async def delete_deployment(self, deployment_id: UUID | str) -> None:
        """See :meth:`SyncClient.delete_deployment`."""
        self._client.delete_deployment(deployment_id)

    async def create_flow_run_from_deployment(self, deployment_id: UUID | str, **fields: Any) -> FlowRun:
        """See :meth:`SyncClient.create_flow_run_from_deployment`."""
        return self._client.create_flow_run_from_deployment(deployment_id, **fields)

    async def read_flow_run(self, flow_run_id: UUID | str) -> FlowRun:
        """See :meth:`SyncClient.read_flow_run`."""
        return self._client.read_flow_run(flow_run_id)

    async def read_flow_runs(self, **filters: Any) -> list[FlowRun]:
        """See :meth:`SyncClient.read_flow_runs`."""
        return self._client.read_flow_runs(**filters)

    async def read_flow_run_states(self, flow_run_id: UUID | str) -> list[State[Any]]:
        """See :meth:`SyncClient.read_flow_run_states`."""
        return self._client.read_flow_run_states(flow_run_id)

    async def read_task_run(self, task_run_id: UUID | str, *, flow_run_id: UUID | str | None = None) -> TaskRun:
        """See :meth:`SyncClient.read_task_run`."""
        return self._client.read_task_run(task_run_id, flow_run_id=flow_run_id)

    async def create_task_run(self, task: Task[Any, Any], task_run: TaskRun, **fields: Any) -> TaskRun:
        """See :meth:`SyncClient.create_task_run`."""
        return self._client.create_task_run(task, task_run, **fields)

    async def read_task_run_parameters(self, task_run_id: UUID | str) -> dict[str, Any]:
        """See :meth:`SyncClient.read_task_run_parameters`."""
        return self._client.read_task_run_parameters(task_run_id)

    async def read_task_runs(self, **filters: Any) -> list[TaskRun]:
        """See :meth:`SyncClient.read_task_runs`."""
        return self._client.read_task_runs(**filters)

    async def read_task_run_states(
        self, task_run_id: UUID | str, *, flow_run_id: UUID | str | None = None
    ) -> list[State[Any]]:
        """See :meth:`SyncClient.read_task_run_states`."""
        return self._client.read_task_run_states(task_run_id, flow_run_id=flow_run_id)

    async def read_asset_events(self, **filters: Any) -> list[AssetEvent]:
        """See :meth:`SyncClient.read_asset_events`."""
        return self._client.read_asset_events(**filters)

    async def set_task_run_state(self, task_run_id: UUID | str, state: State[Any], force: bool = False) -> Answer:
        """See :meth:`SyncClient.set_task_run_state`."""
        return self._client.set_task_run_state(task_run_id, state, force)

    async def set_flow_run_state(self, flow_run_id: UUID | str, state: State[Any], force: bool = False) -> Answer:
        """See :meth:`SyncClient.set_flow_run_state`."""
        return self._client.set_flow_run_state(flow_run_id, state, force)

    async def resume_flow_run(self, flow_run_id: UUID | str, run_input: dict[str, Any] | None = None) -> None:
        """See :meth:`SyncClient.resume_flow_run`."""
        self._client.resume_flow_run(flow_run_id, run_input)

    async def suspend_flow_run(self, flow_run_id: UUID | str, state: State[Any], inputs: Iterable[Any] = ()) -> None:
        """See :meth:`SyncClient.suspend_flow_run`."""
        self._client.suspend_flow_run(flow_run_id, state, inputs)

    async def cancel_flow_run(self, flow_run_id: UUID | str) -> State[Any]:
        """See :meth:`SyncClient.cancel_flow_run`."""
        return self._client.cancel_flow_run(flow_run_id)

    async def delete_flow_run(self, flow_run_id: UUID | str) -> None:
        """See :meth:`SyncClient.delete_flow_run`."""
        self._client.delete_flow_run(flow_run_id)
