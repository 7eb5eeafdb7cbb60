# SPDX-License-Identifier: Apache-2.0
"""A run that this process works on: deciding, appending, catching up with others, publishing, letting go."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from microflow import flow
from microflow._waits import now_us, to_us
from microflow.client import live as live_module
from microflow.client.live import Answer, LiveRun
from microflow.client.memory import MemoryTasks
from microflow.client.objects import TaskRun, TaskRunResult
from microflow.client.orchestration import SyncClient
from microflow.events import Bus
from microflow.exceptions import Fenced, NoSpace
from microflow.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Failed,
    Paused,
    Pending,
    Running,
    Scheduled,
    State,
    Suspended,
    Value,
)
from microflow.stores import FileStore, MemoryStore, Store
from tests.behaviour_support import pins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from microflow.events import Record


@flow
def main() -> None:
    """A flow to have runs of; its body is not run here."""


@flow(retries=1)
def retried() -> None:
    """Likewise, with a retry left."""


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, private_home: Path) -> Store:
    return FileStore(private_home) if request.param == "file" else MemoryStore()


@pytest.fixture
def client(store: Store) -> Iterator[SyncClient]:
    made = SyncClient(store)
    yield made
    for live in list(made.owned.values()):
        made.abandon(live)


def started(client: SyncClient, *states: State, of: Any = main, own: bool = True) -> LiveRun:
    """A run of ours that was led through these states after Pending."""
    live = client.start(client.new_flow_run(of), of, {}, Pending(), own=own)
    for state in states:
        live.propose(state, force=True)
    return live


def new_task(live: LiveRun | None = None) -> TaskRun:
    return TaskRun(uuid4(), "add-1", task_key="add-0", flow_run_id=live.flow_run.id if live else None)


def lines(live: LiveRun) -> list[list[str]]:
    """The log as kinds of records, or types of states, line by line."""
    found: dict[int, list[str]] = {}
    for record in live.store.read(live.run_id).records:
        found.setdefault(record.position, []).append(record.data.get("type", record.kind))
    return list(found.values())


def types(live: LiveRun) -> list[str]:
    """The states of the flow run in the log."""
    records = live.store.read(live.run_id).records
    return [record.data["type"] for record in records if record.kind == "state" and "run" not in record.data]


def request(live: LiveRun, state: State, *, force: bool = False) -> Answer:
    """What another process, that does not own the run, proposes through its own view of it."""
    other = FileStore(live.store.location) if isinstance(live.store, FileStore) else live.store
    return SyncClient(other).set_flow_run_state(live.run_id, state, force)


# ------------------------------------------------------------------------------------- answers


def test_an_accepted_state_is_in_the_log_and_the_very_object_is_the_present_state(client):
    live = started(client)
    state = Running()
    answer = live.propose(state)
    assert answer.accepted
    assert answer.state is state is live.flow_run.state
    assert state.state_details.flow_run_id == live.flow_run.id
    assert types(live) == ["PENDING", "RUNNING"]


def test_a_refused_state_leaves_the_log_and_the_run_as_they_are(client):
    live = started(client, Running())
    before = lines(live)
    for proposed, status in ((Pending(), Answer.ABORT), (Running(), Answer.REJECT)):
        answer = live.propose(proposed)
        assert (answer.status, answer.accepted) == (status, False)
        assert answer.state is live.flow_run.state
        assert "cannot go to" in answer.reason
    assert lines(live) == before


def test_a_run_that_is_scheduled_for_later_is_to_be_waited_for(client):
    due = datetime.now(timezone.utc) + timedelta(seconds=100)
    live = started(client, Scheduled(scheduled_time=due))
    answer = live.propose(Running())
    assert answer.status == Answer.WAIT
    assert 90 < answer.seconds <= 100
    assert types(live)[-1] == "SCHEDULED"


def test_a_cell_with_another_state_appends_that_one_and_rejects(client):
    live = started(client, Suspended())
    answer = live.propose(Cancelling())
    assert answer.status == Answer.REJECT
    assert types(live)[-1] == live.flow_run.state_type == "CANCELLED"


def test_force_gets_past_the_table(client):
    live = started(client, Running(), Completed())
    assert not live.propose(Running()).accepted
    assert live.propose(Running(), force=True).accepted
    assert types(live)[-2:] == ["COMPLETED", "RUNNING"]


def test_only_the_owner_who_resumes_may_enter_running_where_the_table_asks_for_the_owner(client):
    expired = Paused(pause_expiration_time=datetime.now(timezone.utc) - timedelta(hours=1))
    live = started(client, Running(), expired)
    assert not request(live, Running()).accepted
    assert live.propose(Running()).accepted
    assert not live.propose(Running()).accepted


def test_proposing_the_present_state_again_appends_nothing(client):
    live = started(client, Running())
    present = live.flow_run.state
    assert present is not None
    live.propose(present, force=True)
    assert types(live) == ["PENDING", "RUNNING"]


def test_an_answer_shows_what_it_came_to():
    assert repr(Answer(Answer.REJECT, Running(), "why")) == "Answer(reject, Running(), 'why')"


# ------------------------------------------------------------------------------------- flow retries


def test_a_failure_with_a_retry_left_is_answered_by_awaiting_retry(client):
    live = started(client, Running(), of=retried)
    answer = live.propose(Failed(message="first"))
    assert answer.status == Answer.REJECT
    assert (live.flow_run.state_name, live.flow_run.attempt) == ("AwaitingRetry", 1)
    assert answer.state is not None
    assert answer.state.message == "first"
    live.propose(Running())
    assert live.propose(Failed(message="second")).accepted
    assert types(live) == ["PENDING", "RUNNING", "SCHEDULED", "RUNNING", "FAILED"]


def test_the_retry_is_due_after_the_delay(client):
    delayed = flow(retries=1, retry_delay_seconds=100)(main.fn)
    live = started(client, Running(), of=delayed)
    before = datetime.now(timezone.utc)
    live.propose(Failed())
    due = live.flow_run.next_scheduled_start_time
    assert due is not None
    assert timedelta(seconds=99) < due - before < timedelta(seconds=110)


def test_a_failure_that_is_not_retriable_is_final_though_a_retry_is_left(client):
    live = started(client, Running(), of=retried)
    assert live.propose(Failed(state_details={"retriable": False})).accepted


# ------------------------------------------------------------------------------------- moments


def test_the_moments_of_a_run_grow_strictly(client):
    live = started(client)
    moment = datetime.now(timezone.utc) + timedelta(hours=1)
    for state in (Running(timestamp=moment), AwaitingRetry(timestamp=moment), Running(timestamp=moment)):
        assert live.propose(state).status == Answer.ACCEPT or live.propose(state, force=True).accepted
    stamps = [state.timestamp for state in client.read_flow_run_states(live.run_id)]
    assert stamps == sorted(set(stamps))


@pins("task_engine", 87)
def test_the_moments_of_a_task_run_grow_strictly(client):
    live, task_run = started(client, Running()), None
    task_run = new_task(live)
    moment = datetime.now(timezone.utc)
    live.propose_task(task_run, Running(timestamp=moment), pending_since=to_us(moment))
    live.propose_task(task_run, Completed(timestamp=moment))
    stamps = [state.timestamp for state in client.read_task_run_states(task_run.id, flow_run_id=live.run_id)]
    assert stamps == [moment, moment + timedelta(microseconds=1), moment + timedelta(microseconds=2)]


# ------------------------------------------------------------------------------------- others append, too


def test_after_a_conflict_the_owner_folds_what_the_other_wrote_and_decides_again(client):
    """The other asked for cancelling: completing was legal before and is not any more."""
    live = started(client, Running())
    assert request(live, Cancelling()).accepted
    answer = live.propose(Completed())
    assert (answer.status, live.flow_run.state_type) == (Answer.REJECT, "CANCELLING")
    assert live.propose(Cancelled()).accepted
    assert types(live) == ["PENDING", "RUNNING", "CANCELLING", "CANCELLED"]


def test_after_a_conflict_that_changes_nothing_the_state_is_appended_all_the_same(client, store):
    live = started(client, Running())
    store.append(live.run_id, [{"k": "note", "o": 1}], expect=live.run.position)
    assert live.propose(Completed()).accepted
    task_run = new_task(live)
    store.append(live.run_id, [{"k": "note", "o": 1}], expect=live.run.position)
    live.propose_task(task_run, Completed(), force=True)
    assert types(live) == ["PENDING", "RUNNING", "COMPLETED"]
    assert client.read_task_run(task_run.id).state_type == "COMPLETED"


def test_refresh_folds_what_others_appended(client):
    live = started(client, Running())
    request(live, Cancelling())
    live.refresh()
    assert live.flow_run.state_type == "CANCELLING"
    assert live.run.position == 3


def test_an_owner_whose_run_was_taken_is_fenced_also_after_it_has_read_of_it(client):
    """Were the claim number read from the fold, reading the thief's claim would let us write under it (I12)."""
    live = started(client, Running())
    thief = SyncClient(client.store).claim(live.run_id, steal=True)
    try:
        for proposal in (lambda: live.propose(Completed()), lambda: live.propose_task(new_task(live), Running())):
            with pytest.raises(Fenced):
                proposal()
            live.refresh()
        assert types(live) == ["PENDING", "RUNNING"]
        assert live.flow_run.state_type == "RUNNING"
    finally:
        thief.release()


def test_a_fenced_owner_lets_go_in_silence(client, store):
    live = started(client, Running())
    thief = SyncClient(store).claim(live.run_id, steal=True)
    before = lines(live)
    client.let_go(live)
    assert lines(live) == before
    thief.release()


# ------------------------------------------------------------------------------------- letting go


def test_the_last_line_carries_the_final_state_and_the_release(client, store):
    live = started(client, Running())
    live.handed_back = 7
    token = live.token
    assert token is not None
    live.propose(Completed(), release=True)
    assert lines(live)[-1] == ["COMPLETED", "release"]
    assert store.read(live.run_id).records[-1].data["handed_back"] == 7
    client.let_go(live)
    assert lines(live)[-1] == ["COMPLETED", "release"]
    assert not store.is_alive(token)
    assert client.owned == {}


def test_a_state_that_is_not_final_carries_no_release(client):
    live = started(client)
    live.propose(Running(), release=True)
    assert lines(live)[-1] == ["RUNNING"]


def test_letting_go_of_an_open_run_appends_a_release_once(client):
    live = started(client, Running())
    live.release()
    live.release()
    assert lines(live)[-2:] == [["RUNNING"], ["release"]]
    assert client.fold(live.run_id).owner is None


def test_a_request_that_comes_in_between_does_not_hinder_letting_go(client, store):
    live = started(client, Running())
    token = live.token
    assert token is not None
    request(live, Cancelling())
    live.release()
    assert not store.is_alive(token)


def test_an_abandoned_run_gets_no_word_and_its_owner_is_dead(client):
    live = started(client, Running())
    before = lines(live)
    client.abandon(live)
    assert lines(live) == before
    assert client.read_flow_run(live.run_id).state_type == "CRASHED"


def test_one_process_owns_several_runs_under_one_token(client, store):
    one, two = started(client), started(client)
    token = one.token
    assert token is not None
    assert token == two.token
    one.release()
    assert store.is_alive(token)
    two.release()
    assert not store.is_alive(token)


# ------------------------------------------------------------------------------------- task runs


def test_creation_and_first_states_of_a_task_run_are_one_line(client):
    live, task_run = started(client, Running()), None
    task_run = new_task(live)
    running = Running()
    answer = live.propose_task(task_run, running, source="py3-0", pending_since=now_us())
    assert answer.state is running is task_run.state
    assert lines(live)[-1] == ["task", "RUNNING"]
    assert [state.name for state in client.read_task_run_states(task_run.id, flow_run_id=live.run_id)] == [
        "Pending",
        "Running",
    ]
    assert task_run.recorded
    live.propose_task(task_run, Completed(data=Value(5)))
    assert lines(live)[-1] == ["COMPLETED"]


def test_a_task_run_stands_in_the_table_of_live_runs_until_it_has_ended(client):
    live = started(client, Running())
    task_run = new_task(live)
    live.propose_task(task_run, Running())
    assert live.live == {task_run.text: task_run}
    live.propose_task(task_run, Completed())
    assert live.live == {}


def test_a_new_name_goes_into_the_line_of_the_next_state(client):
    live = started(client, Running())
    task_run = new_task(live)
    live.propose_task(task_run, Pending())
    task_run.name = "mine"
    live.propose_task(task_run, Running(), renamed=True)
    assert lines(live)[-1] == ["rename", "RUNNING"]
    assert client.read_task_run(task_run.id).name == "mine"


def test_a_task_run_does_not_start_unless_its_flow_run_is_running(client):
    live = started(client)
    task_run = new_task(live)
    answer = live.propose_task(task_run, Running(), pending_since=now_us())
    assert (answer.status, task_run.state, task_run.recorded) == (Answer.ABORT, None, False)
    assert "its flow run is in state Pending()" in answer.reason
    assert lines(live) == [["run", "claim", "PENDING"]]


@pytest.mark.parametrize("where", ["log", "memory"])
def test_a_task_run_that_has_ended_is_left_only_by_force(client, where):
    live = started(client, Running())
    recorder: LiveRun | MemoryTasks = live if where == "log" else client.tasks
    task_run = new_task(live)
    recorder.propose_task(task_run, Failed())
    assert recorder.propose_task(task_run, Completed()).status == Answer.REJECT
    assert recorder.propose_task(task_run, Paused()).status == Answer.ABORT
    assert task_run.state_type == "FAILED"
    assert recorder.propose_task(task_run, Completed(), force=True).accepted
    states = client.read_task_run_states(task_run.id)
    assert [state.type for state in states] == ["FAILED", "COMPLETED"]


def test_the_task_runs_of_a_map_are_created_in_batches(client, monkeypatch):
    monkeypatch.setattr(live_module, "BATCH", 3)
    live = started(client, Running())
    created = [(new_task(live), Pending(), "py3-0") for _ in range(7)]
    live.create_tasks(created)
    assert [len(line) for line in lines(live)[2:]] == [3, 3, 1]
    assert all(task_run.recorded and task_run.state is state for task_run, state, _ in created)
    assert {task.id for task in client.read_task_runs(flow_run_id=live.run_id)} == {task.id for task, _, _ in created}


def test_a_map_over_runs_with_many_upstreams_fits_into_its_lines(client):
    """A line has at most 1 MiB; each upstream of a run takes about 60 bytes of it."""
    live = started(client, Running())
    upstreams = [TaskRunResult(id=uuid4()) for _ in range(400)]
    created = [(new_task(live), Pending(), "py3-0") for _ in range(100)]
    for task_run, _, _ in created:
        task_run.task_inputs = {"x": list(upstreams)}
    live.create_tasks(created)
    assert len(client.read_task_runs(flow_run_id=live.run_id)) == 100


# ------------------------------------------------------------------------------------- publishing


def test_what_is_published_is_in_the_log_and_in_memory_already(client):
    live = started(client)
    created = [(new_task(live), Pending(), None) for _ in range(2)]
    seen = []

    def look(record: Record) -> None:
        in_log = client.store.read(live.run_id).records
        entered = all(task_run.state is not None for task_run, _, _ in created if str(task_run.id) == record.subject)
        seen.append((record in in_log or _without_time(record) in map(_without_time, in_log), entered))

    client.store.bus.subscribe_log(live.run_id, look)
    live.propose(Running())
    live.create_tasks(created)
    live.rename("mine")
    live.propose(Completed(), release=True)
    assert seen == [(True, True)] * 6


def _without_time(record: Record) -> tuple[Any, ...]:
    return record.run_id, record.position, record.epoch, record.kind, record.data


def test_no_mutex_of_the_run_is_held_while_it_is_published(client):
    live = started(client)
    locked = []
    client.store.bus.subscribe(live.run_id, lambda _: locked.append(live._lock.locked()))
    live.propose(Running())
    assert locked == [False]


def test_a_claim_and_the_state_that_goes_with_it_are_published(client):
    live = started(client, Running(), Failed())
    live.release()
    kinds: list[str] = []
    end = client.store.bus.subscribe_log(live.run_id, lambda record: kinds.append(record.kind))
    client.claim(live.run_id, force=True).release()
    end()
    assert kinds[:2] == ["claim", "state"]


# ------------------------------------------------------------------------------------- results


def test_the_result_of_a_final_state_is_kept_and_of_others_is_not(client):
    live = started(client, Running(data=1), Completed(data=Value((1, 2))))
    states = client.read_flow_run_states(live.run_id)
    assert [state.data is None for state in states] == [True, True, False]
    assert states[-1].result() == (1, 2)


def test_without_keeping_no_result_is_recorded(store):
    client = SyncClient(store, keep_results=False)
    live = started(client, Running(), Completed(data=Value(5)))
    assert live.flow_run.state is not None
    assert live.flow_run.state.result() == 5
    assert client.read_flow_run_states(live.run_id)[-1].data is None
    live.release()


def test_a_result_that_was_read_from_a_log_is_handed_on_as_it_stands(client, monkeypatch):
    live = started(client, Running(), Completed(data=Value([1])))
    state = client.read_flow_run_states(live.run_id)[-1]
    other = started(client, Running())
    monkeypatch.setattr(live_module, "keep", lambda *_: pytest.fail("it was written anew"))
    other.propose(Completed(data=state.data))
    assert client.read_flow_run_states(other.run_id)[-1].result() == [1]


def test_user_code_that_writes_the_value_runs_without_the_mutex(client):
    live = started(client, Running())
    locked = []

    class Odd:
        def __reduce__(self):
            locked.append(live._lock.locked())
            return (int, ())

    live.propose(Completed(data=Value(Odd())))
    live.propose_task(new_task(live), Completed(data=Value(Odd())))
    assert locked
    assert not any(locked)


# ------------------------------------------------------------------------------------- when the append fails


def test_an_append_that_fails_changes_nothing_in_memory(client, monkeypatch):
    live = started(client, Running())
    task_run = new_task(live)

    def full(*args: Any, **kwargs: Any) -> int:
        raise NoSpace("full")

    with monkeypatch.context() as patch:
        patch.setattr(client.store, "append", full)
        for proposal in (
            lambda: live.propose(Completed(), release=True),
            lambda: live.propose_task(task_run, Running(), pending_since=now_us()),
            lambda: live.create_tasks([(task_run, Pending(), None)]),
            lambda: live.rename("mine"),
        ):
            with pytest.raises(NoSpace):
                proposal()
    assert (live.flow_run.state_type, live.flow_run.name != "mine", live.run.owner is None) == ("RUNNING", True, False)
    assert (task_run.state, task_run.recorded, live.live) == (None, False, {})
    assert live.propose(Completed()).accepted


# ------------------------------------------------------------------------------------- threads


def test_threads_of_one_process_never_conflict_and_every_state_is_recorded(client):
    live = started(client, Running())
    tasks = [[new_task(live) for _ in range(25)] for _ in range(8)]

    def work(mine: list[TaskRun]) -> None:
        for task_run in mine:
            live.propose_task(task_run, Running(), pending_since=now_us())
            live.propose_task(task_run, Completed(data=Value(1)))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert live.run.position == 2 + 400
    runs = client.read_task_runs(flow_run_id=live.run_id)
    assert {run.state_type for run in runs} == {"COMPLETED"}
    assert len(runs) == 200


def test_equal_calls_are_counted_each_and_anew_in_the_next_attempt(client):
    live = started(client)
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(live.occurrence(b"call"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(20))
    assert live.occurrence(b"other") == 0
    live.begin_attempt()
    assert live.occurrence(b"call") == 0


def test_what_an_earlier_execution_recorded_of_a_call_is_found_by_its_id(client):
    live = started(client, Running())
    task_run = new_task(live)
    live.propose_task(task_run, Completed())
    assert live.recorded_call(task_run.id) is None  # of this execution: nobody asks
    live.release()
    again = client.claim(live.run_id)
    history = again.recorded_call(task_run.id)
    assert history is not None
    assert [record["type"] for record in history.states] == ["COMPLETED"]
    assert again.recorded_call(UUID(int=0)) is None
    again.take_back(task_run.id)
    assert again.handed_back == 1
    again.release()


# ------------------------------------------------------------------------------------- outside of flows


def test_task_runs_outside_of_flows_are_kept_in_memory_with_their_states():
    tasks, task_run = MemoryTasks(Bus()), new_task()
    tasks.propose_task(task_run, Running(), pending_since=now_us())
    tasks.propose_task(task_run, Completed())
    tasks.sync()
    assert tasks.find(task_run.id) is task_run
    assert [state.type for state in tasks.states(task_run.id)] == ["PENDING", "RUNNING", "COMPLETED"]
    assert (tasks.find(uuid4()), tasks.states(uuid4())) == (None, [])


def test_only_the_latest_task_runs_outside_of_flows_are_kept(monkeypatch):
    monkeypatch.setattr(MemoryTasks, "LIMIT", 3)
    tasks, runs = MemoryTasks(Bus()), [new_task() for _ in range(5)]
    tasks.create_tasks([(run, Pending(), None) for run in runs])
    assert [tasks.find(run.id) is not None for run in runs] == [False, False, True, True, True]
    assert tasks.states(runs[0].id) == []
    tasks.propose_task(runs[0], Running())  # one that was forgotten goes on
    assert [state.type for state in tasks.states(runs[0].id)] == ["RUNNING"]


# ------------------------------------------------------------------------------------- notes


def test_a_note_is_appended_and_changes_no_state(client):
    live = started(client, Running())
    task_run = new_task(live)
    live.propose_task(task_run, Running(), pending_since=now_us())
    live.propose_task(task_run, Completed(data=Value(1)))
    present, appended = task_run.state, []
    live.store.bus.subscribe_log(live.run_id, appended.append)
    live.note(task_run, "committed")
    live.note(task_run, "asset", {"event": "a"}, {"event": "b"})
    live.note(task_run, "rolled_back")
    assert task_run.state is present
    assert lines(live)[-3:] == [["note"], ["note", "note"], ["note"]], "one transition is one line"
    assert [record.data["what"] for record in appended] == ["committed", "asset", "asset", "rolled_back"]
    history = client.fold(live.run_id).tasks[task_run.text]
    assert (history.committed, history.rolled_back) == (True, True)
    assert [state.name for state in client.read_task_run_states(task_run.id)][-2:] == ["Completed", "RolledBack"]
    assert client.read_task_run(task_run.id).state_name == "Completed"
    assert [note["event"] for note in client.fold(live.run_id).asset_notes] == ["a", "b"]


def test_a_note_comes_after_the_state_that_it_is_about(client):
    live = started(client, Running())
    task_run = new_task(live)
    late = Completed(data=Value(1))
    late.at += 10_000_000
    live.propose_task(task_run, Running(), pending_since=now_us())
    live.propose_task(task_run, late)
    live.note(task_run, "rolled_back")
    states = client.read_task_run_states(task_run.id)
    assert [state.at for state in states] == sorted({state.at for state in states})


def test_a_run_that_was_let_go_of_hears_no_more_notes(client):
    live = started(client, Running())
    task_run = new_task(live)
    live.propose_task(task_run, Running(), pending_since=now_us())
    client.let_go(live)
    before = lines(live)
    live.note(task_run, "committed")
    assert lines(live) == before


def test_a_rollback_outside_of_flows_is_listed_too(client):
    tasks, task_run = client.tasks, new_task()
    tasks.note(task_run, "rolled_back")
    assert tasks.states(task_run.id) == [], "nothing is known of the run"
    tasks.propose_task(task_run, Running(), pending_since=now_us())
    tasks.propose_task(task_run, Completed())
    tasks.note(task_run, "committed")
    tasks.note(task_run, "asset", {"event": "a"})
    tasks.note(task_run, "rolled_back")
    assert [state.name for state in client.read_task_run_states(task_run.id)][-2:] == ["Completed", "RolledBack"]
    assert client.read_task_run(task_run.id).state_name == "Completed"
    assert [note["event"] for note in tasks.asset_notes(task_run.id)] == ["a"]
    assert tasks.asset_notes() == tasks.asset_notes(task_run.id)
    assert tasks.asset_notes(uuid4()) == []
