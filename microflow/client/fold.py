# SPDX-License-Identifier: Apache-2.0
"""From records to runs and from states to records.

:class:`Run` is the fold of one log: it takes the records in order and is, after each, what the run was at
that moment. Folding is a pure function of the records; who is alive is asked separately (:meth:`Run.seen`).
Task runs stay in the form in which they were read until somebody asks for one: opening a log must not
cost more than reading it (budget: 8 µs a record).

Members of the records that this module makes and reads, besides ``k``:

======== ===================================================================================================
run      ``name`` ``flow`` ``flow_version`` ``entrypoint`` ``tags`` ``parameters`` (a kept value or null) ``shown``
         (their JSON form when they are not kept as JSON) ``policy`` ``parent_task`` ``parent_flow`` ``root``
         ``key`` (idempotency) ``cwd`` ``deployment`` (its id) ``given`` (digest of what the parameters were made of,
         from who wants to recognise it); of a deferred task run ``task`` (key) in place of ``flow``, see ``deferred``
claim    ``owner`` ``pid`` ``host``; ``forced`` when an operator started a final run again: failed calls are
         dropped, completed ones kept
release  ``handed_back``: how many ended calls this claim handed back without running them; behind the final state of
         a flow run ``books``: what it came to, so that a listing needs only the first and the last line of a log
         (:meth:`Run.fold_ends`). ``runs``, ``ran`` (µs), ``began`` (µs), ``attempt``, ``name``: as in a FlowRun,
         the last three only if they are not what the other two lines say
task     ``run`` (its id) ``name`` ``task`` (key) ``version`` ``source`` (digest of its code) ``tags`` ``inputs``
         ``policy`` ``child`` (the flow run that a subflow's tracking run stands for) ``at`` (µs): its first state is
         Pending, then
state    ``run`` (absent: the flow run) ``type`` ``name`` ``message`` ``at`` (µs) ``details`` ``result``
input    ``key`` ``value`` ``at`` (µs) ``sender`` ``pause`` (it ends with the attempt) ``deleted``, see ``inputs``
rename   ``run`` (absent: the flow run) ``name``
note     ``run`` ``what`` ``at`` (µs), and more of what happened: see ``log``. Changes no state
======== ===================================================================================================
"""

from __future__ import annotations

from binascii import a2b_base64
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from .._kept import KeptResult, ResultFiles
from .._state_parts import DEFAULT_NAMES, TYPES_BY_VALUE
from .._waits import to_datetime, to_us
from ..exceptions import MissingResult
from ..states import Cancelled, Crashed, Failed, State, StateDetails, StateType
from ..transitions import is_expired
from .objects import Constant, FlowRun, FlowRunResult, Parameter, TaskRun, TaskRunResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeGuard

    from ..events import Record

PAUSE_EXPIRED = "Flow run was paused and never resumed."

_INPUTS = {kind.input_type: kind for kind in (TaskRunResult, FlowRunResult, Parameter, Constant)}
#: a state type as records say it, and the name that it has unless it is given another
_WORDS = {kind: (kind.value, name) for kind, name in DEFAULT_NAMES.items()}
_MOMENTS = frozenset({"scheduled_time", "cache_expiration", "pause_timeout"})
_IDS = frozenset({"flow_run_id", "task_run_id", "child_flow_run_id", "transition_id", "task_parameters_id"})
_OWN = frozenset({"flow_run_id", "task_run_id"})  # follow from where the record stands


def state_record(state: State[Any], run: str | None, result: dict[str, Any] | None) -> dict[str, Any]:
    """The record of `state`; `run` is the task run's id, None for the flow run of the log."""
    kind, default_name = _WORDS[state.type]
    record: dict[str, Any] = {"k": "state"}
    if run is not None:
        record["run"] = run
    record["type"] = kind
    if state.name != default_name:
        record["name"] = state.name
    if state.message is not None:
        record["message"] = state.message
    record["at"] = state.at
    if not _OWN.issuperset(state.state_details.__dict__):
        details = {key: _plain(value) for key, value in state.state_details.given().items() if key not in _OWN}
        if details:
            record["details"] = details
    if result is not None:
        record["result"] = result
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_us(value)
    return str(value) if isinstance(value, UUID) else value


def state_of(
    record: dict[str, Any],
    flow_run_id: UUID | None,
    task_run_id: UUID | None,
    store: ResultFiles,
    log: str | None = None,
) -> State[Any]:
    """The state that a record tells; `log` is the id of the log that it stands in, unless that is the flow run's."""
    details = StateDetails(flow_run_id=flow_run_id)
    if task_run_id is not None:
        details.task_run_id = task_run_id
    for key, value in record.get("details", {}).items():
        if key in _MOMENTS:
            value = to_datetime(value)
        elif key in _IDS:
            value = UUID(value)
        details.__dict__[key] = value
    result = record.get("result")
    state: State[Any] = State(
        record["type"],
        name=record.get("name"),
        message=record.get("message"),
        state_details=details,
        data=None if result is None else KeptResult(result, log or str(flow_run_id), store),
    )
    state.at = record["at"]
    return state


def _passed_state(record: dict[str, Any]) -> State[Any]:
    """A state that was left again, as far as the books of its run depend on it: making all of it would take eight times
    as long, and a run has passed through two or more."""
    state: State[Any] = State.__new__(State)
    state.type, state.at = TYPES_BY_VALUE[record["type"]], record["at"]
    state.state_details = details = StateDetails()
    if "details" in record and "scheduled_time" in record["details"]:
        details.scheduled_time = to_datetime(record["details"]["scheduled_time"])
    return state


def note_record(run: str, what: str, at: int, more: dict[str, Any]) -> dict[str, Any]:
    """The record of something that happened around a task run without changing its state."""
    return {"k": "note", "run": run, "what": what, "at": at, **more}


def rolled_back_state(at: int, flow_run_id: UUID | None, task_run_id: UUID) -> State[Any]:
    """How the note that a run was rolled back is listed among its states."""
    details = StateDetails(flow_run_id=flow_run_id, task_run_id=task_run_id)
    state: State[Any] = State(StateType.COMPLETED, name="RolledBack", state_details=details)
    state.at = at
    return state


def task_record(run: TaskRun, source: str | None, pending_since: int | None = None) -> dict[str, Any]:
    """The record that creates a task run, PENDING at that moment if one is given."""
    record: dict[str, Any] = {"k": "task", "run": run.text, "name": run.name, "task": run.task_key}
    if run.task_version is not None:
        record["version"] = run.task_version
    if source is not None:
        record["source"] = source
    if run.tags:
        record["tags"] = sorted(run.tags)
    if run.task_inputs:
        record["inputs"] = {
            name: [[item.input_type, str(item.id or item.name or item.type)] for item in items]
            for name, items in run.task_inputs.items()
        }
    if run.empirical_policy:
        record["policy"] = run.empirical_policy
    if run.child_flow_run_id is not None:
        record["child"] = str(run.child_flow_run_id)
    if pending_since is not None:  # in place of a record of its own
        record["at"] = pending_since
    return record


def _input_of(kind: str, text: str) -> Any:
    if kind in ("task_run", "flow_run"):
        return _INPUTS[kind](id=UUID(text))
    return Parameter(name=text) if kind == "parameter" else Constant(type=text)


class TaskHistory:
    """The records of one task run as they were read, with the claim number of the last. A RolledBack stands
    among ``states``, but as the note that it is."""

    __slots__ = ("caught_up", "committed", "created", "epoch", "flow_run_count", "names", "states")

    def __init__(self, created: dict[str, Any], flow_run_count: int) -> None:
        self.created = created
        self.states: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.epoch = 0
        #: how often the flow run had entered RUNNING when this run was created or last entered it
        self.flow_run_count = flow_run_count
        #: whether records were folded that the live object of this run has not seen
        self.caught_up = False
        #: whether its transaction is on record as committed; otherwise whoever hands the call back commits it again
        self.committed = False

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.names[-1] if self.names else self.created["name"])

    @property
    def last(self) -> dict[str, Any] | None:
        """The record of the last state."""
        record: dict[str, Any]
        for record in reversed(self.states):
            if record["k"] == "state":
                return record
        return None

    @property
    def completed_as(self) -> str | None:
        """The name of its last state if that is a COMPLETED one, which readers see as it is recorded."""
        last = self.last
        if last is None or last["type"] != "COMPLETED":
            return None
        return str(last.get("name", DEFAULT_NAMES[StateType.COMPLETED]))

    @property
    def rolled_back(self) -> bool:
        """Whether its transaction was rolled back after its last state, hooks included."""
        return bool(self.states) and self.states[-1]["k"] == "note"


class Run:
    """One log folded up to ``position``."""

    #: the flow run of the log; live when this fold belongs to the run's engine. There is none before the header record
    flow_run: FlowRun

    def __init__(self, run_id: str, store: ResultFiles) -> None:
        self.run_id = run_id
        self.store = store
        self.position = 0
        self.epoch = 0
        self.owner: str | None = None
        self.owner_pid: int | None = None
        self.owner_host: str | None = None
        self.former_owners: set[str] = set()
        self.header: dict[str, Any] = {}
        self.states: list[State[Any]] = []
        self.tasks: dict[str, TaskHistory] = {}
        #: calls that failed or were rolled back before an operator's claim: run again instead of handed back
        self.dropped: set[str] = set()
        #: the records of the run's inputs by their key, the oldest first
        self.inputs: dict[str, dict[str, Any]] = {}
        #: the pauses that this attempt has passed or stands in; one whose key is known does not pause again
        self.pause_keys: set[str] = set()
        #: the notes about assets, in order
        self.asset_notes: list[dict[str, Any]] = []
        #: whether this is the log of a deferred task run, whose id is the log's. ``flow_run`` then stands for it: it
        #: has the states of the task run, so that claims and listings need not tell the two apart
        self.is_task = False

    @property
    def was_queued(self) -> bool:
        """Whether this is the log of a flow run that may stand in the queue: it was scheduled, or resumed for others to
        run. A retry is its owner's."""
        return not self.is_task and any(
            state.type is StateType.SCHEDULED and state.name != "AwaitingRetry" for state in self.states
        )

    @property
    def flow_of_tasks(self) -> UUID | None:
        """The id of the flow run that the task runs of this log belong to."""
        return self.flow_run.parent_flow_run_id if self.is_task else self.flow_run.id

    def fold(self, records: Iterable[Record]) -> None:
        """Take records in the order of the log."""
        for record in records:
            apply = self._BY_KIND.get(record.kind)
            if apply is not None:
                apply(self, record.data, record)
            self.position = record.position + 1

    def books(self, at: int) -> dict[str, Any]:
        """What the flow run, which ends at `at`, came to beyond what its first and its last line say."""
        flow_run = self.flow_run
        books: dict[str, Any] = {"runs": flow_run.run_count, "ran": flow_run.run_time_at(at)}
        if flow_run._start_time is not None:
            books["began"] = flow_run._start_time
        if flow_run.attempt:
            books["attempt"] = flow_run.attempt
        if flow_run.name != self.header["name"]:
            books["name"] = flow_run.name
        return books

    def fold_ends(self, records: list[Record]) -> bool:
        """Take the records of the first and the last line alone, if the last one says how the run ended and what it
        came to: then ``flow_run`` is what the fold of all lines would make it. The task runs, the inputs and the
        states in between are not known to such a fold. Gives whether that was so; if not, nothing was taken."""
        ended, last = records[-2:]
        books = last.data.get("books") if last.kind == "release" else None
        if not _are_books(books) or ended.kind != "state" or "run" in ended.data or ended.position != last.position:
            return False
        self.fold(records)
        self.epoch = last.epoch or 0
        flow_run = self.flow_run
        flow_run.run_count, flow_run._total_run_time = books["runs"], books["ran"]
        flow_run._start_time = books.get("began", flow_run._end_time)
        flow_run.attempt = books.get("attempt", 0)
        flow_run.name = books.get("name", flow_run.name)
        return True

    # one method for each kind of record; kinds without one change nothing

    def _run(self, data: dict[str, Any], record: Record) -> None:
        self.header, self.is_task = data, "task" in data
        self.flow_run = flow_run = FlowRun(
            UUID(self.run_id),
            data["name"],
            flow_name=data["flow"] if "flow" in data else data["task"],
            flow_version=data.get("flow_version"),
            parameters=shown_parameters(data),
            tags=set(data.get("tags", ())),
            entrypoint=data.get("entrypoint"),
            parent_task_run_id=_uuid(data.get("parent_task")),
            parent_flow_run_id=_uuid(data.get("parent_flow")),
            root_flow_run_id=_uuid(data.get("root")),
            idempotency_key=data.get("key"),
            deployment_id=_uuid(data.get("deployment")),
            empirical_policy=data.get("policy", {}),
        )
        flow_run._created = record.time

    def _claim(self, data: dict[str, Any], record: Record) -> None:
        self.epoch = record.epoch or 0
        if self.owner is not None:
            self.former_owners.add(self.owner)
        self.owner, self.owner_pid, self.owner_host = data["owner"], data.get("pid"), data.get("host")
        if data.get("forced"):
            self.dropped.update(
                key
                for key, task in self.tasks.items()
                if task.last and (task.last["type"] == "FAILED" or task.rolled_back)
            )

    def _release(self, data: dict[str, Any], record: Record) -> None:
        self.owner = self.owner_pid = self.owner_host = None

    def _state(self, data: dict[str, Any], record: Record) -> None:
        if "run" not in data:
            self.enter(state_of(data, self.flow_run.id, None, self.store))
            return
        if self.is_task and data["run"] == self.run_id:
            self.stand_for(self.task_state(data, self.flow_run.id))
        task = self.tasks.get(data["run"])
        if task is not None:
            task.states.append(data)
            self.dropped.discard(data["run"])
            task.epoch = record.epoch or 0
            if data["type"] == "RUNNING":
                task.flow_run_count = self.flow_run.run_count
                task.committed = False

    def enter(self, state: State[Any]) -> None:
        """Make `state` the flow run's, in the fold and in the live run alike (invariant I4)."""
        before, key = self.flow_run.state, state.state_details.pause_key
        if state.name == "AwaitingRetry" or (before is not None and before.is_final() and not state.is_final()):
            self.pause_keys.clear()  # a new attempt pauses again where the last one did, and asks anew
            self.inputs = {key: body for key, body in self.inputs.items() if "pause" not in body}
        elif state.is_paused() and key is not None:
            self.pause_keys.add(key)
        elif state.is_running() and key is not None and state.state_details.pause_reschedule:
            self.pause_keys.discard(key)  # given up: to be made again
        self.flow_run.enter(state)
        self.states.append(state)

    def _task(self, data: dict[str, Any], record: Record) -> None:
        history = self.tasks.get(data["run"])
        if history is None:
            history = self.tasks[data["run"]] = TaskHistory(data, self.flow_run.run_count)
        else:  # recorded once more, after an interrupt, or for another child
            history.created = data
        if "at" in data:
            history.states.append({"k": "state", "run": data["run"], "type": "PENDING", "at": data["at"]})

    def _input(self, data: dict[str, Any], record: Record | None) -> None:
        self.inputs.pop(data["key"], None)  # what is given again counts from now
        if "deleted" not in data:
            self.inputs[data["key"]] = data

    def _rename(self, data: dict[str, Any], record: Record) -> None:
        if "run" not in data:
            self.flow_run.name = data["name"]
        elif data["run"] in self.tasks:
            self.tasks[data["run"]].names.append(data["name"])

    def _note(self, data: dict[str, Any], record: Record) -> None:
        what, run_id = data.get("what"), data.get("run")
        task = self.tasks.get(run_id) if isinstance(run_id, str) else None
        if task is None or type(data.get("at")) is not int:
            return
        if what == "committed":
            task.committed = True
        elif what == "rolled_back":
            task.states.append(data)
        elif what == "asset":
            self.asset_notes.append(data)

    _BY_KIND: ClassVar[dict[str, Callable[[Run, dict[str, Any], Record], None]]] = {
        "run": _run,
        "claim": _claim,
        "release": _release,
        "state": _state,
        "task": _task,
        "rename": _rename,
        "input": _input,
        "note": _note,
    }

    # ------------------------------------------------------------------------------------- what is asked

    def task_run(self, run_id: str, *, id: UUID | None = None, ended: State[Any] | None = None) -> TaskRun:
        """The task run `run_id` of this log (KeyError when there is none). Who has its id, or has made the state that
        :meth:`task_state` makes of its last record, gives it: neither is to be made once more."""
        task = self.tasks[run_id]
        created, flow_run_id = task.created, self.flow_of_tasks
        task_run = TaskRun(
            id or UUID(run_id),
            task.name,
            task_key=created["task"],
            task_version=created.get("version"),
            flow_run_id=flow_run_id,
            tags=set(created.get("tags", ())),
            task_inputs={
                name: [_input_of(*item) for item in items] for name, items in created.get("inputs", {}).items()
            },
            empirical_policy=created.get("policy", {}),
            child_flow_run_id=_uuid(created.get("child")),
        )
        task_run.recorded = True
        records = [record for record in task.states if record["k"] == "state"]
        for record in records[:-1]:
            task_run.enter(_passed_state(record))
        if records:
            task_run.enter(ended or self.task_state(records[-1], task_run.id, task.name))
        task_run.flow_run_run_count = task.flow_run_count
        return task_run

    def task_states(self, run_id: str, *, rolled_back: bool = False) -> list[State[Any]]:
        """Every recorded state of a task run, in order; with `rolled_back` that note as well, listed as a state."""
        task, task_id, states = self.tasks[run_id], UUID(run_id), []
        for record in task.states:
            if record["k"] == "state":
                states.append(self.task_state(record, task_id, task.name))
            elif rolled_back:
                states.append(rolled_back_state(record["at"], self.flow_of_tasks, task_id))
        return states

    def task_state(self, record: dict[str, Any], task_id: UUID, name: str = "") -> State[Any]:
        """The state of the task run called `name` that a record of this log tells."""
        state = state_of(record, self.flow_of_tasks, task_id, self.store, self.run_id)
        if isinstance(state.data, KeptResult):
            state.data.of = name
        return state

    def stand_for(self, state: State[Any]) -> None:
        """Have ``flow_run`` enter a state of the deferred task run that it stands for."""
        self.flow_run.enter(state)
        self.states.append(state)

    def parameters(self) -> dict[str, Any]:
        """The parameters that the run was started with, rebuilt; MissingResult when they were not kept."""
        entry = self.header.get("parameters")
        if entry is None:
            raise MissingResult(
                f"the parameters of flow run {self.run_id} were not kept, because they could not be written; "
                f"they were {self.flow_run.parameters}"
            )
        value: dict[str, Any] = KeptResult(entry, self.run_id, self.store).load()
        return value

    def parameters_document(self) -> Any:
        """Their tagged JSON as it stands, nothing rebuilt; None when they are not kept as JSON."""
        entry = self.header.get("parameters")
        if entry is None or "json" not in (*entry, entry.get("format")):
            return None
        return KeptResult(entry, self.run_id, self.store).document()

    def seen(self, owner_is_alive: bool) -> State[Any] | None:
        """The flow run's state as a reader should see it. A run whose owner died never shows as running:
        CRASHED (CANCELLED when it was to be cancelled, FAILED when its pause expired) is derived here and written by
        nobody."""
        state = self.flow_run.state
        if state is None or state.is_final() or owner_is_alive:
            return state
        message = f"Its process (pid {self.owner_pid} on {self.owner_host}) ended without reporting."
        if self.owner is None:
            message = "Its process let go of it before it ended."
        if state.is_paused() and is_expired(state):
            derived = Failed(message=PAUSE_EXPIRED)
        elif state.is_left() or (self.owner is None and not state.is_running()):
            return state  # these have no process and need none
        else:
            derived = Cancelled(message=message) if state.is_cancelling() else Crashed(message=message)
        derived.at = state.at + 1
        derived.state_details = state.state_details
        return derived

    def seen_task(self, run_id: str, flow_state: State[Any] | None) -> TaskRun:
        """A task run as a reader should see it: one that was left running by an earlier claim, or by a
        flow run that has ended, is CRASHED."""
        task_run = self.task_run(run_id)
        state = task_run.state
        over = flow_state is None or flow_state.is_final()
        if not self.is_task:  # a deferred run that was claimed again goes on under its new owner
            over = over or self.tasks[run_id].epoch < self.epoch
        if over and state is not None and state.type in (StateType.RUNNING, StateType.SCHEDULED):
            derived = Crashed(message="Its process ended without reporting.", state_details=state.state_details)
            derived.at = state.at + 1
            task_run.state = derived
        return task_run


_BOOKS = {"runs": int, "ran": int, "began": int, "attempt": int, "name": str}


def _are_books(books: Any) -> TypeGuard[dict[str, Any]]:
    """Whether this, from a log that anybody may have written, has the members of books, and they the right types."""
    return (
        type(books) is dict
        and books.keys() >= {"runs", "ran"}
        and all(type(value) is _BOOKS.get(name) for name, value in books.items())
    )


def _uuid(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)


def shown_parameters(header: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a header in plain JSON form, for people; nothing is rebuilt or unpickled."""
    if "arguments" in header:
        return {name: shown_result(entry) for name, entry in header["arguments"].items()}
    entry = header.get("parameters")
    form = shown(entry["json"]) if entry and "json" in entry else header.get("shown", {})
    return form if isinstance(form, dict) else {}


def shown(data: Any) -> Any:
    """Tagged JSON without its tags: tuples and sets as lists, moments and ids as text, of text that is no valid Unicode
    the halves of pairs as ``\\ud800``."""
    if isinstance(data, list):
        return [shown(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "$" not in data:
        return {key: shown(value) for key, value in data.items()}
    value = data.get("v")
    if data["$"] in ("dataclass", "namedtuple", "enum"):
        return shown(value[-1] if isinstance(value, list) and value else value)
    if data["$"] == "dict":
        return {str(shown(key)): shown(item) for key, item in value or ()}
    if data["$"] == "str":
        return _shown_text(value)
    return shown(value)


def _shown_text(value: Any) -> Any:
    try:
        return a2b_base64(value).decode("utf-8", "surrogatepass").encode("utf-8", "backslashreplace").decode()
    except (ValueError, TypeError):  # a log that somebody has changed
        return value


def shown_result(entry: dict[str, Any] | None) -> Any:
    """A kept result in plain JSON form, for people; what is not JSON is named, not opened."""
    if entry is None:
        return None
    if "json" in entry:
        return shown(entry["json"])
    return f"<{entry.get('format', 'pickle')}, {entry['size']} bytes>" if "file" in entry else "<pickle>"
