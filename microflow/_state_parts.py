# SPDX-License-Identifier: Apache-2.0
"""What a state is made of: its type, its details, its value. ``states`` puts them together."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

R = TypeVar("R")


class StateType(str, enum.Enum):
    """The nine types; the value is the name."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CRASHED = "CRASHED"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"

    def __str__(self) -> str:
        return self.value


#: characters of a state's message; more is cut off
MAXIMUM_MESSAGE = 10_000

TERMINAL_STATES = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED})
DEFAULT_NAMES = {kind: kind.value.capitalize() for kind in StateType}
TYPES_BY_VALUE = {kind.value: kind for kind in StateType}


class StateDetails:
    """What a state carries besides its data; everything is None unless noted.

    Kept sparse: only what was given takes room, because every task run has several states."""

    flow_run_id: UUID | None = None
    task_run_id: UUID | None = None
    child_flow_run_id: UUID | None = None
    scheduled_time: datetime | None = None
    cache_key: str | None = None
    cache_expiration: datetime | None = None
    deferred: bool | None = None
    untrackable_result: bool = False
    pause_timeout: datetime | None = None
    pause_reschedule: bool = False
    pause_key: str | None = None
    run_input_keyset: dict[str, str] | None = None
    refresh_cache: bool | None = None
    retriable: bool | None = None
    transition_id: UUID | None = None
    task_parameters_id: UUID | None = None
    traceparent: str | None = None
    deployment_concurrency_lease_id: UUID | None = None
    returned_state: bool = False  # the run's function returned this very state, and so does its call

    def __init__(self, **given: Any) -> None:
        for name, value in given.items():
            if name not in StateDetails.__annotations__:
                raise TypeError(f"StateDetails has no field {name!r}; it has {sorted(StateDetails.__annotations__)}")
            self.__dict__[name] = value

    def copy(self) -> StateDetails:
        """A copy that can be changed on its own."""
        twin = StateDetails.__new__(StateDetails)
        twin.__dict__.update(self.__dict__)
        return twin

    def given(self) -> dict[str, Any]:
        """The fields that are not at their default."""
        return {name: value for name, value in self.__dict__.items() if value != getattr(StateDetails, name)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateDetails) and self.given() == other.given()

    __hash__ = None  # type: ignore[assignment]  # details can be changed

    def __repr__(self) -> str:
        return f"StateDetails({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"


class Value(Generic[R]):
    """A value that a state carries; tells a run that returned None from a state without data."""

    __slots__ = ("_value",)

    #: whether the log keeps the value however large it is
    kept_whole = False

    def __init__(self, value: R) -> None:
        self._value = value

    @property
    def result(self) -> R:
        """The value itself."""
        return self.load()

    def load(self) -> R:
        """The value; subclasses fetch it from where it is kept."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return bool(isinstance(other, Value) and self.load() == other.load())

    __hash__ = None  # type: ignore[assignment]  # carries any value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.load()!r})"
