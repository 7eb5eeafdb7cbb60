# SPDX-License-Identifier: Apache-2.0
"""The client: create, claim, read, list, filter, delete; one client for each home; coroutines that do the same."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from microflow import _kept, flow, get_client, task
from microflow._waits import now_us
from microflow.client import orchestration
from microflow.client.objects import TaskRun, random_name
from microflow.client.orchestration import Client, SyncClient, current_client
from microflow.exceptions import (
    AmbiguousRunId,
    MicroflowException,
    MissingResult,
    NotPausedError,
    ObjectNotFound,
    RunningElsewhere,
    StorageError,
)
from microflow.settings import temporary_settings
from microflow.states import Cancelling, Completed, Failed, Paused, Pending, Running, Scheduled, State, Value
from microflow.stores import FileStore, MemoryStore, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from microflow.client.live import LiveRun


@flow(version="2", retries=2, retry_delay_seconds=3)
def main(n: int = 1, other: Any = None) -> int:
    """A flow to have runs of."""
    return n


@flow
def second() -> None:
    """Another."""


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, private_home: Path) -> Store:
    return FileStore(private_home) if request.param == "file" else MemoryStore()


@pytest.fixture
def client(store: Store) -> Iterator[SyncClient]:
    made = SyncClient(store)
    yield made
    for live in list(made.owned.values()):
        made.abandon(live)


def started(client: SyncClient, *states: State, of: Any = main, **fields: Any) -> LiveRun:
    """A run of ours that was led through these states after Pending."""
    live = client.start(client.new_flow_run(of, **fields), of, {}, Pending(), own=True)
    for state in states:
        live.propose(state, force=True)
    return live


def with_tasks(live: LiveRun, **names: State) -> dict[str, TaskRun]:
    """Task runs of these names in these states."""
    found = {}
    for name, state in names.items():
        task_run = found[name] = TaskRun(uuid4(), name, task_key="t", flow_run_id=live.flow_run.id, tags={name})
        live.propose_task(task_run, state, pending_since=now_us())
    return found


# ------------------------------------------------------------------------------------- create


def test_a_created_run_is_scheduled_belongs_to_nobody_and_can_be_read(client):
    created = client.create_flow_run(main, parameters={"n": 5}, tags=["a"], name="mine", idempotency_key="once")
    assert (created.name, created.flow_name, created.flow_version) == ("mine", "main", "2")
    assert (created.state_type, created.tags, created.parameters) == ("SCHEDULED", {"a"}, {"n": 5})
    assert (created.idempotency_key, created.empirical_policy) == ("once", {"retries": 2, "retry_delay": 3.0})
    assert client.read_flow_run(created.id) == created
    assert client.owned == {}
    assert client.fold(str(created.id)).owner is None


def test_a_created_run_may_have_another_first_state(client):
    due = datetime.now(timezone.utc) + timedelta(days=1)
    assert client.create_flow_run(main, state=Scheduled(scheduled_time=due)).expected_start_time == due
    assert client.create_flow_run(main, state=Pending()).state_type == "PENDING"


def test_a_started_run_reads_back_equal(client):
    live = started(client, tags=["a"], parent_flow_run_id=uuid4(), parent_task_run_id=uuid4(), root_flow_run_id=uuid4())
    assert client.read_flow_run(live.run_id) == live.flow_run
    live.propose(Running())
    assert client.read_flow_run(live.run_id) == live.flow_run


def test_a_run_without_a_name_gets_one_of_two_words():
    names = {random_name() for _ in range(50)}
    assert len(names) > 10
    assert all(len(name.split("-")) == 2 for name in names)


def test_parameters_that_cannot_be_kept_are_shown_and_named_when_they_are_missed(client, monkeypatch):
    monkeypatch.setattr(_kept, "_warned", set())  # nobody was warned yet
    with pytest.warns(RuntimeWarning, match="'main'"):
        created = client.create_flow_run(main, parameters={"n": 5, "other": lambda: None})
    assert created.parameters == {"n": 5, "other": "<function>"}
    with pytest.raises(MissingResult, match="were not kept"):
        client.fold(str(created.id)).parameters()


def test_what_a_method_is_bound_to_is_no_parameter_of_the_run(client):
    class Box:
        @flow
        def method(self, n: int) -> int:
            return n

    bound = Box().method
    created = client.create_flow_run(bound, parameters=bound.bind((5,), {}))
    assert created.parameters == {"n": 5}


def test_a_run_that_could_not_be_appended_leaves_no_owner_alive(client, store, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> int:
        raise StorageError("no")

    tokens = []
    own = store.own
    monkeypatch.setattr(store, "own", lambda: tokens.append(own()) or tokens[-1])
    monkeypatch.setattr(store, "append", refuse)
    with pytest.raises(StorageError):
        started(client)
    assert not store.is_alive(tokens[0])
    assert client.owned == {}


def test_a_run_can_be_started_where_the_working_folder_is_gone(client, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert client.read_flow_run(started(client).run_id).state_type == "PENDING"


# ------------------------------------------------------------------------------------- claim


def test_a_claim_appends_nothing_but_itself_and_running_goes_on(client):
    live = started(client, Running())
    client.abandon(live)
    before = len(client.store.read(live.run_id).records)
    again = client.claim(live.run_id)
    records = client.store.read(live.run_id).records[before:]
    assert [record.kind for record in records] == ["claim"]
    assert (again.flow_run.state_type, again.flow_run.run_count, again.epoch) == ("RUNNING", 1, 2)
    assert again.propose(Completed()).accepted
    assert client.read_flow_run(live.run_id) == again.flow_run


def test_a_run_that_another_process_owns_is_not_claimed_after_100_ms(client):
    live = started(client, Running())
    other = SyncClient(client.store)
    before = time.monotonic()
    with pytest.raises(RunningElsewhere, match=rf"{live.run_id} is running in process {os.getpid()} on .*--steal"):
        other.claim(live.run_id)
    assert time.monotonic() - before >= 0.1
    assert live.propose(Completed()).accepted


def test_a_claimant_waits_for_an_owner_that_is_about_to_let_go(client, monkeypatch):
    live = started(client, Running())
    waited = []

    def let_go_meanwhile(seconds: float) -> None:
        waited.append(seconds)
        live.release()

    monkeypatch.setattr(orchestration.time, "sleep", let_go_meanwhile)
    SyncClient(client.store).claim(live.run_id).release()
    assert len(waited) == 1


def test_an_ended_run_is_claimed_only_by_an_operators_word_and_only_if_it_did_not_complete(client):
    failed, done = started(client, Running(), Failed()), started(client, Running(), Completed())
    for live in (failed, done):
        live.release()
        with pytest.raises(NotPausedError, match="has ended as"):
            client.claim(live.run_id)
    with pytest.raises(NotPausedError):
        client.claim(done.run_id, force=True)
    again = client.claim(failed.run_id, force=True)
    assert (again.flow_run.state_name, again.flow_run.end_time) == ("Resuming", None)
    assert client.read_flow_run(failed.run_id) == again.flow_run


def test_of_two_who_claim_the_same_position_the_second_looks_again(client, monkeypatch):
    live = started(client, Running())
    live.release()
    append, lost = client.store.append, []

    def first_somebody_else(run_id: str, bodies: list[Any], **kwargs: Any) -> int:
        if not lost:
            lost.append(True)
            append(run_id, [{"k": "note", "o": 1}], expect=kwargs["expect"])
        return append(run_id, bodies, **kwargs)

    monkeypatch.setattr(client.store, "append", first_somebody_else)
    again = client.claim(live.run_id)
    assert (again.epoch, len(lost)) == (2, 1)


def test_a_claim_that_could_not_be_appended_leaves_no_owner_alive(client, store, monkeypatch):
    live = started(client, Running())
    live.release()

    def refuse(*args: Any, **kwargs: Any) -> int:
        raise StorageError("no")

    tokens = []
    own = store.own
    monkeypatch.setattr(store, "own", lambda: tokens.append(own()) or tokens[-1])
    monkeypatch.setattr(store, "append", refuse)
    with pytest.raises(StorageError):
        client.claim(live.run_id)
    assert not store.is_alive(tokens[-1])


# ------------------------------------------------------------------------------------- find


def test_an_id_may_be_shortened_to_a_unique_beginning(client):
    one, two = (str(client.create_flow_run(main).id) for _ in range(2))
    assert client.find_run_id(one) == client.find_run_id(one.upper()) == one
    assert client.find_run_id(two[:-1]) == two
    with pytest.raises(ObjectNotFound, match="begins with 'zzz'"):
        client.find_run_id("zzz")
    with pytest.raises(AmbiguousRunId, match=f"'{one[:4]}' fits 2 flow runs: .*; give more of the id"):
        client.find_run_id(one[:4])  # ids begin with the time
    with pytest.raises(ObjectNotFound):
        client.find_run_id("")


def test_an_unknown_run_is_not_found_and_text_that_is_no_id_is_refused(client):
    for ask in (client.read_flow_run, client.read_flow_run_states, client.claim, client.delete_flow_run):
        with pytest.raises(ObjectNotFound):
            ask(str(uuid4()))
        with pytest.raises(ValueError, match="is no run id"):
            ask("../../etc/passwd")


# ------------------------------------------------------------------------------------- read flow runs


def test_reading_writes_nothing_also_when_the_owner_is_dead(client):
    live = started(client, Running())
    client.abandon(live)
    before = client.store.read(live.run_id).position
    assert client.read_flow_run(live.run_id).state_type == "CRASHED"
    assert client.read_flow_runs()[0].state_type == "CRASHED"
    assert [state.type for state in client.read_flow_run_states(live.run_id)] == ["PENDING", "RUNNING"]
    assert client.store.read(live.run_id).position == before


@pytest.fixture
def three(client: SyncClient) -> list[LiveRun]:
    """Three runs: one running, one completed with a tag, one failed of another flow."""
    return [
        started(client, Running(), name="one"),
        started(client, Running(), Completed(), name="two", tags=["a", "b"]),
        started(client, Running(), Failed(name="TimedOut"), name="three", of=second, tags=["a"]),
    ]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["one", "two", "three"]),
        ({"names": ["one", "three"]}, ["one", "three"]),
        ({"flow_names": ["second"]}, ["three"]),
        ({"state_types": ["RUNNING", "COMPLETED"]}, ["one", "two"]),
        ({"state_names": ["TimedOut"]}, ["three"]),
        ({"tags": ["a"]}, ["two", "three"]),
        ({"tags": ["a", "b"]}, ["two"]),
        ({"tags": []}, ["one", "two", "three"]),
        ({"names": []}, []),
        ({"names": ["one"], "state_types": ["COMPLETED"]}, []),
        ({"limit": 2}, ["one", "two"]),
        ({"offset": 1}, ["two", "three"]),
        ({"offset": 1, "limit": 1}, ["two"]),
        ({"limit": 0}, []),
        ({"sort": "name"}, ["one", "three", "two"]),
        ({"sort": "end_time"}, ["two", "three", "one"]),
    ],
)
def test_a_list_has_the_runs_that_fit_every_filter(client, three, filters, names):
    """Filters may be iterators, which can be read only once."""
    iterators = {key: iter(value) if isinstance(value, list) else value for key, value in filters.items()}
    assert [run.name for run in client.read_flow_runs(**iterators)] == names


def test_a_list_can_be_bounded_in_time(client, three):
    """The range is half-open: what was to start at `before` is not in it."""
    runs = client.read_flow_runs()
    first, second, third = (run.expected_start_time for run in runs)
    assert [run.name for run in client.read_flow_runs(after=second)] == ["two", "three"]
    assert [run.name for run in client.read_flow_runs(before=third)] == ["one", "two"]
    assert [run.name for run in client.read_flow_runs(after=first, before=second)] == ["one"]


def test_a_list_can_be_of_the_children_of_a_run(client):
    @flow
    def child() -> None:
        """Called twice."""

    @flow
    def parent() -> None:
        child()
        child()

    parent()
    parent()
    mother, _ = current_client().read_flow_runs(flow_names=["parent"])
    children = current_client().read_flow_runs(parent_flow_run_ids=[mother.id])
    assert [run.flow_name for run in children] == ["child", "child"]
    assert current_client().read_flow_runs(parent_flow_run_ids=[]) == []


def test_a_list_of_ids_leaves_out_those_that_are_not_there(client, three):
    ids = [three[2].flow_run.id, three[0].run_id, uuid4()]
    assert {run.name for run in client.read_flow_runs(ids=ids)} == {"one", "three"}


def test_a_list_leaves_out_runs_that_cannot_be_read(private_home):
    client = SyncClient(FileStore(private_home))
    kept, damaged = client.create_flow_run(main), client.create_flow_run(main)
    path = private_home / "runs" / f"{damaged.id}.jsonl"
    path.write_bytes(path.read_bytes() + b'{"q":5,"p":"00000000"}\n' + path.read_bytes()[:-20] + b"\n")
    with_problem, problem = client.fold_what_is_readable(str(damaged.id))
    if problem is not None:
        assert with_problem.flow_run.id == damaged.id
        with pytest.raises(type(problem)):
            client.fold(str(damaged.id))
        assert [run.id for run in client.read_flow_runs()] == [kept.id]


def test_an_unknown_state_type_in_a_filter_is_refused(client, three):
    with pytest.raises(ValueError, match="'DONE' is not a valid StateType"):
        client.read_flow_runs(state_types=["DONE"])


# ------------------------------------------------------------------------------------- read task runs


def test_task_runs_are_read_in_the_order_of_their_creation_and_filtered(client):
    live = started(client, Running())
    with_tasks(live, first=Running(), second=Completed(), third=Failed())
    names = [run.name for run in client.read_task_runs(flow_run_id=live.run_id)]
    assert names == ["first", "second", "third"]

    def found(**filters: Any) -> list[str]:
        return [run.name for run in client.read_task_runs(flow_run_id=live.run_id, **filters)]

    assert found(state_types=["COMPLETED", "FAILED"], offset=1) == ["third"]
    assert found(tags=["first"]) == found(names=["first"]) == found(state_names=["Running"]) == ["first"]
    assert found(limit=1) == ["first"]


def test_a_task_run_is_found_by_its_id_alone(client):
    live = started(client, Running())
    started(client, Running())
    task_run = with_tasks(live, first=Completed(data=Value(5)))["first"]
    read = client.read_task_run(task_run.id)
    assert (read.id, read.state_type) == (task_run.id, "COMPLETED")
    assert client.read_task_run(str(task_run.id), flow_run_id=live.run_id) == read
    assert [state.type for state in client.read_task_run_states(task_run.id)] == ["PENDING", "COMPLETED"]
    for ask in (client.read_task_run, client.read_task_run_states):
        with pytest.raises(ObjectNotFound, match="no task run has the id"):
            ask(uuid4())


def test_a_task_run_outside_of_flows_is_read_from_memory(client):
    task_run = TaskRun(uuid4(), "free", task_key="t")
    client.tasks.propose_task(task_run, Running(), pending_since=now_us())
    read = client.read_task_run(task_run.id)
    assert read == task_run
    client.tasks.propose_task(task_run, Completed())
    assert read.state_type == "RUNNING"  # what was read stays as it was
    assert len(client.read_task_run_states(task_run.id)) == 3


def test_task_runs_that_a_dead_process_left_running_show_as_crashed(client):
    live = started(client, Running())
    with_tasks(live, left=Running(), done=Completed())
    client.abandon(live)
    found = {run.name: run.state_type for run in client.read_task_runs(flow_run_id=live.run_id)}
    assert found == {"left": "CRASHED", "done": "COMPLETED"}


# ------------------------------------------------------------------------------------- write, delete


def test_a_state_may_be_proposed_for_a_run_of_this_process_or_of_another(client):
    live = started(client, Running())
    assert client.set_flow_run_state(live.run_id, Cancelling()).accepted
    assert live.flow_run.state_type == "CANCELLING"
    other = SyncClient(client.store)
    assert not other.set_flow_run_state(live.flow_run.id, Completed()).accepted
    assert other.set_flow_run_state(live.flow_run.id, Completed(), force=True).accepted
    assert client.read_flow_run(live.run_id).state_type == "COMPLETED"
    with pytest.raises(ObjectNotFound):
        client.set_flow_run_state(uuid4(), Paused())


def test_deleting_removes_the_run_unless_a_live_process_owns_it(client):
    live = started(client, Running())
    live.propose(Completed(data=Value("x" * 20_000)))
    with pytest.raises(RunningElsewhere, match="was not deleted"):
        client.delete_flow_run(live.run_id)
    client.let_go(live)
    client.delete_flow_run(live.run_id)
    assert client.store.list() == []
    with pytest.raises(ObjectNotFound):
        client.read_flow_run(live.run_id)


# ------------------------------------------------------------------------------------- which client


def test_there_is_one_client_for_each_home_durability_and_keeping(private_home):
    client = current_client()
    assert client is current_client() is get_client(sync_client=True)
    assert isinstance(client.store, FileStore)
    assert client.store.location == str(private_home)
    for other in ({"home": ":memory:"}, {"durability": "disk"}, {"keep_results": False}):
        with temporary_settings(**other):
            assert current_client() is not client
            assert current_client() is current_client()
    with temporary_settings(home=":memory:"):
        assert isinstance(current_client().store, MemoryStore)
    with temporary_settings(durability="disk", keep_results=False):
        assert (current_client().store.durability, current_client().keep_results) == ("disk", False)


def test_a_client_opens_and_makes_nothing(private_home):
    current_client()
    assert list(private_home.iterdir()) == []


def test_the_client_is_a_context_manager_in_both_forms(private_home):
    with get_client(sync_client=True) as client:
        created = client.create_flow_run(second)

    async def read() -> Any:
        async with get_client() as client:
            return await client.read_flow_run(created.id)

    assert asyncio.run(read()) == created


def test_the_coroutines_do_what_the_plain_methods_do():
    @task
    def add(x: int) -> int:
        return x + 1

    @flow
    def adds() -> int:
        return add(1)

    adds()

    async def read() -> None:
        plain, client = get_client(sync_client=True), get_client()
        (run,) = await client.read_flow_runs(flow_names=["adds"])
        assert run == plain.read_flow_run(run.id)
        assert await client.read_flow_run_states(run.id) == plain.read_flow_run_states(run.id)
        (task_run,) = await client.read_task_runs(flow_run_id=run.id)
        assert await client.read_task_run(task_run.id, flow_run_id=run.id) == task_run
        assert len(await client.read_task_run_states(task_run.id)) == 3
        created = await client.create_flow_run(adds, tags=["x"])
        assert (await client.set_flow_run_state(created.id, Cancelling())).state.type == "CANCELLED"
        await client.delete_flow_run(created.id)
        with pytest.raises(MicroflowException):
            await client.read_flow_run(created.id)

    asyncio.run(read())


def test_every_coroutine_of_the_client_has_a_plain_twin():
    for name, _ in inspect.getmembers(Client, inspect.iscoroutinefunction):
        if not name.startswith("_"):
            assert callable(getattr(SyncClient, name)), name
