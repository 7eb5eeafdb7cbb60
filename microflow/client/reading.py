# SPDX-License-Identifier: Apache-2.0
"""Reading what the logs of a store say: runs, their states, lists of them.

Reading never writes: what readers see of a run whose process died is derived (``Run.seen``). A task run's id alone is
found in this process; else the logs of all runs are searched, which is slow with many runs: give ``flow_run_id`` where
it is known.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..exceptions import AmbiguousRunId, MicroflowException, ObjectNotFound
from .deferred import carried_by
from .fold import Run
from .memory import MemoryTasks
from .objects import FlowRun, TaskRun, run_filter, sort_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from ..states import State, StateType
    from ..stores import Store
    from .asset_events import AssetEvent
    from .deployments import Deployment
    from .live import LiveRun


class Reader:
    """What can be known of the runs of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        #: task runs outside of flows
        self.tasks = MemoryTasks(store.bus)
        #: the runs that this process owns
        self.owned: dict[str, LiveRun] = {}

    def fold(self, run_id: str) -> Run:
        """The whole log of a run, folded. Raises what is wrong with it."""
        run, problem = self.fold_what_is_readable(run_id)
        if problem is not None:
            raise problem
        return run

    def fold_what_is_readable(self, run_id: str) -> tuple[Run, MicroflowException | None]:
        """The log of a run up to what is wrong with it, and what that is."""
        reading = self.store.read(run_id)
        run = Run(run_id, self.store)
        run.fold(reading.records)
        run.position = reading.position
        return run, reading.problem

    def glance(self, run_id: str) -> tuple[Run, MicroflowException | None]:
        """A run as a listing shows it: like :meth:`fold_what_is_readable`, but of a run that has ended only the first
        and the last line of the log are read, if they say all that ``flow_run`` holds (``Run.fold_ends``). So damage
        between the two is not seen; every other reader sees it."""
        reading = self.store.read_ends(run_id)
        if reading is not None:
            run = Run(run_id, self.store)
            if run.fold_ends(reading.records):
                run.position = reading.position
                return run, None
        return self.fold_what_is_readable(run_id)

    def find_run_id(self, text: str) -> str:
        """The id that `text` is, or is the unique beginning of."""
        found = self.store.find(str(text).lower()) if text else []
        if not found:
            raise ObjectNotFound(f"no flow run has an id that begins with {text!r} in {self.store.location}")
        if len(found) > 1:
            raise AmbiguousRunId(f"{text!r} fits {len(found)} flow runs: {', '.join(found[:5])}; give more of the id")
        return found[0]

    def is_alive(self, run: Run) -> bool:
        """Whether the process that owns the run lives."""
        if run.owner is None:
            return False
        if any(live.token == run.owner for live in list(self.owned.values())):
            return run.run_id in self.owned  # a token is the process's: this one knows which runs it still works on
        return self.store.is_alive(run.owner)

    def is_worked_on(self, run: Run) -> bool:
        """Whether the process that owns the run lives. When not, what was appended since `run` was read is taken in
        first: an owner that was found dead may have ended the run, or let go of it, after that reading."""
        while not self.is_alive(run):
            if run.owner is None or not self._take_in_last_words(run):
                return False
        return True

    def _take_in_last_words(self, run: Run) -> bool:
        try:
            reading = self.store.read(run.run_id, run.position)
        except ObjectNotFound:  # deleted meanwhile
            return False
        run.fold(reading.records)
        run.position = reading.position
        return bool(reading.records)

    def seen(self, run: Run) -> State[Any] | None:
        """The flow run's state as a reader should see it now (see ``Run.seen``)."""
        return run.seen(self.is_worked_on(run))

    def _seen(self, run: Run) -> FlowRun:
        flow_run = run.flow_run
        if run.is_task:
            raise ObjectNotFound(f"{run.run_id} is a deferred task run, not a flow run")
        flow_run.state = self.seen(run)
        return flow_run

    def read_flow_run(self, flow_run_id: UUID | str) -> FlowRun:
        """A flow run as it is now."""
        return self._seen(self.fold(str(flow_run_id)))

    def read_flow_run_states(self, flow_run_id: UUID | str) -> list[State[Any]]:
        """Every recorded state of a flow run, in order."""
        return self.fold(str(flow_run_id)).states

    def read_flow_runs(
        self,
        *,
        ids: Iterable[UUID | str] | None = None,
        names: Iterable[str] | None = None,
        flow_names: Iterable[str] | None = None,
        state_types: Iterable[StateType | str] | None = None,
        state_names: Iterable[str] | None = None,
        tags: Iterable[str] | None = None,
        parent_flow_run_ids: Iterable[UUID | str] | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        limit: int | None = None,
        offset: int = 0,
        sort: str = "expected_start_time",
    ) -> list[FlowRun]:
        """The flow runs that fit every filter given; `tags` must all be there, and the run was to start at `after` or
        later, and earlier than `before`. Runs whose log cannot be read are left out; of a run that has ended only the
        first and the last line are read (see :meth:`glance`)."""
        wanted = [str(run_id) for run_id in ids] if ids is not None else self.store.list()
        runs = []
        for run_id in wanted:
            try:
                run, problem = self.glance(run_id)
                if problem is None:
                    runs.append(self._seen(run))
            except MicroflowException:
                continue
        fits = run_filter(names, state_types, state_names, tags, after, before)
        names_of_flows = None if flow_names is None else set(flow_names)
        kept = [run for run in runs if fits(run) and (names_of_flows is None or run.flow_name in names_of_flows)]
        if parent_flow_run_ids is not None:
            parents = {str(parent) for parent in parent_flow_run_ids}
            kept = [run for run in kept if str(run.parent_flow_run_id) in parents]
        kept.sort(key=sort_key(sort))
        return kept[offset:][:limit]

    def read_task_run(self, task_run_id: UUID | str, *, flow_run_id: UUID | str | None = None) -> TaskRun:
        """A task run as it is now. Without `flow_run_id` every log may have to be read."""
        key = UUID(str(task_run_id))
        here = self.tasks.find(key)
        if here is not None:
            return copy.copy(here)
        for run in self.logs_of(key, flow_run_id):
            return run.seen_task(str(key), self.seen(run))
        raise ObjectNotFound(f"no task run has the id {task_run_id} in {self.store.location}")

    def read_task_run_states(
        self, task_run_id: UUID | str, *, flow_run_id: UUID | str | None = None
    ) -> list[State[Any]]:
        """Every recorded state of a task run, in order."""
        key = UUID(str(task_run_id))
        if self.tasks.find(key) is not None:
            return self.tasks.states(key)
        for run in self.logs_of(key, flow_run_id):
            return run.task_states(str(key), rolled_back=True)
        raise ObjectNotFound(f"no task run has the id {task_run_id} in {self.store.location}")

    def logs_of(self, task_run_id: UUID, flow_run_id: UUID | str | None) -> Iterable[Run]:
        """The logs that hold a task run, most likely ones first; without `flow_run_id` every log may be read."""
        first = [run_id for run_id, live in list(self.owned.items()) if str(task_run_id) in live.live]
        if flow_run_id is None:
            try:  # a deferred run has a log of its own
                yield self.fold_what_is_readable(str(task_run_id))[0]
            except ObjectNotFound:
                pass
        candidates = [str(flow_run_id)] if flow_run_id is not None else [*first, *reversed(self.store.list())]
        for run_id in candidates:
            run, _ = self.fold_what_is_readable(run_id)
            if str(task_run_id) in run.tasks:
                yield run

    def read_task_run_parameters(self, task_run_id: UUID | str) -> dict[str, Any]:
        """What a deferred task run was given: ``parameters``, ``wait_for`` and ``context``, those of them that there
        are. ObjectNotFound when it is no deferred run, SerializationError when a value cannot be made again here."""
        return carried_by(self.fold(str(task_run_id)))

    def read_task_runs(
        self,
        *,
        flow_run_id: UUID | str,
        names: Iterable[str] | None = None,
        state_types: Iterable[StateType | str] | None = None,
        state_names: Iterable[str] | None = None,
        tags: Iterable[str] | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[TaskRun]:
        """The task runs of one flow run that fit every filter given (see :meth:`read_flow_runs`), in the order of their
        creation."""
        run = self.fold(str(flow_run_id))
        flow_state = self.seen(run)
        found = (run.seen_task(task_id, flow_state) for task_id in run.tasks)
        fits = run_filter(names, state_types, state_names, tags, after, before)
        return [task for task in found if fits(task)][offset:][:limit]

    def read_asset_events(
        self,
        *,
        flow_run_id: UUID | str | None = None,
        task_run_id: UUID | str | None = None,
        asset_key: str | None = None,
    ) -> list[AssetEvent]:
        """What happened to assets, in the order in which it was recorded: in one flow run, by one task run, to one
        asset, or all of these. Without `flow_run_id` the logs of all runs are read."""
        from .asset_events import read_asset_events  # rare: only to ask for them

        return read_asset_events(self, flow_run_id, task_run_id, asset_key)

    def read_deployment(self, deployment_id: UUID | str) -> Deployment:
        """A deployment, by its id, by ``"flow name/name"``, or by its name where only one has it."""
        from .deployments import read_deployment  # few programs deploy

        return read_deployment(self.store.deployments, deployment_id)

    def read_deployments(self) -> list[Deployment]:
        """All deployments that can be read, by their names."""
        from .deployments import list_deployments  # few programs deploy

        return list_deployments(self.store.deployments)
