# SPDX-License-Identifier: Apache-2.0
"""What transactions are made of: levels, modes, states, leases, and what they ask of a result store."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datetime import datetime


class IsolationLevel(str, Enum):
    """What transactions on one key see of each other."""

    #: the last commit wins
    READ_COMMITTED = "READ_COMMITTED"
    #: one after the other: the key is locked from enter to end
    SERIALIZABLE = "SERIALIZABLE"


class CommitMode(str, Enum):
    """When a transaction is committed."""

    #: at its own exit, also inside of another
    EAGER = "EAGER"
    #: with its parent; at its exit when there is none
    LAZY = "LAZY"
    #: with its parent; without one only by hand, else it is rolled back at its exit
    OFF = "OFF"


class TransactionState(str, Enum):
    """What became of a transaction so far."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    STAGED = "STAGED"
    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"


class Lease:
    """A lock on a key, and how many of a family have it. A family is a holder of its own, not its thread."""

    __slots__ = ("holder", "users")

    def __init__(self, holder: str) -> None:
        self.holder = holder
        self.users = 1


class Store(Protocol):
    """What a transaction asks of a result store; see ``results.ResultStore``."""

    @property
    def lock_manager(self) -> Any:
        """What the locks are held with."""

    def supports_isolation_level(self, level: Any, /) -> bool:
        """Whether the lock manager, or its absence, is enough for it."""
        ...

    def exists(self, key: str, /) -> bool:
        """Whether a value that has not expired stands under the key."""
        ...

    def read(self, key: str, holder: str | None, /) -> Any:
        """The record under the key."""

    def write(self, obj: Any, key: str | None, expiration: datetime | None, holder: str | None, /) -> Any:
        """Write a value under the key."""

    def persist_result_record(self, record: Any, holder: str | None, /) -> Any:
        """Write a record under the key that it bears."""

    def acquire_lock(self, key: str, holder: str, timeout: float | None, /) -> bool:
        """Get the lock within so many seconds; says whether that worked."""
        ...

    async def aacquire_lock(self, key: str, holder: str, timeout: float | None, /) -> bool:
        """The same without blocking the loop."""
        ...

    def release_lock(self, key: str, holder: str, /) -> None:
        """Give it back; ValueError for who does not hold it."""

    def is_lock_holder(self, key: str, holder: str, /) -> bool:
        """Whether `holder` holds it."""
        ...
