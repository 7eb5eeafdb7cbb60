# SPDX-License-Identifier: Apache-2.0
"""Tasks that run in other processes: they stand at the top level of a module, so that a worker finds them."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microflow import flow, get_run_logger, task
from microflow._waits import SLOT
from microflow.assets import add_asset_metadata, materialize
from microflow.context import FlowRunContext, TaskRunContext, current_tags
from microflow.flow_runs import pause_flow_run
from microflow.settings import current_settings
from microflow.states import Completed, Failed
from microflow.tasks import Task
from microflow.transactions import get_transaction

SET_BY_INITIALIZER: list[object] = []
VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")


@dataclass
class Point:
    x: int
    y: int


class Plain:
    """What JSON cannot carry and pickle can."""

    def __init__(self, value: object) -> None:
        self.value = value


class BadInit(Exception):
    """Its ``__init__`` does not match its ``args``: pickle cannot rebuild it."""

    def __init__(self, what: str, *, code: int) -> None:
        super().__init__(f"{what} ({code})")
        self.code = code


class HoldsALock(Exception):
    """An exception that cannot be pickled at all."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


@task
def add(x, y=1):
    return x + y


@task
async def add_async(x, y=1):
    return x + y


@task
def pid(_=None):
    return os.getpid()


@task
def length(things):
    return len(things)


@task
def shift(point, plain):
    return Point(point.x + 1, point.y + 1), Plain(plain.value)


@task
def spread(*args, **kwargs):
    return args, kwargs


@task
def fail(text="no"):
    raise ValueError(text)


@task
async def fail_async(text="no"):
    raise RuntimeError(text)


@task
def raise_bad_init():
    raise BadInit("bad", code=7)


@task
def raise_holding_a_lock():
    raise HoldsALock("held")


@task
def return_a_lambda():
    return lambda: None


@task
def exit_by_sys():
    sys.exit(3)


@task
def exit_by_os():
    os._exit(3)


@task
def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@task
def raise_cancelled():
    raise CancelledError


@task
def seen_here():
    """What is current in the task."""
    flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
    assert task_context is not None
    return {
        "tags": sorted(current_tags()),
        "run_tags": sorted(task_context.task_run.tags),
        "task": task_context.task.name,
        "task_run": task_context.task_run.id,
        "state": task_context.task_run.state_name,
        "run_count": task_context.task_run.run_count,
        "flow": flow_context and flow_context.flow.name,
        "flow_run": flow_context and flow_context.flow_run.id,
        "flow_run_name": flow_context and flow_context.flow_run.name,
        "parameters": flow_context and flow_context.parameters,
        "retries": current_settings().default_task_retries,
        "pid": os.getpid(),
    }


@task
async def seen_here_async():
    return seen_here.fn()


@task
def tags_of(x):
    return x, sorted(current_tags())


@task
def log_lines(*lines):
    for line in lines:
        get_run_logger().info("%s from %s", line, "here", extra={"own": line})
    logging.getLogger("tests.quiet").debug("not wanted")


@task
def log_and_die():
    get_run_logger().warning("last words")
    os._exit(1)


@task
def log_in_thread():
    thread = threading.Thread(target=logging.getLogger("tests.remote").warning, args=("from a thread",))
    thread.start()
    thread.join()


@task
def parent_of(number):
    """Calls, submits and maps."""
    direct = add(number, 1)
    submitted = add.submit(direct, 1)
    mapped = add.map([submitted, 10], 1)
    return mapped.result()


@task
def parent_of_failure():
    return fail("from the child")


@task
def parent_that_leaves_work():
    add.submit(1, 2)


@task
def recurse(depth):
    return 0 if depth == 0 else recurse.submit(depth - 1).result()


@flow
def subflow(x):
    return add(x, 100)


@task
def call_subflow(x):
    return subflow(x)


@task
def generated(number):
    yield from range(number)


@task
def return_a_state():
    return Completed(message="by hand", data=5)


@task
def sleep(seconds):
    time.sleep(seconds)
    return seconds


@task(timeout_seconds=0.2)
def too_slow(marker):
    with open(marker, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


@task
def fail_until(folder, attempts):
    """Fails until it was called `attempts` times; a file for each call says so."""
    made = len(list(Path(folder).iterdir()))
    (Path(folder) / str(made)).touch()
    add(made, 0)
    if made + 1 < attempts:
        raise ValueError(f"attempt {made + 1}")
    return made + 1


def _note_rollback(txn):
    path = Path(txn.get("folder")) / f"rolled back {txn.get('number')}"
    path.touch()


def _note_commit(txn):
    path = Path(txn.get("folder")) / f"committed {txn.get('number')}"
    path.touch()


def _effect(folder, number):
    own = get_transaction()
    own.set("folder", folder)
    own.set("number", number)


effect = Task(_effect, name="effect", on_rollback=[_note_rollback], on_commit=[_note_commit])


@task
def effects(folder, ending):
    """Two calls that can be undone and a plain one; then a failure, raised or returned, or a success."""
    effect(folder, 1)
    add(1)
    effect(folder, 2)
    if ending == "raises":
        raise ValueError("no")
    return Failed(message="no") if ending == "returns" else "done"


@task
def touch_and_wait(started, go):
    """Says that it runs and waits for a file."""
    Path(started).write_text(str(os.getpid()))
    while not Path(go).exists():
        time.sleep(0.01)
    return "went"


def limit_memory(spare):
    """An initializer: this process may take so many bytes more than it has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


REAL_FORK = getattr(os, "fork", None)


def refuse_one_fork():
    """In place of ``os.fork``: refuses as at the limit of processes, once."""
    os.fork = REAL_FORK
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@task
def read_initializer():
    return SET_BY_INITIALIZER


def initialize(*args: object) -> None:
    SET_BY_INITIALIZER.extend(args)


def initialize_badly() -> None:
    raise ValueError("no initializer")


def add_to_path(path: str) -> None:
    sys.path.append(path)


@task
def whole_path():
    return sys.path


@task
def variable():
    return VARIABLE.get()


class Thing:
    def __init__(self, name: str) -> None:
        self.name = name

    @task
    def greet(self, other):
        return f"{self.name} greets {other}"

    @classmethod
    def make(cls) -> Any:
        return cls("made")


@task
def taken(**kwargs):
    """Keyword arguments that executors take for their own."""
    return kwargs


@task
def what_is_current():
    """Whether the attempt has a slot in its process, and how many transactions are around it there."""
    depth, around = 0, get_transaction()
    while around is not None:
        depth, around = depth + 1, around.get_parent()
    return {"slot": SLOT.get() is not None, "transactions": depth}


@materialize("s3://made/here")
def make_asset(fails=False):
    """Adds metadata to the asset that it makes, some of it no JSON."""
    add_asset_metadata("s3://made/here", {"rows": 3})
    add_asset_metadata("s3://made/here", {"shape": Point(1, 2)})
    if fails:
        raise ValueError("after it")


@task
def token():
    """Another one for each execution."""
    return os.urandom(8).hex()


@task(timeout_seconds=0.2)
def slow_for_a_second():
    time.sleep(1)


@task(timeout_seconds=1)
def endless(path):
    """Writes its pid and never ends."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(3600)


@task
def wait_for_child(number):
    return add.submit(number, 1).result() + add.submit(number, 2).result()


def closure_free(x=0):
    """No task."""
    return x


@task
def counted(folder, number):
    """Leaves a file for each execution."""
    (Path(folder) / f"{number}-{os.urandom(4).hex()}").touch()
    return number


@task
def parent_that_fails_once(folder, mark):
    """Two calls in each attempt; the first attempt fails after them, also in a program that is killed."""
    found = counted(folder, 1) + counted.submit(folder, 2).result()
    if not Path(mark).exists():
        Path(mark).touch()
        raise ValueError("the first time")
    return found


@task
def modules_loaded(*names):
    """Which of these modules are loaded in the process."""
    return [name for name in names if name in sys.modules]


@task(log_prints=True)
def printing(text):
    print(text)


@task
def printing_as_its_flow_says(text):
    print(text)


@task
def pause_here():
    pause_flow_run(timeout=1)


@task
def big_text():
    return "x" * 50_000


@task
def parent_with_big_child():
    return len(big_text())


@task
def fork_and_die():
    """Leaves a child behind that has the worker's socket open, for a while."""
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    os._exit(5)


@task
def pid_of_one_that_leaves_a_child():
    """Leaves a child behind that has the worker's socket open, for a while."""
    if os.fork() == 0:
        time.sleep(10)
        os._exit(0)
    return os.getpid()


def closure_free_context():
    """Which runs and tags are current."""
    flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
    assert flow_context is not None
    assert task_context is not None
    return str(flow_context.flow_run.id), str(task_context.task_run.id), sorted(current_tags())


@task
async def generated_async(number):
    for item in range(number):
        yield item


@task
def count_and_die(path):
    """Leaves a letter for each execution."""
    with open(path, "a") as file:
        file.write("x")
    os._exit(5)


def _note(word, transaction):
    with open(os.path.join(transaction.get("folder"), "hooks"), "a") as file:
        file.write(f"{word} ")


@task(
    on_commit=[lambda transaction: _note("commit", transaction)],
    on_rollback=[lambda transaction: _note("rollback", transaction)],
)
def with_hooks(folder):
    transaction = get_transaction()
    assert transaction is not None
    transaction.set("folder", folder)


@task
def parent_that_fails_with_hooks(folder, fails=True):
    with_hooks(folder)
    if fails:
        raise ValueError("after it")
