# SPDX-License-Identifier: Apache-2.0
"""What a deferred task may do while a worker runs it: submit and map, as a task in a flow may."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from microflow import flow, task
from microflow.client.orchestration import current_client
from microflow.context import TaskRunContext
from microflow.futures import as_completed
from microflow.worker import TaskWorker
from tests.support import PATIENCE, Colour, both, memory_home

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def home(monkeypatch):
    memory_home(monkeypatch)


@task
def add(x, y=1):
    return x + y


@task
async def add_async(x, y=1):
    return x + y


@task
def parent_ids():
    context = TaskRunContext.get()
    assert context is not None
    return str(context.task_run.task_inputs["__parents__"][0].id), threading.current_thread().name


@both
@pytest.mark.parametrize("child", [add, add_async], ids=["blocking child", "coroutine child"])
@pytest.mark.parametrize("limit", [1, None])
def test_submit_and_map_work_in_a_deferred_task(colour: Colour, child, limit):
    @colour.task
    def work(number):
        first = child.submit(number)
        rest = child.map([1, 2, 3], first)
        return [future.result() for future in [first, *rest]], child.submit(1, return_state=True).name

    with TaskWorker(work, limit=limit):
        future = work.delay(1)
        assert future.result(PATIENCE) == ([2, 3, 4, 5], "Completed")


@both
def test_what_it_submits_has_it_as_parent_and_is_known_in_the_worker(colour: Colour):
    @colour.task
    def work():
        future = parent_ids.submit()
        return (*future.result(), str(future.task_run_id))

    with TaskWorker(work):
        future = work.delay()
        parent, thread, child = future.result(PATIENCE)
    assert parent == str(future.task_run_id)
    assert thread.startswith("microflow-nested")
    assert [state.name for state in current_client().read_task_run_states(child)] == ["Pending", "Running", "Completed"]


@both
def test_what_it_does_not_wait_for_ends_before_the_worker_lets_it_go(colour: Colour):
    go, ended = threading.Event(), threading.Event()

    @task
    def late():
        assert go.wait(PATIENCE)
        ended.set()

    @colour.task
    def work():
        late.submit()

    with TaskWorker(work) as worker:
        work.delay().wait(PATIENCE)
        assert worker.status()["finished"] == {work.task_key: 0}
        go.set()
        assert ended.wait(PATIENCE)
    assert worker.status()["finished"] == {work.task_key: 1}


@both
def test_an_error_of_what_it_submits_is_raised_where_it_waits(colour: Colour):
    @task
    def fail():
        raise ValueError("the child's")

    @colour.task
    def work():
        fail.submit().result()

    with TaskWorker(work):
        with pytest.raises(ValueError, match="the child's"):
            work.delay().result(PATIENCE)


@both
def test_a_flow_in_it_has_its_own_runner_and_children_submit_too(colour: Colour):
    @flow
    def inner():
        return add.submit(1).result()

    @task
    def child():
        return [future.result() for future in as_completed(add.map([1]))]

    @colour.task
    def work():
        return inner(), child.submit().result()

    with TaskWorker(work):
        assert work.delay().result(PATIENCE) == (2, [2])


def test_after_it_nothing_can_be_submitted_outside_of_flows():
    @task
    def work():
        return add.submit(1).result()

    with TaskWorker(work):
        assert work.delay().result(PATIENCE) == 2
    with pytest.raises(RuntimeError, match="while a flow or a deferred task runs"):
        add.submit(1)


# ------------------------------------------------------------------------ arguments whose classes stand in a script

SCRIPT = """
import sys
from dataclasses import dataclass
from tests.served_tasks import parts_of

class Plain:
    def __init__(self, value):
        self.value = value

@dataclass
class Data:
    value: int

def double(number):
    return 2 * number

if __name__ == "__main__":
    futures = [parts_of.delay(each) for each in (Plain(5), Data(6), [Plain(7)], Plain(double))]
    for future in futures:
        value, back = future.result(timeout=20)
        given = back[0] if isinstance(back, list) else back
        print(value if isinstance(value, int) else value(4), type(given).__module__)
"""


def worker_process(home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MICROFLOW_HOME": str(home)}
    command = [sys.executable, "-m", "microflow", "serve", "tests.served_tasks:parts_of"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def script(folder: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MICROFLOW_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_worker_makes_objects_of_classes_of_the_script_that_deferred_the_run(tmp_path):
    """The script stands where the worker would not import it from, and gets its own objects back."""
    home = tmp_path / "home"
    (tmp_path / "program.py").write_text(SCRIPT)
    worker = worker_process(home)
    try:
        said = script(tmp_path, home, "program.py")
    finally:
        worker.terminate()
        worker.wait(PATIENCE)
    assert said.stdout.split("\n") == ["5 __main__", "6 __main__", "7 __main__", "8 __main__", ""], said.stderr


def test_an_object_of_a_program_that_is_no_file_is_refused_by_name(tmp_path):
    program = SCRIPT.partition("if __name__")[0] + "parts_of.delay(Plain(1))"
    said = script(tmp_path, tmp_path / "home", "-c", program)
    assert "SerializationError: argument 'thing' of a deferred run of task 'parts_of'" in said.stderr
    assert "defined in a program that is no file. Define it in a module" in said.stderr
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()], "nothing was recorded"


def test_a_script_that_defers_while_a_worker_imports_it_is_told_where_that_belongs(tmp_path):
    home = tmp_path / "home"
    unguarded = SCRIPT.partition("if __name__")[0] + "print(parts_of.delay(Plain(5)).result(20))"
    (tmp_path / "program.py").write_text(unguarded)
    worker = worker_process(home)
    try:
        said = script(tmp_path, home, "program.py")
    finally:
        worker.terminate()
        worker.wait(PATIENCE)
    assert 'Put what starts it below `if __name__ == "__main__":`' in said.stderr
