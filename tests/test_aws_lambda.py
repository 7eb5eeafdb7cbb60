# SPDX-License-Identifier: Apache-2.0
"""A flow as a Lambda handler, run by the real runtime client in environments like Lambda's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from microflow import flow, get_client
from microflow.ext.aws_lambda import lambda_handler
from tests.lambda_support import ROOT, Environment, check_that_namespaces_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow  # each starts processes like Lambda's, and kills some

APP = '''
import os, tempfile, threading, time
from microflow import flow, task
from microflow.ext.aws_lambda import lambda_handler
from microflow.flow_runs import suspend_flow_run

WITNESS = "/tmp/witness"

@task
def step(number, seconds):
    with open(WITNESS, "a") as file:
        file.write(f"{number} {os.getpid()}\\n")
    time.sleep(seconds)
    return number

@flow
def work(n: int = 3, seconds: float = 0.0, fail: bool = False, ask: bool = False, big: int = 0):
    total = sum(step(number, seconds) for number in range(n))
    if fail:
        raise ValueError("no such luck")
    if ask:
        total += suspend_flow_run(wait_for_input=int)
    return "x" * big if big else total

@flow
def items(n: int = 3):
    for number in range(n):
        yield step(number, 0)

@flow
async def items_async(n: int = 3):
    for number in range(n):
        yield step(number, 0)

if os.environ.get("SHUTDOWN_HOOK"):
    import signal
    signal.signal(signal.SIGTERM, lambda *_: open(WITNESS + ".end", "w").close())

sent = []

def send(event):
    if os.environ.get("BROKEN_QUEUE"):
        raise ConnectionError("the queue is gone")
    sent.append(event)

answer = lambda_handler(
    globals()[os.environ.get("FLOW", "work")],
    key=lambda event, context: event.get("id"),
    parameters=lambda event: {name: value for name, value in event.items() if name != "id"},
    margin=0.5,
    continue_with=send if os.environ.get("CONTINUE") else None,
    max_hops=2,
)

def handler(event, context):
    before = threading.enumerate()
    try:
        return {**answer(event, context), "threads": len(threading.enumerate()) - len(before), "sent": len(sent)}
    finally:
        assert not os.path.exists("/dev/shm")
        try:
            open("/var/forbidden", "w")
        except OSError:
            pass
        else:
            raise AssertionError("the root can be written")
'''


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Environment]]:
    """Starts execution environments; all of one test share ``/tmp``, as they would share a network file system."""
    check_that_namespaces_work()
    task, writable = tmp_path / "task", tmp_path / "writable"
    task.mkdir()
    writable.mkdir()
    (task / "app.py").write_text(APP)
    environments: list[Environment] = []

    def begin(**settings: str) -> Environment:
        environments.append(Environment(task, writable, **settings))
        return environments[-1]

    yield begin
    for environment in environments:
        environment.close()


@pytest.fixture
def executions(tmp_path: Path) -> Callable[[], list[int]]:
    """Which steps were executed, in order."""
    witness = tmp_path / "writable" / "witness"
    return lambda: [int(line.split()[0]) for line in witness.read_text().splitlines()] if witness.exists() else []


def ask(action: str, run_id: str, **more: Any) -> dict[str, Any]:
    return {"microflow": {"action": action, "flow_run_id": run_id, **more}}


def test_a_cold_start_runs_the_flow_and_leaves_no_thread(start, executions):
    """Read-only root, no /dev/shm, HOME that does not exist: the run is kept below /tmp."""
    answer = start().invoke({"n": 4})
    assert (answer["status"], answer["result"], answer["threads"]) == ("completed", 6, 0)
    assert executions() == [0, 1, 2, 3]


def test_a_failed_flow_is_an_answer_and_not_delivered_again(start):
    answer = start().invoke({"n": 1, "fail": True})
    assert answer["status"] == "failed"
    assert "no such luck" in answer["error"]


def test_a_duplicate_event_is_answered_with_the_run_of_the_first(start, executions):
    lambdas = start()
    first, second = lambdas.invoke({"id": "order-1", "n": 3}), lambdas.invoke({"id": "order-1", "n": 3})
    assert first == second
    assert first["result"] == 3
    assert start().invoke({"id": "order-1", "n": 3})["flow_run_id"] == first["flow_run_id"]
    assert executions() == [0, 1, 2]


def test_another_payload_under_the_same_key_is_an_error(start, executions):
    lambdas = start()
    lambdas.invoke({"id": "order-1", "n": 3})
    refused = lambdas.send({"id": "order-1", "n": 4})
    assert refused.answered.wait(20)
    assert refused.error["errorType"] == "PayloadMismatch"
    assert executions() == [0, 1, 2]


def test_a_short_invocation_suspends_at_a_boundary_and_another_environment_goes_on(start, executions):
    answer = start().invoke({"n": 40, "seconds": 0.1}, seconds=2)
    assert (answer["status"], answer["threads"]) == ("suspended", 0)
    done = len(executions())
    assert 0 < done < 40
    goes_on = start().invoke(answer["continue"])
    assert (goes_on["status"], goes_on["result"]) == ("completed", sum(range(40)))
    assert executions() == list(range(40)), "no step was executed twice"


def test_the_same_event_goes_on_with_a_run_whose_time_ran_out(start, executions):
    lambdas = start()
    event = {"id": "order-2", "n": 15, "seconds": 0.1}
    answer = lambdas.invoke(event, seconds=1.2)
    assert answer["status"] == "suspended"
    assert lambdas.invoke(event)["result"] == sum(range(15))
    assert executions() == list(range(15))


def test_a_run_that_was_killed_at_its_deadline_goes_on_with_the_next_delivery(start, executions):
    event = {"id": "order-3", "n": 20, "seconds": 0.1}
    first = start()
    first.send(event, seconds=20)
    while len(executions()) < 5:
        time.sleep(0.02)
    first.kill()
    answer = start().invoke(event)
    assert (answer["status"], answer["result"]) == ("completed", sum(range(20)))
    steps = executions()
    assert sorted(set(steps)) == list(range(20))
    assert len(steps) <= 21, "only the step that was interrupted is executed again"


def test_a_step_that_outlasts_the_deadline_is_killed_at_it_and_made_again_by_the_next_delivery(start, executions):
    event = {"id": "order-6", "n": 2, "seconds": 3}
    first = start()
    invocation = first.send(event, seconds=2)
    while not executions():
        time.sleep(0.02)
    assert not invocation.answered.wait(2), "nothing is said by a step that goes on"
    first.kill()
    assert start().invoke(event)["result"] == 1
    assert executions() == [0, 0, 1]


@pytest.mark.parametrize("hook", ["", "yes"])
def test_sigterm_suspends_the_run_and_another_environment_goes_on(start, executions, tmp_path, hook):
    """The program's own handler is called as well, when the run is safe; without one the answer is given."""
    first = start(SHUTDOWN_HOOK=hook, CONTINUE="yes")
    invocation = first.send({"n": 30, "seconds": 0.1})
    while len(executions()) < 4:
        time.sleep(0.02)
    os.kill(first.process.pid, signal.SIGTERM)
    answer = invocation.wait()
    assert (answer["status"], answer["continued"], answer["threads"]) == ("suspended", True, 0)
    assert "environment ends" in answer["state"]
    assert (tmp_path / "writable" / "witness.end").exists() is bool(hook)
    assert start().invoke(answer["continue"])["result"] == sum(range(30))
    assert executions() == list(range(30)), "no step was executed twice"


def test_a_run_that_was_killed_after_sigterm_before_its_next_boundary_goes_on_with_the_next_delivery(start, executions):
    event = {"id": "order-5", "n": 2, "seconds": 0.7}
    first = start()
    first.send(event)
    while not executions():
        time.sleep(0.02)
    os.kill(first.process.pid, signal.SIGTERM)
    time.sleep(0.1)
    first.kill()
    assert start().invoke(event)["result"] == 1
    assert executions() == [0, 0, 1]


def test_sigterm_between_two_invocations_ends_the_process(start):
    lambdas = start()
    lambdas.invoke({"n": 1})
    os.kill(lambdas.process.pid, signal.SIGTERM)
    assert lambdas.process.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize("kind", ["items", "items_async"])
def test_a_generator_flow_is_consumed_and_the_answer_says_so(start, executions, kind):
    lambdas = start(FLOW=kind)
    answer = lambdas.invoke({"id": "order-6", "n": 3})
    assert (answer["status"], answer["result"], answer["threads"]) == ("completed", None, 0)
    assert "return a list" in answer["reason"]
    assert lambdas.invoke({"id": "order-6", "n": 3}) == answer
    assert executions() == [0, 1, 2]


def test_two_environments_race_for_one_run_and_one_runs_it(start, executions):
    event = {"id": "order-4", "n": 10, "seconds": 0.1}
    one, two = start(), start()
    invocations = [one.send(event), two.send(event)]
    answers = [invocation.wait() for invocation in invocations]
    assert sorted(answer["status"] for answer in answers) == ["completed", "running"]
    assert executions() == list(range(10))


def test_a_frozen_environment_that_is_thawed_has_lost_nothing(start, executions):
    """The answer was given, so nothing was under way; what the next invocation starts is not disturbed."""
    lambdas = start()
    answer = lambdas.invoke({"n": 20, "seconds": 0.1}, seconds=1.5)
    os.kill(lambdas.process.pid, signal.SIGSTOP)
    elsewhere = start().invoke(answer["continue"])
    assert elsewhere["status"] == "completed"
    os.kill(lambdas.process.pid, signal.SIGCONT)
    assert lambdas.invoke(answer["continue"])["status"] == "completed"
    assert lambdas.invoke({"n": 2})["result"] == 1
    assert executions() == [*range(20), 0, 1]


def test_status_cancel_and_resume_with_input(start):
    lambdas = start()
    waiting = lambdas.invoke({"n": 2, "ask": True})
    assert waiting["status"] == "suspended"
    assert "continue" not in waiting, "nobody can go on with it without what it asks for"
    run_id = waiting["flow_run_id"]
    assert lambdas.invoke(ask("status", run_id))["status"] == "suspended"
    assert start().invoke(ask("resume", run_id, input={"value": 5}))["result"] == 6
    other = lambdas.invoke({"n": 2, "ask": True})["flow_run_id"]
    assert lambdas.invoke(ask("cancel", other))["status"] == "cancelled"
    assert lambdas.invoke(ask("resume", other))["status"] == "cancelled"


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (ask("explode", "x"), "InvalidEvent"),
        (ask("status", "../../etc/passwd"), "InvalidEvent"),
        (ask("status", "01a1fc5b-cbf2-7e8c-aef9-9c63ee2a9e0a"), "ObjectNotFound"),
        (ask("resume", "01a1fc5b-cbf2-7e8c-aef9-9c63ee2a9e0a", hops=-1), "ObjectNotFound"),
        ({"microflow": 5}, "InvalidEvent"),
        ({"n": "many"}, "ParameterTypeError"),
        ({"unknown": 1}, "ParameterBindError"),
    ],
)
def test_a_bad_event_is_an_error_of_the_invocation_and_records_nothing(event, kind, start, tmp_path):
    refused = start().send(event)
    assert refused.answered.wait(20)
    assert refused.error["errorType"] == kind
    assert not list((tmp_path / "writable").rglob("*.jsonl"))


def test_a_sender_is_given_the_event_that_goes_on_up_to_so_many_hops(start):
    lambdas = start(CONTINUE="1")
    answer = lambdas.invoke({"n": 40, "seconds": 0.1}, seconds=1)
    assert (answer["continued"], answer["sent"]) == (True, 1)
    assert answer["continue"]["microflow"]["hops"] == 1
    answer = lambdas.invoke(answer["continue"], seconds=1)
    assert (answer["continued"], answer["sent"]) == (True, 2)
    answer = lambdas.invoke(answer["continue"], seconds=1)
    assert (answer["continued"], answer["sent"]) == (False, 2)
    assert "max_hops" in answer["reason"]


def test_a_sender_that_raises_leaves_the_run_safe_and_says_so(start):
    lambdas = start(CONTINUE="1", BROKEN_QUEUE="1")
    answer = lambdas.invoke({"n": 15, "seconds": 0.1}, seconds=1)
    assert answer["continued"] is False
    assert "the queue is gone" in answer["reason"]
    assert lambdas.invoke(answer["continue"])["result"] == sum(range(15))


def test_a_result_that_no_answer_can_carry_is_named_and_a_smaller_one_is_carried(start):
    """Lambda refuses answers above 6 MB; the log keeps up to 1 MiB: only the invocation that ends the run has more."""
    lambdas = start()
    answer = lambdas.invoke({"id": "big", "n": 1, "big": 7 * 1024 * 1024})
    assert (answer["status"], answer["result"]) == ("completed", None)
    assert "7,340,034 bytes" in answer["reason"]
    event = {"id": "smaller", "n": 1, "big": 2 * 1024 * 1024}
    assert len(lambdas.invoke(event)["result"]) == 2 * 1024 * 1024
    again = lambdas.invoke(event)
    assert (again["status"], again["result"]) == ("completed", None)
    assert "does not keep" in again["reason"]


CLONES = '''
import os, sys
sys.path.insert(0, sys.argv[1])
import app  # all of init: what is unique must not be drawn here

class Context:
    def get_remaining_time_in_millis(self):
        return 20_000

for _ in range(2):
    if os.fork() == 0:
        line = app.answer({"n": 1}, Context())["flow_run_id"] + "\\n"
        os.write(1, line.encode())  # in one piece: both write at once
        os._exit(0)
for _ in range(2):
    os.wait()
'''


def test_clones_of_an_initialised_process_start_different_runs(tmp_path):
    """As SnapStart makes them: everything unique is drawn after the snapshot."""
    (tmp_path / "app.py").write_text(APP.replace("/tmp/witness", str(tmp_path / "witness")))
    command = [sys.executable, "-c", CLONES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    ids = done.stdout.split()
    assert len(ids) == len(set(ids)) == 2


@flow
def doubled(number: int) -> int:
    return 2 * number


def test_called_by_hand_a_handler_needs_no_context_and_refuses_what_is_none_before_anything_is_recorded():
    handler = lambda_handler(doubled)
    answer = handler({"number": 4}, None)
    assert (answer["status"], answer["result"]) == ("completed", 8)
    with pytest.raises(TypeError, match="the context must be that of AWS Lambda, or None"):
        handler({"number": 4}, {})
    assert len(get_client(sync_client=True).read_flow_runs()) == 1


def test_the_package_of_the_readme_runs_as_it_stands_without_compiling_anything(start, tmp_path):
    """The commands are typed as they stand there. Of the package's sources nothing is left: the bytecode does."""
    section = (ROOT / "README.md").read_text().partition("\n## Run it in AWS Lambda\n")[2].partition("\n## ")[0]
    (handler,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (commands,) = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    (tmp_path / "app.py").write_text(handler)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    for command in commands.splitlines():
        subprocess.run(command.removeprefix("$ "), shell=True, cwd=tmp_path, env=environment, check=True)
    with zipfile.ZipFile(tmp_path / "function.zip") as package:
        package.extractall(tmp_path / "task")
    for source in (tmp_path / "task").rglob("*.py"):
        source.write_text("raise SystemExit('this was compiled anew')")
    answer = start().invoke({"order": "A-1", "items": [1, 2, 3]})
    assert (answer["status"], answer["result"]) == ("completed", 12)
