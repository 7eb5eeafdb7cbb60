# SPDX-License-Identifier: Apache-2.0
"""The owner's side of an attempt that runs elsewhere.

A task run that is dispatched has the ordinary engine, in the process that owns it: it resolves the parameters,
appends Running, retries, times out and calls hooks as everywhere. Only the call of the function differs: it sends a
call envelope through a *carrier* and takes the outcome in. So one envelope is one attempt, and no rule of a run's
life is written here.

Order when an outcome arrives: what was logged is logged here, the records of the calls that the task made are appended,
and only then the attempt ends, so that a reader never finds an ended task whose calls are not on record.
"""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ._captured_logs import levels, log_again
from ._carried import checked_news, files_of, history_of, parts
from ._containers import contains_special
from ._envelope import (
    ORIGIN,
    join,
    pack_argument,
    pack_task,
    resolver_of_owner,
    split,
    unpack_error,
)
from ._forks import new_lock
from ._loggers import get_logger
from ._processes import (
    LAUNCHERS,
    AttemptTimedOut,
    InitializerFailed,
    Launcher,
    LauncherGone,
    Worker,
    default_start_method,
)
from ._task_lifecycle import TaskRunTimeoutError
from ._waits import Outcome
from ._worker_process import pack_initializer
from .context import serialize_context
from .entrypoints import describe_main
from .exceptions import AttemptCancelled, SerializationError, WorkerLost, describe
from .serializers import unpack
from .states import Cancelled, State
from .task_engine import SyncTaskRunEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from .calls import Call
    from .client.live import LiveRun
    from .tasks import Task

    Packed = tuple[str, bytes]
    OnLog = Callable[[dict[str, Any]], None]

R = TypeVar("R")

#: the module that every program with transactions has loaded
TRANSACTIONS = f"{__name__.rpartition('.')[0]}.transactions"
#: and the one of those with assets
ASSETS = f"{__name__.rpartition('.')[0]}._assets"

#: why a worker was killed whose run was cancelled
CANCELLED = "the run was cancelled"
LEFT = "no worker process runs it: its runner was left"


class PackedCall:
    """What of a call was written when it was submitted: the task, and the arguments that no run has to make first."""

    __slots__ = ("arguments", "task")

    def __init__(self, task: Task[Any, Any], parameters: dict[str, Any]) -> None:
        """NotTransferable, naming the culprit and the cure, for what cannot be sent."""
        self.task = pack_task(task)
        self.arguments = {
            name: pack_argument(task, name, value)
            for name, value in parameters.items()
            if not contains_special((value,)) or not _needs_resolving(value)
        }


def _needs_resolving(value: Any) -> bool:
    from ._arguments import allow_failure, find, opaque, quote, unmapped  # only for arguments that are no scalars
    from .futures import RunFuture  # likewise

    if isinstance(value, (allow_failure, opaque, quote, unmapped)):
        return True
    return bool(find(value, (RunFuture, State, allow_failure, opaque, quote, unmapped)))


def _assets_made() -> list[str] | None:
    """The keys of the assets that the current task makes; None if it has to do with none."""
    assets: Any = sys.modules.get(ASSETS)
    context = None if assets is None else assets.AssetContext.get()
    return None if context is None else [asset.key for asset in context.downstream_assets]


class Carrier(Protocol):
    """Brings a call envelope to a worker and its outcome back."""

    def carry(self, run_id: UUID, payload: bytes, timeout: float | None, on_log: OnLog) -> bytes:
        """The outcome envelope. AttemptTimedOut after `timeout` seconds; WorkerLost when there will never be one;
        AttemptCancelled when it was cancelled meanwhile."""
        ...


class DispatchingTaskRunEngine(SyncTaskRunEngine[R]):
    """The engine of a task run whose attempts run elsewhere; of blocking and coroutine tasks alike."""

    def __init__(
        self,
        task: Task[Any, R],
        parameters: dict[str, Any],
        call: Call,
        packed: PackedCall,
        carrier: Carrier,
        *,
        wait_for: Any = None,
        context: dict[str, Any] | None = None,
        on_log: OnLog = log_again,
    ) -> None:
        super().__init__(task, parameters, call.task_run, wait_for=wait_for, context=context)
        self._call = call
        self._packed = packed
        self._carrier = carrier
        self._on_log = on_log
        # how often the task made each of its calls in the attempts before: the next one goes on counting
        self._calls_made: dict[str, int] = {}

    async def _call_fn(self) -> Outcome[Any]:
        """Have one attempt run elsewhere: what it returns or raises."""
        assert self.task_run is not None
        attempt = uuid.uuid4().hex
        seconds = self.task.timeout_seconds or None
        try:
            payload = self._payload(attempt)
            try:
                answer = self._carrier.carry(self.task_run.id, payload, seconds, self._on_log)
            except AttemptTimedOut:
                late = TaskRunTimeoutError(f"task {self.task.name!r} timed out after {seconds:g} second(s)")
                return Outcome(error=late)
            return Outcome(self._take_in(answer, attempt))
        except Exception as error:  # the task's own out of its envelope, or the log's: the engine tells them apart
            return Outcome(error=error)

    def _start_limit(self) -> Any:
        return None  # the clock runs where the attempt runs: its carrier reports when it is over

    def handle_crash(self, error: BaseException) -> None:
        """As for every interrupt; CANCELLED, when the worker was killed for that."""
        if not isinstance(error, AttemptCancelled):
            super().handle_crash(error)
        elif not self.state.is_final():
            self._raised = error
            self.set_state(Cancelled(message=str(error)), force=True)

    @property
    def _live(self) -> LiveRun | None:
        call = self._call
        return None if call is None or call.flow_context is None else call.flow_context.live

    def _payload(self, attempt: str) -> bytes:
        assert self.task_run is not None
        (described, fn), known, live = self._packed.task, self._packed.arguments, self._live
        arguments = {
            name: known[name] if name in known else pack_argument(self.task, name, value)
            for name, value in self.parameters.items()
        }
        records, dropped = ([], []) if live is None else history_of(live.run, self.task_run.id)
        files = {} if live is None else files_of(records, live.run_id, live.store)
        header = {
            "attempt": attempt,
            "origin": ORIGIN,
            "task": [described, None if fn is None else fn[0]],
            "parameters": [[name, form] for name, (form, _) in arguments.items()],
            "main": describe_main(),
            "context": serialize_context(),
            "calls": self._calls_made,
            "history": {"records": records, "dropped": dropped, "files": list(files)},
            "levels": levels(),
            "transactions": TRANSACTIONS in sys.modules,
            "assets": _assets_made(),
        }
        blobs = [] if fn is None else [fn[1]]
        return join(header, [*blobs, *(data for _, data in arguments.values()), *files.values()])

    def _take_in(self, outcome: bytes, attempt: str) -> R:
        header, blobs = split(outcome)
        if header["attempt"] not in (attempt, None):  # None: the envelope came damaged, which its error says
            raise SerializationError(f"the outcome of attempt {header['attempt']} came back for attempt {attempt}")
        for record in header["logs"]:
            self._on_log(record)
        self._calls_made = header["calls"]
        for key, metadata in header.get("assets", {}).items():
            sys.modules[ASSETS].add_asset_metadata(key, metadata)
        reported = checked_news(header["news"])
        if reported and self._live is not None:
            self._live.append_reported(parts(reported), blobs[1:])
        resolve = resolver_of_owner(header["main"])
        if header["kind"] == "value":
            value: R = unpack(header["form"], blobs[0], allow_pickle=True, resolve=resolve)
            return value
        error = unpack_error(header["form"], blobs[0], resolve)
        if header["kind"] == "interrupt" and isinstance(error, Exception):  # its class is not here
            raise WorkerLost(f"the task was interrupted: {error}")
        raise error


class ProcessCarrier:
    """Carries envelopes to worker processes of its own: as many as calls are under way, each used again."""

    def __init__(
        self,
        start_method: str | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        calls_of_a_worker: int | None,
    ) -> None:
        self._start_method = start_method or default_start_method()
        self._initialize = pack_initializer(initializer, initargs)
        self._calls_of_a_worker = calls_of_a_worker
        # guards the fields below; held for no longer than a look-up, but for the making of the launcher
        self._lock = new_lock()
        self._launcher: Launcher | None = None
        self._gone: list[Launcher] = []
        self._idle: list[Worker] = []
        self._busy: dict[UUID, Worker] = {}
        self._closed = False

    def carry(self, run_id: UUID, payload: bytes, timeout: float | None, on_log: OnLog) -> bytes:
        """See :class:`Carrier`. The clock of `timeout` runs from the moment when a worker is ready."""
        may_repeat = True  # once: what kills a worker before it begins may be the call itself, by its size
        while True:
            idle = self._take_idle() if may_repeat else None
            worker = idle or self._start()
            with self._lock:
                closed = self._closed
                if not closed:
                    self._busy[run_id] = worker
            if closed:
                worker.end()
                raise WorkerLost(LEFT)
            outcome: bytes | None = None
            lost: WorkerLost | None = None
            try:
                outcome = worker.call(payload, timeout, on_log)
            except WorkerLost as error:
                lost = error
            finally:
                with self._lock:
                    del self._busy[run_id]
                    cancelled = worker.killed_for == CANCELLED
            if cancelled:  # also when its outcome had come: that it was killed has been answered
                worker.end()
                raise AttemptCancelled(f"Its worker process was killed: {CANCELLED}.")
            if lost is not None:
                raise lost
            if outcome is not None:
                self._give_back(worker)
                return outcome
            if idle is None:
                raise WorkerLost(f"worker process {worker.pid} {worker.end()} before it began the task")
            may_repeat = False  # it may have ended while it was idle, and nothing was begun

    def _take_idle(self) -> Worker | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _start(self) -> Worker:
        """A new worker, ready for a call. WorkerLost when there can be none."""
        while True:
            launcher = None
            try:
                with self._lock:
                    if self._closed:
                        raise WorkerLost(LEFT)
                    launcher = self._launcher
                    if launcher is None:
                        launcher = self._launcher = LAUNCHERS[self._start_method]()
                worker = Worker(launcher, self._initialize)
            except LauncherGone as gone:  # somebody killed it, or it could never serve
                self._drop(launcher, gone.has_served)
                if not gone.has_served:
                    raise WorkerLost(f"no worker process could be started: {gone}") from None
                continue
            except OSError as refusal:
                raise WorkerLost(f"no worker process could be started: {refusal}") from refusal
            try:
                worker.wait_until_ready()
            except InitializerFailed as failure:
                error = unpack_error(*failure.packed, resolver_of_owner(()))
                raise WorkerLost(f"the initializer of its worker process failed: {describe(error)}") from error
            return worker

    def _drop(self, launcher: Launcher | None, has_served: bool) -> None:
        with self._lock:
            if launcher is None or self._launcher is not launcher:  # another thread has
                return
            self._launcher = None
            if has_served:  # those whom it started live on, as long as their life line
                self._gone.append(launcher)
                return
        launcher.close()

    def _give_back(self, worker: Worker) -> None:
        used_up = self._calls_of_a_worker is not None and worker.calls >= self._calls_of_a_worker
        if used_up or worker.killed_for is not None:  # it was killed when it had just ended its call
            worker.end()
            return
        with self._lock:
            self._idle.append(worker)

    def kill(self, run_id: UUID) -> bool:
        """Kill the process that a run's attempt runs in, because the run was cancelled; False when none does."""
        with self._lock:  # while it is killed, too: or it might have begun with another run
            worker = self._busy.get(run_id)
            return worker is not None and worker.kill(CANCELLED)

    def kill_all(self, why: str) -> None:
        """Kill every process that runs an attempt now; no other attempt is begun."""
        with self._lock:
            self._closed = True
            busy = list(self._busy.values())
        for worker in busy:
            worker.kill(why)

    def pids(self) -> list[int]:
        """The worker processes there are now."""
        with self._lock:
            return [worker.pid for worker in (*self._idle, *self._busy.values())]

    def close(self) -> None:
        """End all workers and what started them. No call is under way any more."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            launchers, self._launcher, self._gone = [*self._gone, self._launcher], None, []
        for worker in idle:
            worker.hang_up()  # all at once, then one by one
        for worker in idle:
            worker.end()
        for launcher in launchers:
            if launcher is not None:
                launcher.close()


class MessageProcessors:
    """The functions that see each message of a worker before it is delivered, in order.

    Each is given ``(type, payload)`` and returns such a pair, or None to drop the message. What one raises drops
    the message and is logged. A RuntimeError out of the delivery itself ends it for that type."""

    def __init__(self, factories: Iterable[Callable[[], Any]], sink: OnLog = log_again) -> None:
        self._sink: OnLog | None = sink
        self._processors = []
        for factory in factories:
            try:
                self._processors.append(factory())
            except Exception:  # the user's: the others are used
                get_logger("task_runners").exception("a subprocess message processor could not be made")

    def deliver(self, kind: str, payload: dict[str, Any]) -> None:
        """Process and deliver one message."""
        message: Any = (kind, payload)
        for processor in self._processors:
            try:
                message = processor(*message)
            except Exception:  # the user's: the message is dropped
                get_logger("task_runners").exception("a subprocess message processor raised")
                return
            if message is None:
                return
            if not (isinstance(message, tuple) and len(message) == 2 and isinstance(message[0], str)):
                get_logger("task_runners").warning("a subprocess message processor returned %r", message)
                return
        if message[0] != "log":
            get_logger("task_runners").warning("a message of the unknown type %r is dropped", message[0])
        elif self._sink is not None:
            try:
                self._sink(message[1])
            except RuntimeError:  # a handler that is shut down: the next would fail as well
                self._sink = None
            except Exception:  # a handler's: the next record may fare better
                get_logger("task_runners").exception("a record that a worker logged could not be logged here")
