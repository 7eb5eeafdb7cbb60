# SPDX-License-Identifier: Apache-2.0
"""Flow runs and task runs as objects.

Objects of this module say what a run was when they were read; they compare by value. The object that a
running engine holds is *live*: its fields move with each state that the engine appends. Moments are
kept as microseconds and shown as datetimes in UTC, durations as microseconds and shown as timedeltas.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from .._digests import blake2b
from .._waits import now_us, to_datetime, to_us
from ..states import TERMINAL_STATES, State, StateType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FINAL = TERMINAL_STATES


def new_run_id() -> UUID:
    """A fresh run id: 48 bits of wall clock in milliseconds, 12 bits of the millisecond's fraction, then random
    (RFC 9562, version 7, method 3), so that a sorted listing is chronological. Drawn when asked for, never at
    import: a process image may be cloned."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = nanoseconds * 4096 // 1_000_000
    random = int.from_bytes(os.urandom(8), "big") & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random)


def id_of_key(flow_name: str, key: str) -> UUID:
    """The id of what a flow has under a key, the same in every process (RFC 9562, version 8): of two processes that
    create a run under one key, one finds the other's. TypeError unless the key is text."""
    given: object = key
    if not isinstance(given, str):
        raise TypeError(f"a key must be a text, got {key!r}")
    bits = int.from_bytes(
        blake2b(f"{flow_name}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big"
    )
    return UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62)


def _moment(slot: str, doc: str) -> Any:
    def read(self: Any) -> datetime | None:
        return to_datetime(getattr(self, slot))

    def write(self: Any, moment: datetime | None) -> None:
        setattr(self, slot, to_us(moment))

    return property(read, write, doc=doc)


class _Input:
    """One upstream of an argument."""

    __slots__ = ("id", "name", "type")
    input_type: ClassVar[str]

    def __init__(self, id: UUID | None = None, name: str | None = None, type: str | None = None) -> None:
        self.id = id
        self.name = name
        self.type = type

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and (self.id, self.name, self.type) == (other.id, other.name, other.type)

    def __hash__(self) -> int:
        return hash((self.input_type, self.id, self.name, self.type))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id or self.name or self.type})"


class TaskRunResult(_Input):
    """The argument came from the task run `id`."""

    __slots__ = ()
    input_type = "task_run"


class FlowRunResult(_Input):
    """The argument came from the flow run `id`."""

    __slots__ = ()
    input_type = "flow_run"


class Parameter(_Input):
    """The argument was a parameter of the flow, called `name`."""

    __slots__ = ()
    input_type = "parameter"


class Constant(_Input):
    """The argument was a constant of this `type`."""

    __slots__ = ()
    input_type = "constant"


TaskRunInput = TaskRunResult | FlowRunResult | Parameter | Constant
RunInput = TaskRunInput  # the union type of task run inputs; input.RunInput is something else


class _RunObject:
    """What flow runs and task runs have in common, and the bookkeeping of their states."""

    __slots__ = (
        "_created",
        "_end_time",
        "_expected_start_time",
        "_start_time",
        "_total_run_time",
        "id",
        "name",
        "run_count",
        "state",
        "tags",
        "text",
    )

    id: UUID
    name: str
    tags: set[str]
    state: State[Any] | None
    run_count: int

    created = _moment("_created", "When the run was created.")
    start_time = _moment("_start_time", "When it first entered RUNNING.")
    end_time = _moment("_end_time", "When it entered a final state.")
    expected_start_time = _moment("_expected_start_time", "When it was scheduled to start, else its first state.")

    def __init__(self, id: UUID, name: str, tags: set[str] | None = None) -> None:
        self.id = id
        #: the id as text, as records name the run
        self.text = str(id)
        self.name = name
        self.tags = tags if tags is not None else set()
        self.state = None
        self.run_count = 0
        self._created: int = 0
        self._start_time: int | None = None
        self._end_time: int | None = None
        self._expected_start_time: int | None = None
        self._total_run_time = 0

    @property
    def state_id(self) -> UUID | None:
        """The id of the present state."""
        return None if self.state is None else self.state.id

    @property
    def state_type(self) -> StateType | None:
        """The type of the present state."""
        return None if self.state is None else self.state.type

    @property
    def state_name(self) -> str | None:
        """The name of the present state."""
        return None if self.state is None else self.state.name

    @property
    def state_timestamp(self) -> datetime | None:
        """When the run entered the present state."""
        return None if self.state is None else self.state.timestamp

    @property
    def total_run_time(self) -> timedelta:
        """How long the run was RUNNING, waits between attempts not counted."""
        return timedelta(microseconds=self._total_run_time)

    @property
    def estimated_run_time(self) -> timedelta:
        """``total_run_time`` plus the time since the run entered RUNNING, if it is in it."""
        return timedelta(microseconds=self.run_time_at(now_us()))

    def run_time_at(self, at: int) -> int:
        """How many microseconds the run was RUNNING, if it stays in its present state up to the moment `at`."""
        running = at - self.state.at if self.state is not None and self.state.type is StateType.RUNNING else 0
        return self._total_run_time + max(0, running)

    def _goes_on(self) -> bool:
        """Whether entering RUNNING now would go on with an execution, which is no further one."""
        return False

    def begin(self, at: int, due: int | None = None) -> None:
        """Note when the run was made, and when it is to start if that is later: in microseconds."""
        self._created = self._created or at
        self._expected_start_time = at if due is None else due

    def enter(self, state: State[Any]) -> None:
        """Make `state` the present one, and keep the books: used by the engine after its append and by
        the fold for each record, so that both hold the same run (invariant I4)."""
        kind, at = state.type, state.at
        before = self.state
        if before is None:
            if self._expected_start_time is None:
                self.begin(at, to_us(state.state_details.scheduled_time))
        elif before.type is StateType.RUNNING:
            self._total_run_time += max(0, at - before.at)
        if kind is StateType.RUNNING:
            if not self._goes_on():
                self.run_count += 1
            if self._start_time is None:
                self._start_time = at
            self._end_time = None
        elif kind in FINAL:
            if self._end_time is None:
                self._end_time = at
        else:
            self._end_time = None
        state._id = None  # what was asked for before run and moment were settled is not what readers see
        self.state = state

    def _values(self) -> dict[str, Any]:
        names = (name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ()))
        return {name: getattr(self, name) for name in names}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id}, name={self.name!r}, state={self.state})"


class TaskRun(_RunObject):
    """One call of a task."""

    __slots__ = (
        "child_flow_run_id",
        "empirical_policy",
        "flow_run_id",
        "flow_run_run_count",
        "recorded",
        "task_inputs",
        "task_key",
        "task_version",
    )

    def __init__(
        self,
        id: UUID,
        name: str,
        *,
        task_key: str,
        task_version: str | None = None,
        flow_run_id: UUID | None = None,
        tags: set[str] | None = None,
        task_inputs: dict[str, list[TaskRunInput]] | None = None,
        empirical_policy: dict[str, Any] | None = None,
        child_flow_run_id: UUID | None = None,
    ) -> None:
        super().__init__(id, name, tags)
        self.task_key = task_key
        self.task_version = task_version
        self.flow_run_id = flow_run_id
        self.flow_run_run_count = 0
        self.task_inputs = task_inputs if task_inputs is not None else {}
        self.empirical_policy = empirical_policy if empirical_policy is not None else {}
        self.child_flow_run_id = child_flow_run_id
        #: whether the log holds the creation record already
        self.recorded = False

    @property
    def dynamic_key(self) -> str:
        """What tells this call from others of the same task: its id, which follows from the call."""
        return self.text


class FlowRun(_RunObject):
    """One run of a flow."""

    __slots__ = (
        "_next_scheduled_start_time",
        "attempt",
        "deployment_id",
        "empirical_policy",
        "entrypoint",
        "flow_name",
        "flow_version",
        "idempotency_key",
        "parameters",
        "parent_flow_run_id",
        "parent_task_run_id",
        "root_flow_run_id",
    )

    next_scheduled_start_time = _moment("_next_scheduled_start_time", "When it is to start, while SCHEDULED.")

    def __init__(
        self,
        id: UUID,
        name: str,
        *,
        flow_name: str,
        flow_version: str | None = None,
        parameters: dict[str, Any] | None = None,
        tags: set[str] | None = None,
        entrypoint: str | None = None,
        parent_task_run_id: UUID | None = None,
        parent_flow_run_id: UUID | None = None,
        root_flow_run_id: UUID | None = None,
        idempotency_key: str | None = None,
        empirical_policy: dict[str, Any] | None = None,
        deployment_id: UUID | None = None,
    ) -> None:
        super().__init__(id, name, tags)
        self.flow_name = flow_name
        self.flow_version = flow_version
        #: the parameters in their stored, JSON-able form
        self.parameters = parameters if parameters is not None else {}
        self.entrypoint = entrypoint
        self.parent_task_run_id = parent_task_run_id
        self.parent_flow_run_id = parent_flow_run_id
        self.root_flow_run_id = root_flow_run_id if root_flow_run_id is not None else id
        self.idempotency_key = idempotency_key
        #: the deployment that the run was made from
        self.deployment_id = deployment_id
        self.empirical_policy = empirical_policy if empirical_policy is not None else {}
        #: how often the body was started anew by a retry; calls of different attempts are different calls
        self.attempt = 0
        self._next_scheduled_start_time: int | None = None

    def _goes_on(self) -> bool:
        """After a pause or a suspension: that neither counts as a run nor uses up a retry."""
        return self.state is not None and (self.state.is_paused() or self.state.is_resuming())

    def enter(self, state: State[Any]) -> None:
        """Make `state` the present one, and keep the books of a flow run."""
        if state.name == "AwaitingRetry":
            self.attempt += 1
        if state.type in FINAL and self._start_time is None:
            self._start_time = state.at  # it ended without having begun: parameters that do not fit, a cancellation
        self._next_scheduled_start_time = (
            to_us(state.state_details.scheduled_time) if state.type is StateType.SCHEDULED else None
        )
        super().enter(state)


_ADJECTIVES = "amber bold brisk calm clear deft eager fair fleet gentle keen light lucid merry nimble quiet rapid sage"
_NOUNS = "alder badger brook cedar crane delta ember falcon finch grove heron jay larch lynx otter raven reef wren"


def random_name() -> str:
    """A name of two words for a run that was given none."""
    first, second = os.urandom(2)  # of the system, because the state of a generator may be a clone's
    adjectives, nouns = _ADJECTIVES.split(), _NOUNS.split()
    return f"{adjectives[first % len(adjectives)]}-{nouns[second % len(nouns)]}"


def sort_key(field: str) -> Callable[[_RunObject], tuple[bool, Any]]:
    """A key by which runs sort by `field`, those without a value last."""

    def key(run: _RunObject) -> tuple[bool, Any]:
        value = getattr(run, field)
        return (value is None, value if value is not None else 0)

    return key


def run_filter(
    names: Iterable[str] | None,
    state_types: Iterable[StateType | str] | None,
    state_names: Iterable[str] | None,
    tags: Iterable[str] | None,
    after: datetime | None = None,
    before: datetime | None = None,
) -> Callable[[FlowRun | TaskRun], bool]:
    """Whether a run fits. Each filter is read once: it may be an iterator. `after` and `before` bound the moment
    at which the run was to start, as a half-open range; a naive moment is in UTC."""
    first, last = to_us(after), to_us(before)
    wanted: dict[str, set[Any]] = {}
    if names is not None:
        wanted["name"] = set(names)
    if state_types is not None:
        wanted["state_type"] = {StateType(kind) for kind in state_types}
    if state_names is not None:
        wanted["state_name"] = set(state_names)
    all_of = set(tags or ())

    def is_due(run: FlowRun | TaskRun) -> bool:
        due = to_us(run.expected_start_time)
        return due is not None and (first is None or first <= due) and (last is None or due < last)

    return lambda run: (
        all_of <= run.tags
        and all(getattr(run, field) in values for field, values in wanted.items())
        and ((first is None and last is None) or is_due(run))
    )
