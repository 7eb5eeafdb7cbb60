# SPDX-License-Identifier: Apache-2.0
"""The in-process API over the state log: create, claim, ask, delete; what is read stands in ``reading``.

:class:`SyncClient` does the work; ``coroutines.Client`` has the same methods as coroutines.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from .._forks import new_lock
from .._kept import keep
from .._waits import now_us
from ..entrypoints import entrypoint_of
from ..events import Record
from ..exceptions import (
    ConfigurationError,
    Conflict,
    NotPausedError,
    ObjectNotFound,
    RunningElsewhere,
    StorageError,
)
from ..log import FORMAT, FORMAT_VERSION
from ..settings import current_settings, readable_home, resolve_home
from ..states import Pending, Scheduled, State
from ..stores import FileStore, MemoryStore, Store, make_store
from .coroutines import Client as Client
from .deferred import first_line
from .fold import Run, state_record
from .live import Answer, LiveRun
from .objects import FINAL, FlowRun, TaskRun, id_of_key, new_run_id, random_name
from .reading import Reader
from .requests import cancel, fail_expired, resume, suspend, why_not_restartable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from uuid import UUID

    from ..flows import Flow
    from ..tasks import Task

#: how long a claimant waits for a live owner to let go, in seconds
CLAIM_PATIENCE = 0.1
LEAVING_PATIENCE = 60.0


class SyncClient(Reader):
    """Reads and writes the runs of one store. Usable directly, and as a context manager."""

    def __init__(self, store: Store, *, keep_results: bool = True) -> None:
        super().__init__(store)
        self.keep_results = keep_results

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    # ------------------------------------------------------------------------------------ create, claim

    def create_flow_run(
        self,
        flow: Flow[Any, Any],
        *,
        parameters: dict[str, Any] | None = None,
        state: State[Any] | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
        idempotency_key: str | None = None,
    ) -> FlowRun:
        """Create a run that nobody owns yet, PENDING or SCHEDULED (now unless `state` says otherwise). A SCHEDULED one
        is put into the queue, for whoever serves the flow; make it PENDING to run it yourself with ``run_flow``.

        A second call with the same `idempotency_key`, in whatever process, gives the run that the first one made."""
        run = self.new_flow_run(
            flow, name=name, tags=tags, id=_id_under(idempotency_key, flow.name), idempotency_key=idempotency_key
        )
        return self._create(run, parameters or {}, state, flow.bound_names)

    def _create(
        self, flow_run: FlowRun, parameters: dict[str, Any], state: State[Any] | None, bound: Iterable[str] = ()
    ) -> FlowRun:
        """Record a run that nobody owns, then put it into the queue. Dying in between leaves a run that nobody looks
        for until it is created again under its key, or a server looks through the home."""
        run_id = flow_run.text
        try:
            created = self.start(flow_run, None, parameters, state or Scheduled(), own=False, bound=bound).flow_run
        except Conflict:
            if flow_run.idempotency_key is None:
                raise
            created = self.read_flow_run(run_id)
        if created.state is not None and created.state.is_scheduled():
            self.store.queue.put(run_id)
        self.store.close(run_id)
        return created

    def new_flow_run(self, flow: Flow[Any, Any], *, name: str | None = None, **fields: Any) -> FlowRun:
        """A flow run object with a fresh id, not recorded yet."""
        fields["tags"] = set(fields.get("tags") or ())
        policy = {"retries": flow.retries, "retry_delay": flow.retry_delay_seconds} if flow.retries else {}
        return FlowRun(
            fields.pop("id", None) or new_run_id(),
            name or random_name(),
            flow_name=flow.name,
            flow_version=flow.call_version or None,
            entrypoint=entrypoint_of(flow.fn),
            empirical_policy=policy,
            **fields,
        )

    def start(
        self,
        flow_run: FlowRun,
        flow: Flow[Any, Any] | None,
        parameters: dict[str, Any],
        state: State[Any],
        *,
        own: bool,
        bound: Iterable[str] = (),
        given: str | None = None,
    ) -> LiveRun:
        """Append the first line of a run: header, the owner's claim if `own`, first state. Precedes all else;
        dying before it, nothing happened; dying after it, the run can be found and taken over. `given` is a digest of
        what the parameters were made of."""
        run_id = str(flow_run.id)
        bound = bound if flow is None else flow.bound_names
        stored = {name: value for name, value in parameters.items() if name not in bound}
        header: dict[str, Any] = {"k": "run", "format": FORMAT, "version": FORMAT_VERSION}
        header.update(reader=FORMAT_VERSION, writer=FORMAT_VERSION, id=run_id, nonce=os.urandom(16).hex())
        header.update(name=flow_run.name, flow=flow_run.flow_name)
        optional = {
            "flow_version": flow_run.flow_version,
            "entrypoint": flow_run.entrypoint,
            "tags": sorted(flow_run.tags) or None,
            "policy": flow_run.empirical_policy or None,
            "parent_task": flow_run.parent_task_run_id and str(flow_run.parent_task_run_id),
            "parent_flow": flow_run.parent_flow_run_id and str(flow_run.parent_flow_run_id),
            "root": None if flow_run.root_flow_run_id == flow_run.id else str(flow_run.root_flow_run_id),
            "key": flow_run.idempotency_key,
            "deployment": flow_run.deployment_id and str(flow_run.deployment_id),
            "cwd": _working_folder(),
            "given": given,
        }
        header.update({key: value for key, value in optional.items() if value is not None})
        # a subflow is run again by its parent, which has what it was given: futures, for example
        warn_of = None if flow_run.parent_flow_run_id is not None else "parameters"
        header["parameters"] = keep(stored, run_id, self.store, flow_run.flow_name, warn_of)
        if header["parameters"] is None or "json" not in header["parameters"]:
            header["shown"] = {name: _shown_value(value) for name, value in stored.items()}
        bodies = [header]
        token = self.store.own() if own else None
        if token is not None:
            bodies.append({"k": "claim", "owner": token, "pid": os.getpid(), "host": host_name()})
        bodies.append(state_record(state, None, None))
        epoch, now = 1 if own else None, now_us()
        try:
            self.store.append(run_id, bodies, expect=0, epoch=epoch, time_us=now)
        except BaseException:
            if token is not None:
                self.store.disown(token)
            raise
        run = Run(run_id, self.store)
        return self._adopt(run, token, [Record(run_id, 0, epoch, now, body["k"], body) for body in bodies])

    def create_deployment(
        self,
        flow: Flow[Any, Any] | str,
        name: str,
        parameters: dict[str, Any] | None = None,
        *,
        tags: Iterable[str] = (),
        description: str | None = None,
        version: str | None = None,
    ) -> UUID:
        """Record what runs of a flow, or of what ``path.py:flow`` or ``module:flow`` names, are made from; gives the
        id. One of the same flow and name is replaced; runs that were made from it stay as they are.

        `parameters` are what its runs are given unless they are given something else, `tags` what they are tagged
        with. InvalidNameError, ParameterBindError, MissingFlowError or SerializationError (parameters are kept as
        JSON) before anything is written."""
        from .deployments import put_deployment  # few programs deploy

        return put_deployment(self.store.deployments, flow, name, parameters, tags, description, version)

    def delete_deployment(self, deployment_id: UUID | str) -> None:
        """Delete a deployment; its runs stay. ObjectNotFound when there is none."""
        self.store.deployments.remove(str(self.read_deployment(deployment_id).id))

    def create_flow_run_from_deployment(
        self,
        deployment_id: UUID | str,
        *,
        parameters: dict[str, Any] | None = None,
        state: State[Any] | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
        idempotency_key: str | None = None,
    ) -> FlowRun:
        """Create a run of a deployed flow for whoever serves it, as :meth:`create_flow_run` does; the code is not
        loaded. `deployment_id` is anything that :meth:`read_deployment` takes. ParameterBindError, before anything is
        recorded, when the flow does not take `parameters`."""
        deployment = self.read_deployment(deployment_id)
        run = FlowRun(
            _id_under(idempotency_key, deployment.flow_name) or new_run_id(),
            name or random_name(),
            flow_name=deployment.flow_name,
            flow_version=deployment.version,
            tags={*deployment.tags, *tags},
            entrypoint=deployment.entrypoint,
            empirical_policy=deployment.retries,
            idempotency_key=idempotency_key,
            deployment_id=deployment.id,
        )
        return self._create(run, deployment.bound(parameters or {}), state)

    def create_task_run(
        self,
        task: Task[Any, Any],
        task_run: TaskRun,
        *,
        state: State[Any] | None = None,
        parameters: dict[str, Any] | None = None,
        wait_for: Any = None,
        context: dict[str, Any] | None = None,
    ) -> TaskRun:
        """Record a deferred run of `task`, SCHEDULED for now unless `state` says otherwise, and put it into the queue.

        `task_run` is what :func:`~microflow.calls.deferred_call` made. A run of that id which is recorded already (the
        flow that made it is run again) is given back as it is. SerializationError, before anything is recorded, when
        an argument cannot be carried to another process.

        The append precedes the entry in the queue: dying in between leaves a run that nobody looks for, until the
        flow that made it is run again; dying after it, any worker may claim the run."""
        given = {"parameters": parameters, "wait_for": wait_for, "context": context}
        carried = {name: value for name, value in given.items() if value}
        state = Scheduled() if state is None else state
        details = state.state_details
        details.deferred, details.task_run_id, details.flow_run_id = True, task_run.id, task_run.flow_run_id
        if carried.keys() & {"parameters", "wait_for"}:
            details.task_parameters_id = task_run.id
        run_id = task_run.text
        source, entrypoint = task.source_digest, entrypoint_of(task.fn)
        bodies = first_line(task_run, state, carried, self.store, source=source, entrypoint=entrypoint)
        try:
            self.store.append(run_id, bodies, expect=0)
        except Conflict:
            pass
        run = self.fold(run_id)
        recorded = run.task_run(run_id)
        if recorded.state is None or not recorded.state.is_final():
            self.store.queue.put(run_id)
        self.store.close(run_id)
        return recorded

    def claim(
        self, run_id: str, *, steal: bool = False, force: bool = False, patience: float | None = None
    ) -> LiveRun:
        """Take over a run whose process let go or died: append a claim, nothing else.

        RunningElsewhere while a live process owns it, unless `steal`: then that one is fenced by its next
        append. NotPausedError for a run that has ended, unless `force`, an operator's word: its failed calls
        are dropped then, its completed ones kept. A COMPLETED run is never started again. An owner that is about to
        let go is waited for, at most `patience` seconds."""
        while True:
            run = self.free_run(run_id, steal=steal, patience=patience)
            state = run.flow_run.state
            final = state is not None and state.type in FINAL
            if state is not None and final and (state.is_completed() or not force):
                raise NotPausedError(f"flow run {run_id} has ended as {state}; it is not waiting to be resumed")
            live = self.append_claim(run, forced=final)
            if live is not None:
                return live

    def free_run(self, run_id: str, *, steal: bool = False, patience: float | None = None) -> Run:
        """The run as it is, which no live process owns, or `steal`. An owner is given :data:`CLAIM_PATIENCE`
        to let go, one that was suspended :data:`LEAVING_PATIENCE`, for what has started there ends first, but no more
        than `patience` seconds; then RunningElsewhere is raised. Appends nothing."""
        began = time.monotonic()
        while True:
            run = self.fold(run_id)
            if steal or not self.is_alive(run):
                return run
            state = run.flow_run.state
            leaves = state is not None and state.is_left()
            limit = LEAVING_PATIENCE if leaves else CLAIM_PATIENCE
            if time.monotonic() >= began + (limit if patience is None else min(limit, patience)):
                raise RunningElsewhere(
                    f"flow run {run_id} is running in process {run.owner_pid} on {run.owner_host}; "
                    f"stop that process, or take the run from it with --steal"
                )
            time.sleep(0.01)

    def append_claim(self, run: Run, *, forced: bool) -> LiveRun | None:
        """Precedes everything that the new owner appends: from here on the old owner is fenced. None when
        somebody else appended first."""
        token = self.store.own()
        body: dict[str, Any] = {"k": "claim", "owner": token, "pid": os.getpid(), "host": host_name()}
        bodies = [body]
        if forced:
            body["forced"] = True
            state = Pending(name="Resuming", message="Started again by an operator.")
            assert run.flow_run.state is not None
            state.at = max(state.at, run.flow_run.state.at + 1)
            bodies.append(state_record(state, None, None))
        at, epoch, now = run.position, run.epoch + 1, now_us()
        try:
            self.store.append(run.run_id, bodies, expect=at, epoch=epoch, time_us=now)
        except Conflict:
            self.store.disown(token)
            return None
        except BaseException:
            self.store.disown(token)
            raise
        return self._adopt(run, token, [Record(run.run_id, at, epoch, now, body["k"], body) for body in bodies])

    def _adopt(self, run: Run, token: str | None, appended: list[Record]) -> LiveRun:
        """Make what was appended so in memory, and publish it."""
        run.fold(appended)
        live = LiveRun(run, self.store, token, keep_results=self.keep_results)
        if token is not None:
            self.owned[run.run_id] = live
        if self.store.bus.has_subscribers(run.run_id):
            self.store.bus.publish(appended)
        return live

    def let_go(self, live: LiveRun) -> None:
        """Release a run that this process owns. One that came from the queue and is not to be claimed any more leaves
        it; dying before that, the entry leads to a run that has ended, and whoever looks at it removes it."""
        try:
            live.release()
        finally:  # not before: the run would look like one whose process has died
            self.owned.pop(live.run_id, None)
        state = live.run.flow_run.state
        if live.run.was_queued and state is not None and (state.is_final() or state.is_suspended()):
            try:
                self.dequeue(live.run_id)
            except StorageError:  # an entry that stands too long does no harm
                pass

    def abandon(self, live: LiveRun) -> None:
        """Forget a run that this process owns, without an append."""
        self.owned.pop(live.run_id, None)
        live.abandon()

    # --------------------------------------------------------------------------------------------- writing

    def set_flow_run_state(self, flow_run_id: UUID | str, state: State[Any], force: bool = False) -> Answer:
        """Propose a state for any flow run, also one that another process owns; that process is told."""
        with self.addressed(flow_run_id) as live:
            return live.propose(state, force=force)

    @contextmanager
    def addressed(self, flow_run_id: UUID | str) -> Iterator[LiveRun]:
        """The run as one that requests can be addressed to, whoever owns it."""
        owned = self.owned.get(str(flow_run_id))
        live = owned or LiveRun(self.fold(str(flow_run_id)), self.store, None, keep_results=self.keep_results)
        try:
            yield live
        finally:
            if live.run_id not in self.owned:  # it may be run here by now
                self.store.close(live.run_id)

    def resume_flow_run(
        self, flow_run_id: UUID | str, run_input: dict[str, Any] | None = None, *, queue: bool = True
    ) -> None:
        """Let a paused run go on, with what it asked for; a suspended one can be run again then, by whoever serves its
        flow, unless `queue` is False: then the caller is going to. Exactly one of any number of concurrent calls
        succeeds. See ``flow_runs.resume_flow_run``."""
        if run_input is not None and not isinstance(run_input, dict):
            raise TypeError(f"run_input must be a dict, got {type(run_input).__name__}")
        with self.addressed(flow_run_id) as live:
            from .inputs import answer_records  # rare: with what checks an answer against its schema

            answers = partial(answer_records, live.run, run_input=run_input)
            answer = resume(live, self._works, answers, why_not_restartable)
        if queue and answer.state is not None and answer.state.is_resuming():
            self.store.queue.put(live.run_id)

    def expire_pause(self, flow_run_id: UUID | str) -> Answer:
        """Record FAILED of a run whose pause was not resumed in time, unless the process that is paused lives, which
        does that itself. Rejected, and nothing recorded, for any other run."""
        with self.addressed(flow_run_id) as live:
            return fail_expired(live, self._works)

    def dequeue(self, run_id: str) -> None:
        """Take a run out of the queue that has ended, or is suspended. One that was resumed meanwhile is put back:
        who resumes appends first, so either its entry comes after this, or its Resuming is seen here."""
        if self.store.queue.take(run_id):
            state = self.fold(run_id).flow_run.state
            if state is not None and state.is_resuming():
                self.store.queue.put(run_id)
            if run_id not in self.owned:
                self.store.close(run_id)

    def suspend_flow_run(self, flow_run_id: UUID | str, state: State[Any], inputs: Iterable[Any] = ()) -> None:
        """Ask a running run to leave at the next boundary: propose `state`, a Suspended, beside `inputs`, what it asks.
        Without effect when it is suspended already, RuntimeError when it does not run or could not be run again."""
        with self.addressed(flow_run_id) as live:
            reason = why_not_restartable(live)
            if reason is None:
                answer = suspend(live, state, list(inputs))
                if answer.accepted or (answer.state is not None and answer.state.is_running()):
                    return  # one whose key is known was passed before
                reason = answer.reason
            raise RuntimeError(f"Flow run {live.run_id} cannot be suspended: {reason}")

    def cancel_flow_run(self, flow_run_id: UUID | str) -> State[Any]:
        """Ask a run to stop; gives the state that it is in then. Its process stops at the next boundary: a task call,
        a wait of ours, the end of the body; what no process runs is CANCELLED at once."""
        with self.addressed(flow_run_id) as live:
            state = cancel(live, self._works).state
        assert state is not None, "a run has a state from its first line"
        if state.is_final():
            self.store.queue.take(live.run_id)
        return state

    def _works(self, live: LiveRun) -> bool:
        return self.is_alive(live.run)

    def set_task_run_state(self, task_run_id: UUID | str, state: State[Any], force: bool = False) -> Answer:
        """Propose a state for a deferred task run, for example Cancelled while it waits for a worker; an end takes it
        out of the queue. ObjectNotFound for other task runs: their states are their engine's."""
        with self.addressed(task_run_id) as live:
            if not live.run.is_task:
                raise ObjectNotFound(f"{live.run_id} is a flow run, not a deferred task run")
            task_run = live.live.get(live.run_id) or live.run.task_run(live.run_id)
            state.state_details.task_run_id, state.state_details.flow_run_id = task_run.id, task_run.flow_run_id
            answer = live.propose_task(task_run, state, force=force)
        if answer.accepted and state.is_final():
            self.store.queue.take(live.run_id)
        return answer

    def delete_flow_run(self, flow_run_id: UUID | str) -> None:
        """Delete a run, its log and its results. RunningElsewhere while a process owns it."""
        run, _ = self.fold_what_is_readable(str(flow_run_id))
        if self.is_alive(run):
            raise RunningElsewhere(f"flow run {run.run_id} is running in process {run.owner_pid}; it was not deleted")
        self.store.delete(run.run_id)
        self.store.queue.take(run.run_id)


def _shown_value(value: Any) -> Any:
    """A parameter for people, beside one that is kept elsewhere: short, since it stands in the header."""
    from .._plain_json import plain  # rare: only for what the log shows of a value

    form = plain(value)
    length = len(json.dumps(form))
    return form if length <= 1000 else f"<{type(value).__name__}, {length:,} characters of JSON>"


def _id_under(key: str | None, flow_name: str) -> UUID | None:
    return None if key is None else id_of_key(flow_name, key)


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted, which does not concern the run
        return None


def host_name() -> str:
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "unknown")


# guards the table of clients; held while a client is made, which opens nothing
_lock = new_lock()
_clients: dict[tuple[str, str, bool, str | None], SyncClient] = {}


def _own_store(durability: str) -> Store:
    home = resolve_home()  # checked once: a home that was named and cannot be used is an error
    return MemoryStore() if home == ":memory:" else FileStore(home, "disk" if durability == "disk" else "process")


def current_client() -> SyncClient:
    """The client of the home that the settings name now; one for each home and process."""
    settings = current_settings()
    key = (settings.home or resolve_home(), settings.durability, settings.keep_results, settings.store)
    client = _clients.get(key)
    if client is None:
        home, durability, keep_results, maker = key
        with _lock:
            client = _clients.get(key)
            if client is None:
                store = _own_store(durability) if maker is None else make_store(maker, home)
                client = _clients[key] = SyncClient(store, keep_results=keep_results)
    return client


def get_client(sync_client: bool = False) -> Any:
    """The client of the current home: coroutines and ``async with`` by default, plain calls with `sync_client`. A home
    that can be read but not written is read; what would write there raises StorageError."""
    try:
        client = current_client()
    except ConfigurationError:
        home = readable_home()
        if home is None or current_settings().store is not None:
            raise
        with _lock:
            client = _clients.setdefault((home, "read", True, None), SyncClient(FileStore(home)))
    return client if sync_client else Client(client)


# the reference's spelling
PrefectClient = Client
SyncPrefectClient = SyncClient
