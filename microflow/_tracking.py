# SPDX-License-Identifier: Apache-2.0
"""A subflow in its parent: the tracking run.

A subflow is a task call like any other, with a log of its own: its *tracking run* in the parent's log names the
child before the child's log exists, so that a child is never lost, and a re-executed parent claims the same
child again.

Known hole: a subflow whose process died between the child's final line and the tracking run's is handed back
from the child's log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._boundary import check_boundary
from .calls import Call, earlier_end, identity, stand_in, upstreams
from .client.objects import TaskRun, new_run_id
from .context import FlowRunContext, TaskRunContext, current_tags
from .exceptions import MicroflowException, ObjectNotFound
from .hashing import fingerprint
from .states import Pending, Running, State

if TYPE_CHECKING:
    from uuid import UUID

    from .client.live import LiveRun
    from .client.orchestration import SyncClient
    from .flows import Flow


class Tracking:
    """A subflow in its parent: the tracking run and the log that it stands in."""

    __slots__ = ("call", "child_id")

    def __init__(self, call: Call, child_id: UUID) -> None:
        self.call = call
        self.child_id = child_id

    @classmethod
    def of(cls, flow: Flow[Any, Any], parameters: dict[str, Any], context: FlowRunContext) -> Tracking:
        """The tracking run of the subflow call that the current run makes now."""
        check_boundary(context)
        live, parent = context.live, context.flow_run.id
        inputs = {name: upstreams(value) for name, value in parameters.items()}
        task_context = TaskRunContext.get()
        if task_context is not None and task_context.limit is not None:
            task_context.limit.check()
        if task_context is not None and task_context.task_run.flow_run_id == parent:
            parent = task_context.task_run.id
        content = b"".join(
            (
                parent.bytes,
                context.flow_run.attempt.to_bytes(4, "big"),
                f"flow {flow.name} {flow.call_version}".encode(),
                fingerprint({k: v for k, v in parameters.items() if k not in flow.bound_names}, stand_in),
            )
        )
        run_id = identity(content, live)
        ended, again = earlier_end(live, run_id, flow.name)
        if ended is not None or again:
            tracking = live.run.task_run(str(run_id))
            child_id = tracking.child_flow_run_id
            assert child_id is not None, "a tracking run names its child"
            return cls(Call(tracking, live, context, ended, again), child_id)
        child_id = new_run_id()
        tracking = TaskRun(
            run_id,
            f"{flow.name}-{run_id.hex[:3]}",
            task_key=flow.name,
            task_version=flow.version,
            flow_run_id=context.flow_run.id,
            tags=current_tags(),
            task_inputs=inputs,
            child_flow_run_id=child_id,
        )
        return cls(Call(tracking, live, context), child_id)

    def begin(self) -> None:
        """Record the tracking run. Precedes the child's log: dying in between, the child is created under the
        recorded id by the re-execution."""
        if not self.call.task_run.recorded:
            self._append(Pending())

    def end(self, state: State[Any]) -> None:
        """Record the child's final state in the parent; dying before it, the child's own log has it."""
        self._append(State(state.type, name=state.name, message=state.message, data=state.data))

    def claimed_again(self) -> None:
        """Record that the child runs again, if its end was recorded before."""
        if self.call.task_run.state is not None and self.call.task_run.state.is_final():
            self._append(Running())

    def replace_child(self) -> None:
        """Take a new child: the old one completed, but its value is gone. Precedes the new child's log."""
        self.child_id = self.call.task_run.child_flow_run_id = new_run_id()
        self.call.task_run.recorded = False
        self._append(Pending())

    def usable_end(self, recorded: State[Any] | None, dropped: set[str]) -> State[Any] | None:
        """The end that the child's own log holds, if it can be handed back: a value that was kept and can be
        rebuilt, or a failure that no operator's claim of the parent `dropped`."""
        if recorded is None or not (recorded.is_completed() or recorded.is_failed()):
            return None
        if recorded.is_failed():
            return None if self.call.task_run.text in dropped else recorded
        try:
            recorded.read_result()
        except MicroflowException:
            return None
        return recorded

    def open_child(
        self, flow: Flow[Any, Any], parameters: dict[str, Any], client: SyncClient
    ) -> tuple[LiveRun | None, State[Any] | None]:
        """Record the tracking run, and own the child: a new one, or that of an earlier execution. Its end instead,
        if that can be handed back."""
        context = self.call.flow_context
        assert context is not None, "a subflow is called in a flow run"
        self.begin()
        if self.call.again:
            live, ended = self._adopt_child(context.live, client)
            if ended is not None or live is not None:
                return live, ended
        run = client.new_flow_run(
            flow,
            id=self.child_id,
            tags=current_tags(),
            parent_task_run_id=self.call.task_run.id,
            parent_flow_run_id=context.flow_run.id,
            root_flow_run_id=context.flow_run.root_flow_run_id,
        )
        return client.start(run, flow, parameters, Pending(), own=True), None

    def _adopt_child(self, parent: LiveRun, client: SyncClient) -> tuple[LiveRun | None, State[Any] | None]:
        """Go on with the child of an earlier execution: its end, if that can be handed back, else claim it. Neither
        when a new one is to be made."""
        try:
            child = client.fold(str(self.child_id))
        except ObjectNotFound:  # the parent died before the child's first line: create it now
            return None, None
        recorded = child.flow_run.state
        ended = self.usable_end(recorded, parent.run.dropped)
        if ended is not None:
            self.end(ended)
            return None, ended
        if recorded is not None and recorded.is_completed():
            self.replace_child()
            return None, None
        # who took the parent from a stopped process takes the child from the same process
        steal = child.owner in parent.run.former_owners
        live = client.claim(str(self.child_id), force=True, steal=steal)
        self.claimed_again()
        return live, None

    def _append(self, state: State[Any]) -> None:
        tracking = self.call.task_run
        details = state.state_details
        details.task_run_id, details.flow_run_id = tracking.id, tracking.flow_run_id
        details.child_flow_run_id = self.child_id
        self.call.recorder.propose_task(tracking, state, force=True)
