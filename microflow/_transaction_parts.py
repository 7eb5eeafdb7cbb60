# SPDX-License-Identifier: Apache-2.0
"""What transactions are made of: modes, states, leases."""

from __future__ import annotations

from enum import Enum


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
