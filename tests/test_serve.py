# SPDX-License-Identifier: Apache-2.0
"""Serving flows: scheduled, resumed and orphaned runs are claimed by one process at a time and run to their end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import microflow
from microflow import flow, pause_flow_run, resume_flow_run, serve, task
from microflow._sweep import Sweep
from microflow.client.orchestration import SyncClient, current_client
from microflow.client.waiting import until_final
from microflow.exceptions import FlowPauseTimeout, FlowRunWaitTimeout
from microflow.flow_engine import run_flow
from microflow.states import Paused, Pending, Running, Scheduled, Suspended
from microflow.stores import FileStore
from microflow.worker import MOST_TAKEOVERS, Worker
from tests import served_flows as served
from tests import served_tasks
from tests.behaviour_support import pins
from tests.kill_support import cli, environment, wait_until
from tests.serving_support import WorkerProcess
from tests.support import PATIENCE, Colour, both, memory_home

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["file", "memory"])
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SyncClient:
    if request.param == "memory":
        memory_home(monkeypatch)
    return current_client()


@pytest.fixture
def client() -> SyncClient:
    return current_client()


def ended(made: Any, timeout: float = PATIENCE) -> Any:
    """The run once it has ended."""
    from microflow._waits import BlockingWaits, finish

    return finish(until_final(current_client(), getattr(made, "id", made), BlockingWaits(), timeout))


def value(made: Any) -> Any:
    return ended(made).state.result()


def names(made: Any) -> list[str]:
    return [state.name for state in current_client().read_flow_run_states(made.id)]


def in_state(made: Any, name: str) -> bool:
    return bool(wait_until(lambda: names(made)[-1] == name))


@pytest.fixture
def servers():
    made: list[WorkerProcess] = []

    def make(*targets: str, **options: Any) -> WorkerProcess:
        targets = targets or ("greet", "pid", "two_steps", "deadly", "leaves", "counted", "fails")
        words = [each if ":" in each or "/" in each else f"tests.served_flows:{each}" for each in targets]
        made.append(WorkerProcess(*words, tracebacks=True, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def waits_in(folder: Path) -> set[int]:
    """The processes in which ``two_steps`` waits."""
    return {int(path.suffix[1:]) for path in folder.glob("waits.*")}


def executions(folder: Path) -> Counter[str]:
    return Counter(path.name.split(".")[0] for path in folder.iterdir() if path.name.count(".") == 2)


class TestRuns:
    @both
    def test_a_scheduled_run_is_run_and_leaves_the_queue(self, home, colour: Colour):
        @colour.flow
        def double(x: int) -> int:
            return 2 * x

        with Worker(double):
            made = home.create_flow_run(double, parameters={"x": 4})
            assert value(made) == 8
            assert wait_until(lambda: home.store.queue.list() == [])
        assert names(made) == ["Scheduled", "Running", "Completed"]

    @both
    def test_a_generator_flow_is_run_to_its_end(self, home, colour: Colour):
        seen = []
        if colour.isasync:

            @flow
            async def items():
                for number in range(3):
                    seen.append(number)
                    yield number
        else:

            @flow
            def items():
                for number in range(3):
                    seen.append(number)
                    yield number

        with Worker(items):
            assert ended(home.create_flow_run(items)).state.is_completed()
        assert seen == [0, 1, 2]

    def test_a_run_of_a_deployment_is_run_with_what_it_was_given(self, home):
        with Worker(served.greet.to_deployment("daily", parameters={"who": "all"})):
            assert wait_until(lambda: bool(home.read_deployments()))
            assert value(home.create_flow_run_from_deployment("daily")) == "hello all"
            assert value(home.create_flow_run_from_deployment("greet/daily", parameters={"who": "me"})) == "hello me"

    def test_a_run_that_is_scheduled_for_later_is_begun_then_and_not_before(self, home):
        due = datetime.now(timezone.utc) + timedelta(seconds=0.3)
        made = home.create_flow_run(served.greet, state=Scheduled(scheduled_time=due))
        with Worker(served.greet):
            assert ended(made).start_time >= due

    def test_a_pending_run_is_left_to_who_made_it(self, home):
        made = home.create_flow_run(served.greet, state=Pending())
        with Worker(served.greet):
            assert value(home.create_flow_run(served.greet)) == "hello you"
        assert names(made) == ["Pending"]

    def test_tasks_and_flows_are_served_together(self, home):
        with Worker(served_tasks.add, served.greet):
            future = served_tasks.add.delay(1, 2)
            assert value(home.create_flow_run(served.greet)) == "hello you"
            assert future.result(PATIENCE) == 3

    def test_a_flow_that_fails_fails_its_run_and_the_server_goes_on(self, home):
        called = []
        failing = served.fails.with_options(on_failure=[lambda flow, run, state: called.append(state.name)])
        with Worker(failing, served.greet):
            failed = ended(home.create_flow_run(failing, parameters={"words": "no"}))
            assert value(home.create_flow_run(served.greet)) == "hello you"
        assert failed.state.is_failed()
        assert called == ["Failed"]
        with pytest.raises(ValueError, match="no"):
            failed.state.result()

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_in_a_flow_crashes_its_run_and_not_the_server(self, home, interrupt):
        @flow
        def interrupted() -> None:
            raise interrupt

        with Worker(interrupted, served.greet):
            assert ended(home.create_flow_run(interrupted)).state.is_crashed()
            assert value(home.create_flow_run(served.greet)) == "hello you"

    def test_what_a_run_was_given_and_its_flow_does_not_take_fails_the_run(self, home):
        made = home.create_flow_run(served.greet, parameters={"whom": "you"})
        with Worker(served.greet):
            state = ended(made).state
        assert state.is_failed()
        assert "SignatureMismatchError" in state.message
        assert home.store.queue.list() == []

    def test_parameters_that_do_not_fit_fail_the_run(self, home):
        with Worker(served.counted):
            state = ended(home.create_flow_run(served.counted, parameters={"folder": "x", "number": "many"})).state
        assert state.is_failed()
        assert "alidation of flow parameters failed" in state.message

    def test_a_flow_that_is_not_served_is_left_alone(self, home):
        other = home.create_flow_run(served.greet)
        with Worker(served.pid):
            assert value(home.create_flow_run(served.pid)) == os.getpid()
        assert names(other) == ["Scheduled"]
        assert home.store.queue.list() == [str(other.id)]

    def test_a_run_that_names_another_script_of_the_same_flow_name_is_left_alone(self, client, tmp_path):
        text = "from microflow import flow\n@flow(name='greet')\ndef greet(who='you'):\n    return {!r}\n"
        (tmp_path / "one.py").write_text(text.format("one"))
        (tmp_path / "two.py").write_text(text.format("two"))
        client.create_deployment(f"{tmp_path}/one.py:greet", "one")
        client.create_deployment(f"{tmp_path}/two.py:greet", "two")
        ones, twos = (client.create_flow_run_from_deployment(name) for name in ("one", "two"))
        from microflow.flows import load_flow_from_entrypoint

        with Worker(load_flow_from_entrypoint(f"{tmp_path}/one.py:greet")):
            assert value(ones) == "one"
        assert names(twos) == ["Scheduled"]

    def test_a_subflow_is_run_by_its_parent(self, home):
        @flow
        def child() -> int:
            return 1

        @flow
        def parent() -> int:
            return child() + 1

        with Worker(parent, child):
            assert value(home.create_flow_run(parent)) == 2

    def test_the_limit_is_how_many_flows_run_whatever_they_wait_for(self, home):
        active, most, lock = 0, 0, threading.Lock()

        @task
        def nap() -> None:
            time.sleep(0.01)

        @flow
        def watched() -> None:
            nonlocal active, most
            with lock:
                active += 1
                most = max(most, active)
            nap.submit().result()
            with lock:
                active -= 1

        with Worker(watched, limit=2):
            for made in [home.create_flow_run(watched) for _ in range(8)]:
                assert ended(made).state.is_completed()
        assert most == 2

    def test_a_cancelled_run_is_not_run(self, home):
        made = home.create_flow_run(served.greet)
        home.cancel_flow_run(made.id)
        with Worker(served.greet):
            assert value(home.create_flow_run(served.greet)) == "hello you"
        assert names(made)[-1] == "Cancelled"


class TestResumed:
    @pins("flows", 124)
    @pytest.mark.parametrize("leaving", [served.leaves, served.leaves_async], ids=["sync", "async"])
    def test_a_suspended_run_goes_on_in_the_server_when_it_is_resumed(self, home, tmp_path, leaving):
        with Worker(leaving):
            made = home.create_flow_run(leaving, parameters={"folder": str(tmp_path)})
            assert in_state(made, "Suspended")
            assert wait_until(lambda: home.store.queue.list() == [])
            resume_flow_run(made.id)
            assert value(made) == ["first", "second"]
        assert names(made) == ["Scheduled", "Running", "Suspended", "Resuming", "Running", "Completed"]
        assert executions(tmp_path) == {"first": 1, "second": 1}
        assert home.store.queue.list() == []

    def test_a_run_that_was_resumed_before_anybody_served_it_is_run(self, home, tmp_path):
        made = home.create_flow_run(served.leaves, parameters={"folder": str(tmp_path)}, state=Pending())
        with pytest.raises(microflow.exceptions.Pause):
            run_flow(served.leaves, flow_run=made)
        resume_flow_run(made.id)
        with Worker(served.leaves):
            assert value(made) == ["first", "second"]

    def test_a_run_that_pauses_holds_its_slot_and_goes_on_when_it_is_resumed(self, home):
        @flow
        def pausing() -> str:
            pause_flow_run()
            return "on"

        with Worker(pausing, limit=1):
            made, other = home.create_flow_run(pausing), home.create_flow_run(pausing)
            assert wait_until(lambda: "Paused" in (names(made)[-1], names(other)[-1]))
            first, second = (made, other) if names(made)[-1] == "Paused" else (other, made)
            assert names(second) == ["Scheduled"]
            resume_flow_run(first.id)
            assert value(first) == "on"
            assert in_state(second, "Paused")
            resume_flow_run(second.id)
            assert value(second) == "on"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("name", ["pauses", "pauses_async"])
    def test_a_server_that_is_told_to_stop_leaves_a_paused_run_to_whoever_resumes_it(
        self, client, servers, name, number, tmp_path
    ):
        """It is run again then, from its log: what had ended is not repeated."""
        made = client.create_flow_run(getattr(served, name), parameters={"folder": str(tmp_path)})
        first = servers(name)
        assert in_state(made, "Paused")
        assert first.end(number) == 0
        assert names(made) == ["Scheduled", "Running", "Paused"]
        assert client.fold(str(made.id)).owner is None
        servers(name)
        resume_flow_run(made.id)
        assert value(made) == ["first", "second"]
        assert executions(tmp_path) == {"first": 1, "second": 1}


def left(flow: Any, *states: Any, parameters: dict[str, Any] | None = None) -> Any:
    """A run that a process owned which is dead: made by a child process that ends without a word."""
    client = current_client()
    made = client.new_flow_run(flow)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live = client.start(made, flow, parameters or {}, Pending(), own=True)
            for state in states:
                live.propose(state, force=True)
            os.write(write, b"done")
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == b"done"
    os.waitpid(child, 0)
    return made


class TestLeftBehind:
    """What the queue does not name."""

    def test_a_run_whose_process_died_is_taken_over_though_it_never_stood_in_the_queue(self, client):
        made = left(served.greet, Running())
        assert client.read_flow_run(made.id).state.is_crashed()
        with Worker(served.greet):
            assert wait_until(lambda: names(made)[-1] == "Completed")
        assert names(made) == ["Pending", "Running", "Completed"]
        assert len(client.fold(str(made.id)).former_owners) == 1

    def test_a_run_whose_process_died_while_it_was_cancelled_is_cancelled(self, client):
        made = left(served.greet, Running(), microflow.states.Cancelling())
        with Worker(served.greet):
            assert in_state(made, "Cancelled")

    @pins("flows", 127)
    def test_only_pauses_whose_time_has_passed_are_recorded_as_failed(self, client):
        over, still = {"timeout_seconds": -1, "pause_key": "1"}, {"timeout_seconds": 3600, "pause_key": "1"}
        paused, suspended = left(served.pid, Running(), Paused(**over)), left(served.pid, Running(), Suspended(**over))
        waiting = [
            left(served.pid, Running(), Paused(**still)),
            left(served.pid, Running(), Suspended(**still)),
            left(served.pid, Running(), Suspended(timeout_seconds=None, pause_key="1")),
        ]
        with Worker(served.greet):  # of whatever flow
            assert in_state(paused, "Failed")
            assert in_state(suspended, "Failed")
        assert [names(each)[-1] for each in waiting] == ["Paused", "Suspended", "Suspended"]
        assert "never resumed" in client.read_flow_run(paused.id).state.message

    def test_a_pause_whose_process_lives_is_left_to_it(self, home):
        @flow
        def pausing() -> str:
            try:
                pause_flow_run(timeout=0.05)
            except FlowPauseTimeout:
                return "late"
            return "on"

        made = home.create_flow_run(pausing, state=Pending())
        with Worker(served.greet):
            assert run_flow(pausing, flow_run=made) == "late"

    def test_an_expired_pause_is_refused_by_anything_but_a_pause(self, home):
        made = home.create_flow_run(served.greet)
        answer = home.expire_pause(made.id)
        assert not answer.accepted
        assert names(made) == ["Scheduled"]

    def test_an_orphan_of_a_flow_that_is_not_served_stays_as_it_is(self, client):
        made = left(served.greet, Running())
        with Worker(served.pid):
            assert value(client.create_flow_run(served.pid)) == os.getpid()
        assert names(made) == ["Pending", "Running"]

    def test_a_run_whose_entry_was_lost_is_queued_again_after_a_while(self, client, monkeypatch):
        monkeypatch.setattr(microflow._sweep, "GRACE", 0.0)
        made = client.create_flow_run(served.greet)
        client.store.queue.take(str(made.id))
        with Worker(served.greet):
            assert value(made) == "hello you"

    def test_a_log_of_a_run_that_has_ended_is_read_once(self, private_home):
        read: list[str] = []

        class Counting(SyncClient):
            def glance(self, run_id: str) -> Any:
                read.append(run_id)
                return super().glance(run_id)

        runs = [served.pid(return_state=True).state_details.flow_run_id for _ in range(3)]
        sweep = Sweep(Counting(FileStore(private_home)), lambda run: True)
        for _ in range(3):
            sweep._next = 0.0
            while sweep.step():
                pass
        assert sorted(read) == sorted(map(str, runs))

    def test_a_damaged_log_stops_nobody(self, client, private_home):
        broken = left(served.greet, Running())
        path = private_home / "runs" / f"{broken.id}.jsonl"
        path.write_bytes(b"nonsense\n" + path.read_bytes())
        made = left(served.greet, Running())
        with Worker(served.greet):
            assert in_state(made, "Completed")


class TestKilled:
    """Servers in processes of their own, and real signals."""

    def test_a_run_whose_server_was_killed_goes_on_in_another_one(self, client, servers, tmp_path):
        made = client.create_flow_run(served.two_steps, parameters={"folder": str(tmp_path)})
        first, second = servers(), servers()
        assert wait_until(lambda: bool(waits_in(tmp_path)))
        (owner,) = waits_in(tmp_path)
        next(each for each in (first, second) if each.pid == owner).process.kill()
        (tmp_path / "go").touch()
        assert value(made) == ["first", "second"]
        assert executions(tmp_path) == {"first": 1, "second": 1}
        assert wait_until(lambda: client.store.queue.list() == [])

    def test_sigterm_finishes_what_runs_and_leaves_the_rest(self, client, servers, tmp_path):
        server = servers(limit=1)
        runs = client.create_flow_run(served.two_steps, parameters={"folder": str(tmp_path)})
        assert wait_until(lambda: bool(waits_in(tmp_path)))
        rest = client.create_flow_run(served.greet)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        assert server.process.poll() is None
        (tmp_path / "go").touch()
        assert server.end() == 0
        assert names(runs)[-1] == "Completed"
        assert names(rest) == ["Scheduled"]
        assert client.store.queue.list() == [str(rest.id)]

    @pytest.mark.parametrize("failing", ["fails_once", "fails_once_async"])
    def test_a_server_that_stops_leaves_a_wait_for_a_retry_to_others(self, client, servers, tmp_path, failing):
        made = client.create_flow_run(getattr(served, failing), parameters={"folder": str(tmp_path)})
        server = servers(failing)
        assert in_state(made, "AwaitingRetry")
        assert server.end() == 0
        assert client.read_flow_run(made.id).state_name == "AwaitingRetry"
        logged = client.fold(str(made.id))
        assert (logged.owner, logged.former_owners) == (None, set())
        assert client.store.queue.list() == [str(made.id)]
        servers(failing)
        assert value(made) == "in the end"
        assert names(made) == ["Scheduled", "Running", "AwaitingRetry", "Running", "Completed"]

    def test_a_run_that_kills_its_process_is_given_up_after_three_takeovers(self, client, servers, tmp_path):
        made = client.create_flow_run(served.deadly, parameters={"folder": str(tmp_path)})
        for _ in range(1 + MOST_TAKEOVERS):
            assert servers("deadly").process.wait(PATIENCE) == -signal.SIGKILL
            assert client.read_flow_run(made.id).state.is_crashed()
            assert names(made)[-1] == "Running"
        servers("deadly")
        state = ended(made).state
        assert names(made)[-1] == "Crashed"
        assert state.message == "4 processes ended while they ran it; it is not run again."
        assert wait_until(lambda: client.store.queue.list() == [])
        # the step had ended before the process did; the hook of the crash is called once
        assert executions(tmp_path) == {"begun": 1, "given-up": 1}

    def test_who_waits_for_a_queued_run_waits_through_the_death_of_its_server(self, client, servers, tmp_path):
        made = client.create_flow_run(served.two_steps, parameters={"folder": str(tmp_path)})
        first = servers()
        assert wait_until(lambda: bool(waits_in(tmp_path)))
        first.process.kill()
        first.process.wait()
        with pytest.raises(FlowRunWaitTimeout):
            ended(made, timeout=0)
        (tmp_path / "go").touch()
        servers()
        assert value(made) == ["first", "second"]

    @pytest.mark.slow
    def test_every_run_comes_to_its_end_whatever_happens_to_the_servers(self, client, servers, tmp_path, trials):
        """Each step is executed once, and once more only where its process died before its end was logged."""
        count, kills = trials(40), 0
        made = [
            client.create_flow_run(served.counted, parameters={"folder": str(tmp_path), "number": number})
            for number in range(count)
        ]
        alive = [servers("counted", limit=2) for _ in range(3)]
        while client.store.queue.list():
            time.sleep(0.5)
            victim = alive.pop(0)
            victim.process.kill()
            victim.process.wait()
            kills += 1
            alive.append(servers("counted", limit=2))
        takeovers = 0
        for number, each in enumerate(made):
            logged = client.fold(str(each.id))
            takeovers += len(logged.former_owners)
            if len(logged.former_owners) <= MOST_TAKEOVERS:
                assert value(each) == number
            else:
                assert client.read_flow_run(each.id).state.is_crashed()
        done = executions(tmp_path)
        assert {f"{number}-{step}" for number in range(count) for step in range(5)} >= set(done)
        assert sum(done.values()) <= 5 * count + 2 * kills
        assert takeovers > 0


class TestServe:
    @both
    def test_in_blocking_code_it_is_a_call_and_in_async_code_a_coroutine(self, home, colour: Colour):
        made = home.create_flow_run(served.greet)
        if colour.isasync:

            async def main() -> None:
                await served.greet.serve("daily", timeout=0.1)

            asyncio.run(main())
        else:
            assert served.greet.serve("daily", timeout=0.1) is None
        assert names(made)[-1] == "Completed"
        assert [each.full_name for each in home.read_deployments()] == ["greet/daily"]

    def test_a_deployment_is_called_as_the_flow_or_as_the_file_unless_it_is_named(self):
        assert served.greet.to_deployment().name == "greet"
        assert served.greet.to_deployment(__file__).name == "test_serve"

    def test_several_flows_are_served_by_one_call(self, home):
        runs = [home.create_flow_run(served.greet), home.create_flow_run(served.pid)]
        serve(served.greet.to_deployment("a"), served.pid, timeout=0.1)
        assert [names(each)[-1] for each in runs] == ["Completed", "Completed"]
        assert [each.full_name for each in home.read_deployments()] == ["greet/a"]

    def test_two_flows_of_one_name_are_refused(self, home):
        @flow(name="greet")
        def other() -> None: ...

        with pytest.raises(ValueError, match="two flows are called 'greet'"):
            serve(served.greet, other)

    def test_what_is_neither_task_nor_flow_is_refused(self, home):
        with pytest.raises(TypeError, match="only tasks and flows can be served, not <built-in function len>"):
            serve(served.greet, len)  # type: ignore[arg-type]

    def test_a_worker_says_which_flows_it_serves(self, home):
        assert Worker(served.greet, served_tasks.add).status()["flows"] == ["greet"]


class TestCommand:
    def test_a_deployment_is_served_by_its_name_in_a_home_of_ours(self, client, servers):
        client.create_deployment(served.greet, "daily")
        made = client.create_flow_run_from_deployment("daily")
        server = servers("greet/daily")
        assert value(made) == "hello you"
        assert server.end() == 0

    def test_the_code_that_a_home_names_which_others_can_write_to_is_not_imported(self, client, private_home):
        client.create_deployment(served.greet, "daily")
        private_home.chmod(0o777)
        done = cli("serve", "greet/daily", cwd=ROOT, MICROFLOW_HOME=str(private_home))
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert re.search("others can write to|no folder of ours|others may write", done.stderr)

    @pytest.mark.parametrize(
        ("target", "said"),
        [
            ("os:getcwd", "os:getcwd: only tasks and flows can be served"),
            ("greet/never", "there is no deployment 'greet/never'"),
            ("tests.served_flows:nothing", "there is no 'nothing'"),
        ],
    )
    def test_what_cannot_be_served_is_wrong_use(self, target, said, private_home):
        done = cli("serve", target, cwd=ROOT, MICROFLOW_HOME=str(private_home))
        assert done.returncode == 2
        assert said in done.stderr

    def test_what_is_to_be_deployed_can_be_named(self, client, servers):
        server = servers("deployed")
        assert wait_until(lambda: bool(client.read_deployments()))
        assert value(client.create_flow_run_from_deployment("from-a-module")) == "hello all"
        assert server.end() == 0


ONE_RUN = """
import asyncio

from microflow._sweep import Sweep
from microflow.client.orchestration import get_client
from microflow.flow_runs import wait_for_flow_run

async def main():
    async with get_client() as client:
        flow_run = await client.create_flow_run_from_deployment(deployment_id="my-deployment-id")
        flow_run = await wait_for_flow_run(flow_run_id=flow_run.id)
        print(flow_run.state)

if __name__ == "__main__":
    asyncio.run(main())
"""

TEN_RUNS = """
import asyncio

from microflow._sweep import Sweep
from microflow.client.orchestration import get_client
from microflow.flow_runs import wait_for_flow_run

async def main(num_runs: int):
    async with get_client() as client:
        flow_runs = [
            await client.create_flow_run_from_deployment(deployment_id="my-deployment-id")
            for _
            in range(num_runs)
        ]
        coros = [wait_for_flow_run(flow_run_id=flow_run.id) for flow_run in flow_runs]
        finished_flow_runs = await asyncio.gather(*coros)
        print([flow_run.state for flow_run in finished_flow_runs])

if __name__ == "__main__":
    asyncio.run(main(num_runs=10))
"""

SERVED = """
from microflow import flow

@flow
def my_flow():
    return 1

if __name__ == "__main__":
    my_flow.serve(name="my-deployment-id")
"""


class TestThePage:
    """The two examples of the reference's page about flow runs, as they are written, and a script that serves them."""

    @pytest.mark.parametrize(("example", "count"), [(ONE_RUN, 1), (TEN_RUNS, 10)])
    def test_an_example_runs_as_written(self, client, tmp_path, example, count):
        (tmp_path / "served.py").write_text(textwrap.dedent(SERVED))
        (tmp_path / "example.py").write_text(example)
        server = subprocess.Popen([sys.executable, "served.py"], cwd=tmp_path, env=environment())
        try:
            assert wait_until(lambda: bool(client.read_deployments()))
            done = subprocess.run(
                [sys.executable, "example.py"],
                cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE * 2,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.count("Completed") == count
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) == 0
        finally:
            server.kill()
            server.wait()
        assert len(client.read_flow_runs(state_types=["COMPLETED"])) == count
        assert client.store.queue.list() == []
