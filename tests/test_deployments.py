# SPDX-License-Identifier: Apache-2.0
"""Deployments: what runs of a flow are made from, without its code; keys that name a run; the queue of flow runs."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import stat
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from microflow import flow, get_client, resume_flow_run, suspend_flow_run
from microflow.client.objects import id_of_key
from microflow.client.orchestration import SyncClient, current_client
from microflow.exceptions import (
    AmbiguousRunId,
    InvalidNameError,
    MissingFlowError,
    ObjectNotFound,
    ParameterBindError,
    Pause,
    ScriptError,
    SerializationError,
    SignatureMismatchError,
    StorageError,
)
from microflow.flow_engine import run_flow
from microflow.states import Pending, Scheduled
from microflow.stores import FileStore, MemoryStore, Store
from tests.behaviour_support import pins
from tests.support import memory_home

if TYPE_CHECKING:
    from pathlib import Path


@flow(retries=2, retry_delay_seconds=3, version="7")
def greet(who: str, times: int = 1, *, loud: bool = False) -> str:
    """Says hello."""
    return " ".join([f"hello {who}".upper() if loud else f"hello {who}"] * times)


@flow
def anything(first: Any = None, **rest: Any) -> Any:
    return first, rest


@flow
def leaves() -> str:
    suspend_flow_run(timeout=None)
    return "back"


#: what older runs were called under this key must be found by newer versions
RECORDED_ID = "faf6d76e-61ba-82f1-b85b-d335118e88b0"


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, private_home: Path) -> Store:
    return FileStore(private_home) if request.param == "file" else MemoryStore()


@pytest.fixture
def client(store: Store) -> SyncClient:
    return SyncClient(store)


@pytest.fixture(params=["file", "memory"])
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SyncClient:
    if request.param == "memory":
        memory_home(monkeypatch)
    return current_client()


class TestADeployment:
    def test_says_what_is_needed_to_make_runs_of_its_flow(self, client):
        made = client.create_deployment(greet, "daily", {"who": "you"}, tags=["a"], description="Each day.")
        deployment = client.read_deployment(made)
        assert (deployment.id, deployment.name, deployment.flow_name) == (made, "daily", "greet")
        assert deployment.entrypoint == f"{__name__}:greet"
        assert (deployment.parameters, deployment.tags) == ({"who": "you"}, {"a"})
        assert (deployment.description, deployment.version) == ("Each day.", "7")
        assert (
            deployment.parameter_schema["properties"]["times"] | {"position": 1, "default": 1}
            == (deployment.parameter_schema["properties"]["times"])
        )
        assert deployment.created <= datetime.now(timezone.utc)

    def test_is_found_by_id_by_both_names_and_by_its_own_name(self, client):
        made = client.create_deployment(greet, "daily", {"who": "you"})
        deployment = client.read_deployment(made)
        for name in (str(made), "greet/daily", "daily"):
            assert client.read_deployment(name) == deployment

    def test_a_name_that_several_have_is_refused(self, client):
        client.create_deployment(greet, "daily", {"who": "you"})
        client.create_deployment(anything, "daily")
        with pytest.raises(AmbiguousRunId, match="anything/daily, greet/daily"):
            client.read_deployment("daily")
        assert client.read_deployment("anything/daily").flow_name == "anything"

    @pytest.mark.parametrize("name", ["nightly", "greet/nightly", str(uuid4())])
    def test_an_unknown_one_is_refused_and_the_known_ones_are_named(self, client, name):
        client.create_deployment(greet, "daily", {"who": "you"})
        with pytest.raises(ObjectNotFound, match="greet/daily"):
            client.read_deployment(name)

    def test_deploying_again_replaces_it_under_the_same_id(self, client):
        first = client.create_deployment(greet, "daily", {"who": "you"})
        run = client.create_flow_run_from_deployment(first)
        assert client.create_deployment(greet, "daily", {"who": "me"}) == first
        assert [each.parameters for each in client.read_deployments()] == [{"who": "me"}]
        assert client.read_flow_run(run.id).parameters == {"who": "you"}

    def test_can_be_deleted_and_its_runs_stay(self, client):
        made = client.create_deployment(greet, "daily", {"who": "you"})
        run = client.create_flow_run_from_deployment(made)
        client.delete_deployment("greet/daily")
        assert client.read_deployments() == []
        assert client.read_flow_run(run.id).deployment_id == made
        with pytest.raises(ObjectNotFound):
            client.delete_deployment(made)

    @pytest.mark.parametrize("name", ["", "a/b", "50%", "a&b", "a>b", None, 3])
    def test_a_name_that_could_not_be_said_is_refused(self, client, name):
        with pytest.raises(InvalidNameError, match="must be a text without any of"):
            client.create_deployment(greet, name)
        assert client.read_deployments() == []

    def test_a_parameter_that_the_flow_does_not_have_is_refused(self, client):
        with pytest.raises(ParameterBindError, match="no parameter 'whom'; its parameters are: who, times, loud"):
            client.create_deployment(greet, "daily", {"whom": "you"})
        assert client.read_deployments() == []

    def test_a_parameter_that_is_no_json_is_refused(self, client):
        with pytest.raises(SerializationError, match="deployment 'daily' of flow 'greet' must be JSON of"):
            client.create_deployment(greet, "daily", {"who": object()})
        assert client.read_deployments() == []

    def test_parameters_that_are_too_long_are_refused(self, client):
        with pytest.raises(SerializationError, match="more than the 1,048,576 that it may have"):
            client.create_deployment(greet, "daily", {"who": "x" * 2_000_000})
        assert client.read_deployments() == []

    def test_parameters_keep_the_types_that_json_lacks(self, client):
        given = {"first": (1, datetime(2026, 1, 1, tzinfo=timezone.utc)), "more": {2, 3}}
        client.create_deployment(anything, "typed", given)
        run = client.create_flow_run_from_deployment("typed")
        assert client.fold(str(run.id)).parameters() == {"first": given["first"], "rest": {"more": {2, 3}}}


class TestAnEntrypoint:
    def test_of_a_script_is_deployed_by_its_absolute_path(self, client, tmp_path, monkeypatch):
        (tmp_path / "script_of_a_deployment.py").write_text(
            "from microflow import flow\n@flow(name='from script')\ndef main(n: int):\n    return n\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        made = client.create_deployment("script_of_a_deployment.py:main", "daily", {"n": 1})
        deployment = client.read_deployment(made)
        assert deployment.full_name == "from script/daily"
        assert deployment.entrypoint == f"{tmp_path / 'script_of_a_deployment.py'}:main"

    def test_that_names_no_flow_is_refused(self, client, tmp_path):
        with pytest.raises(MissingFlowError, match="not a flow"):
            client.create_deployment("os.path:join", "daily")
        (tmp_path / "broken_script.py").write_text("1 / 0\n")
        with pytest.raises(ScriptError, match="ZeroDivisionError"):
            client.create_deployment(f"{tmp_path}/broken_script.py:main", "daily")
        assert client.read_deployments() == []


class TestARunOfADeployment:
    def test_is_scheduled_has_what_the_deployment_says_and_stands_in_the_queue(self, client):
        made = client.create_deployment(greet, "daily", {"who": "you", "times": 2}, tags=["a"])
        run = client.create_flow_run_from_deployment(made, parameters={"times": 3}, tags=["b"], name="mine")
        read = client.read_flow_run(run.id)
        assert read == run
        assert (read.name, read.flow_name, read.flow_version, read.tags) == ("mine", "greet", "7", {"a", "b"})
        assert (read.parameters, read.deployment_id) == ({"who": "you", "times": 3}, made)
        assert read.entrypoint == f"{__name__}:greet"
        assert read.empirical_policy == {"retries": 2, "retry_delay": 3.0}
        assert read.state_type == "SCHEDULED"
        assert client.store.queue.list() == [str(run.id)]

    def test_may_be_scheduled_for_later(self, client):
        client.create_deployment(greet, "daily", {"who": "you"})
        due = datetime.now(timezone.utc) + timedelta(days=1)
        run = client.create_flow_run_from_deployment("daily", state=Scheduled(scheduled_time=due))
        assert run.next_scheduled_start_time == due

    def test_what_the_flow_does_not_take_is_refused_before_there_is_a_run(self, client):
        client.create_deployment(greet, "daily")
        with pytest.raises(ParameterBindError, match="'greet/daily': the flow has no parameter 'whom'"):
            client.create_flow_run_from_deployment("daily", parameters={"whom": "you"})
        with pytest.raises(ParameterBindError, match="'greet/daily': nothing was given for 'who'"):
            client.create_flow_run_from_deployment("daily")
        assert client.store.list() == client.store.queue.list() == []

    @pins("flows", 140)
    def test_runs_with_its_parameters_and_the_defaults_of_the_flow(self, home):
        home.create_deployment(greet, "daily", {"who": "you"})
        run = home.create_flow_run_from_deployment("daily", parameters={"times": 2}, state=Pending())
        assert run_flow(greet, flow_run=run) == "hello you hello you"
        other = home.create_flow_run_from_deployment("daily", state=Pending())
        assert run_flow(greet, flow_run=other, parameters={"who": "me", "times": 1, "loud": True}) == "HELLO ME"

    def test_extra_keywords_go_where_the_flow_takes_them(self, home):
        home.create_deployment(anything, "daily", {"a": 1})
        run = home.create_flow_run_from_deployment("daily", parameters={"b": 2, "first": 0}, state=Pending())
        assert run_flow(anything, flow_run=run) == (0, {"a": 1, "b": 2})

    def test_a_flow_that_has_changed_since_is_refused_where_it_runs(self, home):
        home.create_deployment(greet, "daily", {"who": "you"})
        run = home.create_flow_run_from_deployment("daily", state=Pending())

        @flow(name="greet")
        def changed(whom: str = "all") -> str:
            return whom

        with pytest.raises(SignatureMismatchError):
            run_flow(changed, flow_run=run)
        assert home.read_flow_run(run.id).state_type == "PENDING"

    def test_the_coroutine_client_has_the_same_methods(self, home):
        async def main() -> Any:
            async with get_client() as client:
                made = await client.create_deployment(greet, "daily", {"who": "you"})
                run = await client.create_flow_run_from_deployment(deployment_id=made)
                listed = await client.read_deployments()
                read = await client.read_deployment("daily")
                await client.delete_deployment(made)
                return run, listed, read

        run, listed, read = asyncio.run(main())
        assert listed == [read]
        assert home.read_flow_run(run.id).deployment_id == read.id
        assert home.read_deployments() == []


class TestTheFile:
    """Deployments in a folder: private, whole or not there, and looked at before they are believed."""

    @pytest.fixture
    def client(self, private_home: Path) -> SyncClient:
        return SyncClient(FileStore(private_home))

    def test_is_private_and_its_name_is_no_name_from_outside(self, client, private_home):
        made = client.create_deployment(greet, "..", {"who": "you"})
        (path,) = (private_home / "deployments").iterdir()
        assert path.name == f"{made}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        "change",
        [
            lambda fields: b"",
            lambda fields: b"[]",
            lambda fields: b"{" + b"[" * 100_000,
            lambda fields: json.dumps({**fields, "id": str(uuid4())}).encode(),
            lambda fields: json.dumps({**fields, "format": "microflow deployment 2"}).encode(),
            lambda fields: json.dumps({**fields, "takes": [1]}).encode(),
            lambda fields: json.dumps({**fields, "parameters": {"who": {"$": "nonsense", "v": 1}}}).encode(),
        ],
    )
    def test_what_is_wrong_with_it_is_said_and_hides_no_other(self, client, private_home, change):
        client.create_deployment(anything, "good")
        made = client.create_deployment(greet, "daily", {"who": "you"})
        path = private_home / "deployments" / f"{made}.json"
        path.write_bytes(change(json.loads(path.read_bytes())))
        with pytest.raises(StorageError, match=f"deployment {made} cannot be read"):
            client.read_deployment("greet/daily")
        assert [each.name for each in client.read_deployments()] == ["good"]
        client.create_deployment(greet, "daily", {"who": "you"})
        assert client.read_deployment("greet/daily").parameters == {"who": "you"}

    def test_a_link_in_its_place_is_not_followed(self, client, private_home, tmp_path):
        made = client.create_deployment(greet, "daily", {"who": "you"})
        path = private_home / "deployments" / f"{made}.json"
        os.rename(path, tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StorageError):
            client.read_deployment(made)


def create_under_key(number: int) -> str:
    return str(current_client().create_flow_run(greet, parameters={"who": str(number)}, idempotency_key="once").id)


class TestAKey:
    def test_names_one_run_of_its_flow_whoever_asks_and_whatever_for(self, client):
        first = client.create_flow_run(greet, parameters={"who": "you"}, idempotency_key="once")
        second = client.create_flow_run(greet, parameters={"who": "me"}, idempotency_key="once")
        assert second == first
        assert second.parameters == {"who": "you"}
        assert client.store.list() == client.store.queue.list() == [str(first.id)]

    def test_of_another_flow_is_another(self, client):
        first = client.create_flow_run(greet, idempotency_key="once")
        assert client.create_flow_run(anything, idempotency_key="once").id != first.id

    def test_is_the_same_for_runs_of_deployments(self, client):
        client.create_deployment(greet, "daily", {"who": "you"})
        first = client.create_flow_run_from_deployment("daily", idempotency_key="once")
        assert client.create_flow_run_from_deployment("daily", idempotency_key="once") == first
        assert client.create_flow_run(greet, idempotency_key="once") == first

    def test_of_a_run_that_has_ended_gives_that_run_and_queues_nothing(self, home):
        run = home.create_flow_run(anything, idempotency_key="once")
        run_flow(anything, flow_run=run)
        again = home.create_flow_run(anything, idempotency_key="once")
        assert (again.id, again.state_type) == (run.id, "COMPLETED")
        assert home.store.queue.list() == []

    def test_is_text(self, client):
        with pytest.raises(TypeError, match="a key must be a text"):
            client.create_flow_run(greet, idempotency_key=7)
        assert client.store.list() == []

    def test_gives_an_id_that_is_the_same_in_every_process_and_says_what_it_is(self):
        run_id = id_of_key("greet", "once")
        assert (run_id.version, run_id.variant) == (8, uuid4().variant)
        assert run_id == UUID(RECORDED_ID)

    @pytest.mark.slow
    def test_of_processes_that_ask_at_once_gives_one_run(self, private_home):
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            ids = set(pool.map(create_under_key, range(20)))
        assert current_client().store.list() == list(ids)
        assert len(ids) == 1


class TestTheQueue:
    """A scheduled run stands in the queue while any process may claim it."""

    def test_holds_scheduled_runs_and_no_pending_ones(self, client):
        run = client.create_flow_run(greet)
        client.create_flow_run(greet, state=Pending())
        assert client.store.queue.list() == [str(run.id)]

    def test_a_run_that_has_ended_leaves_it_whoever_ran_it(self, home):
        run_flow(anything, flow_run=home.create_flow_run(anything))
        assert home.store.queue.list() == []

    def test_a_run_that_is_cancelled_leaves_it(self, home):
        assert home.cancel_flow_run(home.create_flow_run(greet).id).is_cancelled()
        assert home.store.queue.list() == []

    def test_a_suspended_run_leaves_it_and_comes_back_when_it_is_resumed(self, home):
        run = home.create_flow_run(leaves)
        with pytest.raises(Pause):
            run_flow(leaves, flow_run=run)
        assert home.store.queue.list() == []
        resume_flow_run(run.id)
        assert home.store.queue.list() == [str(run.id)]
        assert run_flow(leaves, flow_run=run) == "back"
        assert home.store.queue.list() == []

    def test_who_resumes_a_run_to_run_it_does_not_put_it_there(self, home):
        run = home.create_flow_run(leaves, state=Pending())
        with pytest.raises(Pause):
            run_flow(leaves, flow_run=run)
        home.resume_flow_run(run.id, queue=False)
        assert home.store.queue.list() == []
