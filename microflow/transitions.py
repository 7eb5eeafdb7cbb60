# SPDX-License-Identifier: Apache-2.0
"""Which state may follow which: the tables that every proposal is looked up in.

A party *proposes* a state for a run. The client folds the run's log, finds the row of the run's present
state and the column of the proposed one, and answers as the cell says:

======  ==========================================================================================
cell    answer
======  ==========================================================================================
A       accept: the state is appended
R       reject: the present state stays; the proposer adopts it
R:X     reject and append X instead
B       abort: nothing is appended, the proposer is told why
W       wait: nothing is appended, propose again when the scheduled time has come
F       accept, unless retries are left: then reject and append AwaitingRetry instead
O       accept from the owner who retries or resumes, else reject
======  ==========================================================================================

A forced proposal (a crash, an operator's word) skips the tables. An interrupt after a final state
changes nothing: rows of final states have no ``A``.

Where this differs from the reference on purpose: a final state is never left without force; RUNNING to
RUNNING needs the owner (the reference let two engines execute one run); PAUSED to CANCELLING is
accepted, so that a paused run can be cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._waits import now_us, to_us
from .states import State, StateType

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLOW_TABLE = """
from/to             SCHEDULED PENDING RUNNING PAUSED SUSPENDED CANCELLING  COMPLETED FAILED   CANCELLED CRASHED
NONE                A         A       A       B      B         A           A         A        A         A
SCHEDULED           A         A       A       R      R         R:CANCELLED A         A        A         A
SCHEDULED-LATER     A         A       W       R      R         R:CANCELLED A         A        A         A
PENDING             A         R       A       R      R         A           A         A        A         A
RUNNING             A         B       O       A      A         A           A         F        A         A
PAUSED              A         R       A       R      R         A           A         A        A         A
PAUSED-EXPIRED      R:FAILED  R       O       R      R         A           R:FAILED  A        A         A
SUSPENDED           A         A       A       R      R         R:CANCELLED A         A        A         A
SUSPENDED-EXPIRED   R:FAILED  R       R:FAILED R     R         R:CANCELLED R:FAILED  A        A         A
CANCELLING          R         R       R       R      R         R           R         R        A         R
COMPLETED           R         R       R       B      B         B           R         R        R         R
FAILED              R         R       R       B      B         B           R         R        R         R
CRASHED             R         R       R       B      B         B           R         R        R         R
CANCELLED           R         R       R       B      B         B           R         R        R         R
"""

# Task runs move as their engine says (it holds the only copy); what is refused is leaving a final state.
_TASK_TABLE = """
from/to    SCHEDULED PENDING RUNNING PAUSED CANCELLING COMPLETED FAILED CANCELLED CRASHED
NONE       A         A       A       A      A          A         A      A         A
SCHEDULED  A         A       A       A      A          A         A      A         A
PENDING    A         A       A       A      A          A         A      A         A
RUNNING    A         A       A       A      A          A         A      A         A
PAUSED     A         A       A       A      A          A         A      A         A
CANCELLING A         A       A       A      A          A         A      A         A
COMPLETED  R         R       R       B      B          R         R      R         R
FAILED     R         R       R       B      B          R         R      R         R
CRASHED    R         R       R       B      B          R         R      R         R
CANCELLED  R         R       R       B      B          R         R      R         R
"""


def _parsed(text: str) -> Mapping[tuple[str, str], str]:
    head, *lines = [line.split() for line in text.split("\n") if line.strip()]
    return {(row, column): cell for row, *cells in lines for column, cell in zip(head[1:], cells, strict=True)}


FLOW_TRANSITIONS = _parsed(_FLOW_TABLE)
TASK_TRANSITIONS = _parsed(_TASK_TABLE)


def is_expired(state: State[Any]) -> bool:
    """Whether the deadline of a pause has passed, by the wall clock."""
    deadline = to_us(state.state_details.pause_timeout)
    return deadline is not None and deadline <= now_us()


def column_of(state: State[Any]) -> str:
    """The column of a proposed flow run state."""
    if state.type is StateType.PAUSED and state.state_details.pause_reschedule:
        return "SUSPENDED"
    return state.type.value


def row_of(state: State[Any] | None) -> str:
    """The row of a flow run's present state; deadlines are judged by the wall clock."""
    if state is None:
        return "NONE"
    if state.type is StateType.PAUSED:
        return column_of(state) + ("-EXPIRED" if is_expired(state) else "")
    if state.type is StateType.SCHEDULED:
        due = to_us(state.state_details.scheduled_time)
        return "SCHEDULED-LATER" if due is not None and due > now_us() else "SCHEDULED"
    return str(state.type.value)


def flow_verdict(present: State[Any] | None, proposed: State[Any]) -> str:
    """The cell for a flow run in state `present` for which `proposed` is proposed."""
    return FLOW_TRANSITIONS[row_of(present), column_of(proposed)]


def task_verdict(present: State[Any] | None, proposed: State[Any]) -> str:
    """The cell for a task run in state `present` for which `proposed` is proposed."""
    return TASK_TRANSITIONS["NONE" if present is None else present.type, proposed.type]
