# SPDX-License-Identifier: Apache-2.0
"""What a run is now.

A :class:`State` is a type out of nine, a free name on top of it, a message, details and data. Which state
may follow which is not said here but in one table (``transitions``).
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from ._state_parts import DEFAULT_NAMES, MAXIMUM_MESSAGE, TYPES_BY_VALUE
from ._state_parts import TERMINAL_STATES as TERMINAL_STATES
from ._state_parts import StateDetails as StateDetails
from ._state_parts import StateType as StateType
from ._state_parts import Value as Value
from ._waits import dual, now_us, to_datetime, to_us
from .exceptions import (
    CancelledRun,
    CrashedRun,
    FailedRun,
    MissingResult,
    PausedRun,
    TerminationSignal,
    UnfinishedRun,
    WorkerLost,
)
from .exceptions import describe as describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

R = TypeVar("R")


class State(Generic[R]):
    """What a run is at one moment. Compares by all fields but ``id``, ``created`` and ``updated``."""

    __slots__ = ("_id", "at", "data", "message", "name", "state_details", "type")

    def __init__(
        self,
        type: StateType | str,
        name: str | None = None,
        message: str | None = None,
        timestamp: datetime | None = None,
        state_details: StateDetails | Mapping[str, Any] | None = None,
        data: Any = None,
        id: UUID | None = None,
    ) -> None:
        kind = TYPES_BY_VALUE.get(type)
        if kind is None:
            raise ValueError(f"{type!r} is not a state type; the types are {sorted(TYPES_BY_VALUE)}")
        self.type: StateType = kind
        self.name: str = DEFAULT_NAMES[kind] if name is None else name
        if message is not None and len(message) > MAXIMUM_MESSAGE:
            message = f"{message[:MAXIMUM_MESSAGE]} … ({len(message):,} characters)"  # it must fit into a record
        self.message = message
        #: the wall clock of the state in microseconds; ``timestamp`` is the same as a datetime
        self.at: int = now_us() if timestamp is None else to_us(timestamp) or 0
        if state_details is None:
            state_details = StateDetails.__new__(StateDetails)
        elif not isinstance(state_details, StateDetails):
            state_details = StateDetails(**state_details)
        self.state_details: StateDetails = state_details
        self.data = data
        self._id = id
        if kind is StateType.SCHEDULED and state_details.scheduled_time is None:
            self.state_details = state_details = state_details.copy()  # the caller may use them again
            state_details.scheduled_time = to_datetime(self.at)

    # ------------------------------------------------------------------------------------ identity

    @property
    def id(self) -> UUID:
        """The id of the state. It follows from the run and the timestamp, which are unique together, so
        that every process that reads the log sees the same one and the log need not carry it."""
        if self._id is None:
            owner = self.state_details.task_run_id or self.state_details.flow_run_id
            if owner is None:
                self._id = UUID(bytes=os.urandom(16), version=4)
            else:
                mixed = owner.int ^ (self.at * 0x9E3779B97F4A7C15F39CC0605CEDC835)
                self._id = UUID(int=mixed % (1 << 128), version=4)
        return self._id

    @property
    def timestamp(self) -> datetime:
        """When the run entered the state, in UTC."""
        moment = to_datetime(self.at)
        assert moment is not None
        return moment

    @timestamp.setter
    def timestamp(self, moment: datetime) -> None:
        self.at = to_us(moment) or 0

    @property
    def created(self) -> datetime | None:
        """When the state was made, which is its timestamp."""
        return self.timestamp

    @property
    def updated(self) -> datetime | None:
        """When the state was last changed: never after it was made."""
        return self.timestamp

    def __eq__(self, other: object) -> bool:
        fields = ("type", "name", "message", "timestamp", "state_details", "data")
        if isinstance(other, dict):
            given = {name: value for name, value in other.items() if name not in ("id", "created", "updated")}
            return bool(given == {name: getattr(self, name) for name in fields})
        if not isinstance(other, State):
            return NotImplemented
        return all(bool(getattr(self, name) == getattr(other, name)) for name in fields)

    def __hash__(self) -> int:
        return hash((self.state_details.flow_run_id, self.state_details.task_run_id, self.at, self.type))

    def __str__(self) -> str:
        parts = [repr(self.message)] if self.message else []
        if self.name.lower() != self.type.value.lower():
            parts.append(f"type={self.type.value}")
        return f"{self.name}({', '.join(parts)})"

    def __repr__(self) -> str:
        return f"{self.name}(message={self.message!r}, type={self.type.value}, result={self.data!r})"

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> State[R]:
        """A copy with the fields of `update` replaced; the copy's timestamp is now unless given."""
        fields: dict[str, Any] = {"type": self.type, "name": self.name, "message": self.message, "data": self.data}
        fields["state_details"] = self.state_details.copy()
        fields.update(update or {})
        return State(**fields)

    def fresh_copy(self) -> State[R]:
        """A copy with an id and a timestamp of its own."""
        return self.model_copy()

    # ---------------------------------------------------------------------------------- predicates

    def is_scheduled(self) -> bool:
        """Whether the type is SCHEDULED."""
        return self.type is StateType.SCHEDULED

    def is_pending(self) -> bool:
        """Whether the type is PENDING."""
        return self.type is StateType.PENDING

    def is_running(self) -> bool:
        """Whether the type is RUNNING."""
        return self.type is StateType.RUNNING

    def is_completed(self) -> bool:
        """Whether the type is COMPLETED."""
        return self.type is StateType.COMPLETED

    def is_failed(self) -> bool:
        """Whether the type is FAILED; a CRASHED run has not failed in this sense."""
        return self.type is StateType.FAILED

    def is_crashed(self) -> bool:
        """Whether the type is CRASHED."""
        return self.type is StateType.CRASHED

    def is_cancelled(self) -> bool:
        """Whether the type is CANCELLED."""
        return self.type is StateType.CANCELLED

    def is_cancelling(self) -> bool:
        """Whether the type is CANCELLING."""
        return self.type is StateType.CANCELLING

    def is_paused(self) -> bool:
        """Whether the type is PAUSED; a suspended run is PAUSED too."""
        return self.type is StateType.PAUSED

    def is_final(self) -> bool:
        """Whether the run has ended: COMPLETED, FAILED, CANCELLED or CRASHED."""
        return self.type in TERMINAL_STATES

    def is_resuming(self) -> bool:
        """Whether a suspended run waits for a process that goes on with it."""
        return self.type is StateType.SCHEDULED and self.name == "Resuming"

    def is_suspended(self) -> bool:
        """Whether the run is paused without a process: it is run again from the top when it is resumed."""
        return self.type is StateType.PAUSED and self.state_details.pause_reschedule

    def is_left(self) -> bool:
        """Whether the process that runs it is to let go of the run, which is run again from the top: it was suspended,
        and perhaps resumed already."""
        return self.is_suspended() or self.is_resuming()

    def is_not_ready(self) -> bool:
        """Whether the run will never start because a run that it depends on did not complete."""
        return self.type is StateType.PENDING and self.name == "NotReady"

    # -------------------------------------------------------------------------------------- result

    def result(
        self, raise_on_failure: bool = True, retry_result_failure: bool = True, _sync: bool | None = None
    ) -> R | Awaitable[R]:
        """The value of a completed run; raises what a failed one raised.

        With ``raise_on_failure=False`` a failed state gives its exception or data instead. A PAUSED
        state always raises PausedRun, any other open one UnfinishedRun, a COMPLETED one without data
        MissingResult. Inside an async run, or on a running event loop outside of runs, this returns a
        coroutine; ``_sync`` decides when given. `retry_result_failure` is accepted for the reference's
        sake: our stores answer at once."""
        return dual(lambda: self.read_result(raise_on_failure), _sync)

    async def aresult(self, raise_on_failure: bool = True, retry_result_failure: bool = True) -> R:
        """The coroutine form of :meth:`result`."""
        return self.read_result(raise_on_failure)

    def read_result(self, raise_on_failure: bool = True) -> R:
        """What :meth:`result` gives, always as a plain call."""
        if self.type is StateType.PAUSED:
            raise PausedRun("the run is paused; its result is not available", state=self)
        if self.type not in TERMINAL_STATES:
            raise UnfinishedRun(f"the run is in state {self} ({self.type.value}); its result is not available")
        failed = self.type is not StateType.COMPLETED
        if failed and raise_on_failure:
            error = get_state_exception(self)
            if not isinstance(error, Exception):  # who asks for a result is not to be interrupted by it
                raise CrashedRun(self.message or describe(error)) from error
            raise error
        data = self.data.load() if isinstance(self.data, Value) else self.data
        if data is None and not isinstance(self.data, Value):
            if not failed:
                raise MissingResult("the run completed, but its result was not kept")
            data = get_state_exception(self)
        value: R = data
        return value


def _wrapper(state: State[Any]) -> tuple[type[Exception], str]:
    if state.type is StateType.FAILED:
        return FailedRun, "Run failed."
    if state.type is StateType.CRASHED:
        return CrashedRun, "Run crashed."
    if state.type is StateType.CANCELLED:
        return CancelledRun, "Run cancelled."
    raise ValueError(f"Expected failed or crashed state got {state!r}.")


def get_state_exception(state: State[Any]) -> BaseException:
    """The exception that a failed, crashed or cancelled state stands for."""
    wrapper, default = _wrapper(state)
    data = state.data.load() if isinstance(state.data, Value) else state.data
    if data is None:
        return wrapper(state.message or default)
    if isinstance(data, BaseException):
        return data
    if isinstance(data, str):
        return wrapper(data)
    if isinstance(data, State):
        return get_state_exception(data)
    if is_states(data):
        for member in data:
            if member.is_failed() or member.is_crashed() or member.is_cancelled():
                return get_state_exception(member)
        raise ValueError("a failed state was given a collection of states of which none were failed")
    raise TypeError(f"data of type {type(data).__name__} cannot be resolved into an exception")


def raise_state_exception(state: State[Any]) -> None:
    """Raise what a failed, crashed or cancelled state stands for; do nothing for any other."""
    if state.is_failed() or state.is_crashed() or state.is_cancelled():
        raise get_state_exception(state)


async def aget_state_exception(state: State[Any]) -> BaseException:
    """The coroutine form of :func:`get_state_exception`."""
    return get_state_exception(state)


async def araise_state_exception(state: State[Any]) -> None:
    """The coroutine form of :func:`raise_state_exception`."""
    raise_state_exception(state)


def is_states(value: object) -> bool:
    """Whether `value` is a non-empty list, tuple or set that holds nothing but states."""
    return isinstance(value, (list, tuple, set)) and bool(value) and all(isinstance(item, State) for item in value)


# ------------------------------------------------------------------------------------------ constructors


def _scheduled(cls: type[State[Any]], name: str, scheduled_time: datetime | None, kwargs: dict[str, Any]) -> State[Any]:
    details = kwargs.pop("state_details", None) or StateDetails()
    if not isinstance(details, StateDetails):
        details = StateDetails(**details)
    if scheduled_time is not None and details.scheduled_time is not None:
        raise ValueError("scheduled_time was given both as an argument and in state_details; give it once")
    details = details.copy()
    details.scheduled_time = scheduled_time or details.scheduled_time or datetime.now(timezone.utc)
    kwargs.setdefault("name", name)
    return cls(StateType.SCHEDULED, state_details=details, **kwargs)


def Scheduled(cls: type[State[Any]] = State, scheduled_time: datetime | None = None, **kwargs: Any) -> State[Any]:
    """To run at `scheduled_time` (now unless given)."""
    return _scheduled(cls, "Scheduled", scheduled_time, kwargs)


def AwaitingRetry(cls: type[State[Any]] = State, scheduled_time: datetime | None = None, **kwargs: Any) -> State[Any]:
    """Failed, and to run again at `scheduled_time`."""
    return _scheduled(cls, "AwaitingRetry", scheduled_time, kwargs)


def AwaitingConcurrencySlot(
    cls: type[State[Any]] = State, scheduled_time: datetime | None = None, **kwargs: Any
) -> State[Any]:
    """To run when a slot is free."""
    return _scheduled(cls, "AwaitingConcurrencySlot", scheduled_time, kwargs)


def Late(cls: type[State[Any]] = State, scheduled_time: datetime | None = None, **kwargs: Any) -> State[Any]:
    """Scheduled for a time that has passed."""
    return _scheduled(cls, "Late", scheduled_time, kwargs)


def Pending(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """Created and not started."""
    return cls(StateType.PENDING, **kwargs)


def Submitting(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """PENDING while somebody is about to start the run."""
    return cls(StateType.PENDING, **{"name": "Submitting", **kwargs})


def InfrastructurePending(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """PENDING while the place to run in is being made."""
    return cls(StateType.PENDING, **{"name": "InfrastructurePending", **kwargs})


def Running(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """Executing."""
    return cls(StateType.RUNNING, **kwargs)


def Retrying(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """Executing again after a failure."""
    return cls(StateType.RUNNING, **{"name": "Retrying", **kwargs})


def Completed(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """Ended well."""
    return cls(StateType.COMPLETED, **kwargs)


def Failed(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """Ended with an error of the user's code."""
    return cls(StateType.FAILED, **kwargs)


def Crashed(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """Ended because its process was interrupted or died."""
    return cls(StateType.CRASHED, **kwargs)


def Cancelling(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """Asked to stop."""
    return cls(StateType.CANCELLING, **kwargs)


def Cancelled(cls: type[State[Any]] = State, **kwargs: Any) -> State[Any]:
    """Stopped on request."""
    return cls(StateType.CANCELLED, **kwargs)


def Paused(
    cls: type[State[Any]] = State,
    timeout_seconds: float | None = None,
    pause_expiration_time: datetime | None = None,
    reschedule: bool = False,
    pause_key: str | None = None,
    **kwargs: Any,
) -> State[Any]:
    """Waiting to be resumed, until `pause_expiration_time` or for `timeout_seconds`."""
    details = kwargs.pop("state_details", None) or StateDetails()
    if not isinstance(details, StateDetails):
        details = StateDetails(**details)
    if details.pause_timeout is not None:
        raise ValueError("state_details already has a pause_timeout; give the time limit once")
    if timeout_seconds is not None and pause_expiration_time is not None:
        raise ValueError("give either timeout_seconds or pause_expiration_time, not both")
    details = details.copy()
    if timeout_seconds is not None:
        pause_expiration_time = datetime.now(timezone.utc) + timedelta(seconds=timeout_seconds)
    details.pause_timeout = pause_expiration_time
    details.pause_reschedule = reschedule
    details.pause_key = pause_key
    return cls(StateType.PAUSED, state_details=details, **kwargs)


def Suspended(
    cls: type[State[Any]] = State,
    timeout_seconds: float | None = None,
    pause_expiration_time: datetime | None = None,
    pause_key: str | None = None,
    **kwargs: Any,
) -> State[Any]:
    """Paused without a process: to be run again from the top when it is resumed."""
    kwargs.setdefault("name", "Suspended")
    return Paused(cls, timeout_seconds, pause_expiration_time, True, pause_key, **kwargs)


# ---------------------------------------------------------------------- from values and errors to states


class StateGroup:
    """Counts over several states, and the words for them."""

    def __init__(self, states: Iterable[State[Any]]) -> None:
        self.states = list(states)
        self.type_counts: dict[StateType, int] = {}
        for state in self.states:
            self.type_counts[state.type] = self.type_counts.get(state.type, 0) + 1
        self.total_count = len(self.states)
        self.cancelled_count = self.type_counts.get(StateType.CANCELLED, 0)
        self.final_count = sum(state.is_final() for state in self.states)
        self.not_final_count = self.total_count - self.final_count
        self.paused_count = self.type_counts.get(StateType.PAUSED, 0)

    @property
    def fail_count(self) -> int:
        """How many are FAILED or CRASHED."""
        return self.type_counts.get(StateType.FAILED, 0) + self.type_counts.get(StateType.CRASHED, 0)

    def all_completed(self) -> bool:
        """Whether every state is COMPLETED."""
        return self.type_counts.get(StateType.COMPLETED, 0) == self.total_count

    def any_cancelled(self) -> bool:
        """Whether a state is CANCELLED."""
        return self.cancelled_count > 0

    def any_failed(self) -> bool:
        """Whether a state is FAILED or CRASHED."""
        return self.fail_count > 0

    def any_paused(self) -> bool:
        """Whether a state is PAUSED."""
        return self.paused_count > 0

    def all_final(self) -> bool:
        """Whether every state is final."""
        return self.final_count == self.total_count

    def counts_message(self) -> str:
        """The counts in words, for example ``total=4, not_final=2, 'FAILED'=1``."""
        parts = [f"total={self.total_count}"]
        if self.not_final_count:
            parts.append(f"not_final={self.not_final_count}")
        return ", ".join([*parts, *(f"{kind.value!r}={count}" for kind, count in self.type_counts.items())])

    def aggregate(self) -> tuple[StateType, str]:
        """The type and the message of a run that returned these states."""
        total = self.total_count
        if self.all_completed():
            return StateType.COMPLETED, "All states completed."
        if self.any_cancelled():
            return StateType.CANCELLED, f"{self.cancelled_count}/{total} states cancelled."
        if self.any_paused():
            return StateType.PAUSED, f"{self.paused_count}/{total} states paused."
        if self.any_failed():
            return StateType.FAILED, f"{self.fail_count}/{total} states failed."
        return StateType.FAILED, f"{self.not_final_count}/{total} states not final."


def return_value_to_state(retval: Any) -> State[Any]:
    """The final state of a run whose function returned `retval`.

    A state made by hand is used as it is. States of runs, alone or in a list, tuple or set of nothing
    else, are aggregated. A generator is exhausted into a list. Anything else, an exception too, is a
    value: COMPLETED."""
    if isinstance(retval, State) and not retval.state_details.flow_run_id and not retval.state_details.task_run_id:
        # a completed state without data stands for None, so that it can be kept and handed back
        if (retval.data is not None or retval.is_completed()) and not isinstance(retval.data, (Value, BaseException)):
            retval.data = Value(retval.data)
        return retval
    if isinstance(retval, State) or is_states(retval):
        kind, message = StateGroup([retval] if isinstance(retval, State) else retval).aggregate()
        return State(kind, message=message, data=Value(retval))
    if type(retval).__name__ == "generator" and hasattr(retval, "gi_frame"):
        retval = list(retval)
    return State(StateType.COMPLETED, data=retval if isinstance(retval, Value) else Value(retval))


def exception_to_failed_state(
    exc: BaseException | None = None, message: str | None = None, **kwargs: Any
) -> State[Any]:
    """The FAILED state of a run whose code raised `exc`, the exception that is being handled unless given;
    `message` is put before the description. ValueError when there is none."""
    exc = exc or sys.exc_info()[1]
    if exc is None:
        raise ValueError("exception_to_failed_state was given no exception and there is no active exception")
    text = f"{message} {describe(exc)}" if message else describe(exc)
    return Failed(data=exc, message=text, **kwargs)


def exception_to_crashed_state(exc: BaseException) -> State[Any]:
    """The CRASHED state of a run that `exc` interrupted."""
    if type(exc).__name__ == "CancelledError":
        message = "Execution was cancelled by the runtime environment."
    elif isinstance(exc, KeyboardInterrupt):
        message = "Execution was aborted by an interrupt signal."
    elif isinstance(exc, TerminationSignal):
        message = "Execution was aborted by a termination signal."
    elif isinstance(exc, SystemExit):
        message = "Execution was aborted by a system exit call."
    elif isinstance(exc, WorkerLost):
        message = f"Execution was aborted: {exc}."
    else:
        message = f"Execution was interrupted by an unexpected exception: {describe(exc)}"
    return Crashed(data=exc, message=message)
