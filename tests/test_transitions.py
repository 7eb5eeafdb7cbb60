# SPDX-License-Identifier: Apache-2.0
"""The transition tables: complete, and each cell as the behaviour document (flows, section 8) has it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from microflow.states import (
    TERMINAL_STATES,
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Retrying,
    Running,
    Scheduled,
    State,
    StateType,
    Suspended,
)
from microflow.transitions import (
    FLOW_TRANSITIONS,
    TASK_TRANSITIONS,
    column_of,
    flow_verdict,
    row_of,
    task_verdict,
)

from . import diagram

PAST = datetime.now(timezone.utc) - timedelta(hours=1)
FUTURE = datetime.now(timezone.utc) + timedelta(hours=1)
FINAL = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
COLUMNS = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "SUSPENDED", "CANCELLING", *FINAL]
MEANINGS = {"A", "R", "B", "W", "F", "O", "R:CANCELLED", "R:FAILED"}

# one state for each row, and what the row is called
PRESENT = {
    "NONE": None,
    "SCHEDULED": Scheduled(scheduled_time=PAST),
    "SCHEDULED-LATER": Scheduled(scheduled_time=FUTURE),
    "PENDING": Pending(),
    "RUNNING": Running(),
    "PAUSED": Paused(pause_expiration_time=FUTURE),
    "PAUSED-EXPIRED": Paused(pause_expiration_time=PAST),
    "SUSPENDED": Suspended(pause_expiration_time=FUTURE),
    "SUSPENDED-EXPIRED": Suspended(pause_expiration_time=PAST),
    "CANCELLING": Cancelling(),
    "COMPLETED": Completed(),
    "FAILED": Failed(),
    "CRASHED": Crashed(),
    "CANCELLED": Cancelled(),
}


def test_the_flow_table_has_every_row_every_column_and_no_cell_without_a_meaning():
    rows, columns = {row for row, _ in FLOW_TRANSITIONS}, {column for _, column in FLOW_TRANSITIONS}
    assert rows == set(PRESENT)
    assert columns == set(COLUMNS)
    assert len(FLOW_TRANSITIONS) == len(rows) * len(columns)
    assert set(FLOW_TRANSITIONS.values()) <= MEANINGS


def test_the_task_table_has_a_cell_for_every_pair_of_types():
    kinds = [kind.value for kind in StateType]
    assert set(TASK_TRANSITIONS) == {(row, column) for row in ["NONE", *kinds] for column in kinds}
    assert set(TASK_TRANSITIONS.values()) == {"A", "R", "B"}


@pytest.mark.parametrize("row", PRESENT)
def test_a_present_state_is_found_in_its_row(row):
    assert row_of(PRESENT[row]) == row


def test_a_pause_without_a_deadline_never_expires_and_every_other_name_counts_by_its_type():
    assert row_of(Paused()) == "PAUSED"
    assert row_of(Suspended()) == "SUSPENDED"
    assert row_of(Retrying()) == "RUNNING"
    assert row_of(AwaitingRetry(scheduled_time=FUTURE)) == "SCHEDULED-LATER"


def test_a_proposal_is_found_in_the_column_of_its_type_and_a_suspension_in_its_own():
    assert [column_of(State(kind)) for kind in StateType] == [kind.value for kind in StateType]
    assert column_of(Suspended()) == "SUSPENDED"
    assert column_of(Paused(reschedule=True)) == "SUSPENDED"


@pytest.mark.parametrize("kind", list(StateType))
@pytest.mark.parametrize("row", FINAL)
def test_no_verdict_lets_a_run_leave_a_final_state(row, kind):
    """The table's half of invariant I5: only force gets past it, and force does not ask the table."""
    present = PRESENT[row]
    assert flow_verdict(present, State(kind))[0] in "RB"
    assert task_verdict(present, State(kind))[0] in "RB"


def test_a_final_state_is_refused_and_not_replaced_by_another():
    """A cell ``R:X`` in the row of a final state would append over it."""
    assert {FLOW_TRANSITIONS[row, column] for row in FINAL for column in COLUMNS} == {"R", "B"}


@pytest.mark.parametrize(
    ("row", "proposed", "verdict"),
    [
        ("NONE", Paused(), "B"),
        ("NONE", Suspended(), "B"),
        ("NONE", Scheduled(), "A"),
        ("SCHEDULED", Running(), "A"),
        ("SCHEDULED", Cancelling(), "R:CANCELLED"),
        ("SCHEDULED-LATER", Running(), "W"),
        ("SCHEDULED-LATER", Pending(), "A"),
        ("PENDING", Pending(), "R"),
        ("PENDING", Paused(), "R"),
        ("PENDING", Cancelling(), "A"),
        ("RUNNING", Pending(), "B"),
        ("RUNNING", Paused(), "A"),
        ("RUNNING", Suspended(), "A"),
        ("RUNNING", Failed(), "F"),
        ("RUNNING", Scheduled(), "A"),
        ("PAUSED", Pending(), "R"),
        ("PAUSED", Running(), "A"),
        ("PAUSED", Paused(), "R"),
        ("PAUSED-EXPIRED", Completed(), "R:FAILED"),
        ("PAUSED-EXPIRED", Scheduled(), "R:FAILED"),
        ("SUSPENDED", Scheduled(), "A"),
        ("SUSPENDED", Cancelling(), "R:CANCELLED"),
        ("SUSPENDED-EXPIRED", Running(), "R:FAILED"),
        ("CANCELLING", Running(), "R"),
        ("CANCELLING", Completed(), "R"),
        ("CANCELLING", Crashed(), "R"),
        ("CANCELLING", Cancelled(), "A"),
    ],
)
def test_a_cell_is_that_of_the_behaviour_document(row, proposed, verdict):
    assert flow_verdict(PRESENT[row], proposed) == verdict


@pytest.mark.parametrize("row", ["SCHEDULED", "SCHEDULED-LATER", "PENDING", "RUNNING", "SUSPENDED", "PAUSED"])
@pytest.mark.parametrize("final", [Completed(), Crashed(), Cancelled()])
def test_an_open_run_may_end(row, final):
    assert flow_verdict(PRESENT[row], final) == "A"


def test_where_we_differ_from_the_reference_on_purpose():
    """A second engine may not enter RUNNING; a paused run can be cancelled; a run that cannot start again may end."""
    assert flow_verdict(Running(), Running()) == "O"
    assert flow_verdict(Paused(), Cancelling()) == "A"
    assert [flow_verdict(PRESENT["SUSPENDED-EXPIRED"], end) for end in (Failed(), Cancelled(), Crashed())] == ["A"] * 3


def test_a_task_run_moves_as_its_engine_says_until_it_has_ended():
    for row in (None, *(State(kind) for kind in StateType if kind not in TERMINAL_STATES)):
        assert {task_verdict(row, State(kind)) for kind in StateType} == {"A"}


# ------------------------------------------------------------------------------------------------ the picture


def test_the_readme_shows_the_table_as_it_is():
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{diagram.mermaid()}```\n" in readme


def test_the_picture_has_an_arrow_for_every_accepted_transition_and_none_for_a_refused_one():
    lines = [line.strip().partition(":")[0] for line in diagram.mermaid().splitlines() if "-->" in line]
    drawn = {tuple(line.split(" --> ")) for line in lines}
    from_the_box = {target for source, target in drawn if source == "unfinished"}
    shown = {(source, target) for source, target in drawn if source in diagram.COLUMNS and target in diagram.COLUMNS}
    shown |= {(source, target) for source in diagram.UNFINISHED for target in from_the_box}
    leads = {
        (row, cell[2:] if cell.startswith("R:") else column)
        for (row, column), cell in FLOW_TRANSITIONS.items()
        if "-" not in row and row != "NONE" and (cell in "AFO" or cell.startswith("R:"))
    }
    assert shown == leads
    first = {target for source, target in drawn if source == "[*]"}
    assert first == {column for column in COLUMNS if FLOW_TRANSITIONS["NONE", column] == "A"} - set(FINAL)
    assert {source for source, target in drawn if target == "[*]"} == set(FINAL)
