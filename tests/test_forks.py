# SPDX-License-Identifier: Apache-2.0
"""A forked child is not held up by what its parent's threads were doing."""

from __future__ import annotations

import ast
import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import microflow
from microflow import flow
from microflow._forks import new_lock
from microflow.client.orchestration import current_client
from microflow.context import FlowRunContext
from microflow.task_runners import ExecutorTaskRunner, ProcessPoolTaskRunner
from tests import remote_tasks as remote
from tests.executors_support import FORKS

if TYPE_CHECKING:
    from microflow._pool import Pool

pytestmark = FORKS

ROOT = Path(microflow.__file__).parent


def in_child(body: Any) -> Any:
    """What a fork of this process finds, as the status that it ends with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads is the point
        pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = int(body())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_lock_that_somebody_holds_is_free_in_a_fork_and_still_held_here():
    lock = new_lock()
    with lock:
        assert in_child(lock.locked) == 0
        assert lock.locked()


def test_locks_of_what_lives_as_long_as_the_process_are_free_in_a_fork():
    from microflow import _captured_logs, _deadlocks, _prints, _transaction_lifecycle
    from microflow.client import orchestration
    from microflow.task_runs import TaskRunWaiter

    client = current_client()
    locks = [
        *(module._lock for module in (_captured_logs, _deadlocks, orchestration)),
        *(_transaction_lifecycle._family, _prints._replacing, TaskRunWaiter._creating),
        *(client.store.bus._lock, client.tasks._lock),
    ]
    for lock in locks:
        lock.acquire()
    try:
        assert in_child(lambda: sum(lock.locked() for lock in locks)) == 0
    finally:
        for lock in locks:
            lock.release()


def test_no_module_keeps_a_lock_that_is_not_made_anew():
    """``_files`` and ``_locks`` see to their own."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            value = getattr(node, "value", None)
            if isinstance(value, ast.Call) and ast.unparse(value.func) in ("threading.Lock", "threading.RLock", "Lock"):
                found.add(path.stem)
    assert found == {"_files", "_locks"}


class ForksAtTheWorstMoment(concurrent.futures.ProcessPoolExecutor):
    """Forks while another thread holds the lock of the pool whose job submits."""

    def __init__(self, pools: list[Pool]) -> None:
        super().__init__(1, mp_context=multiprocessing.get_context("fork"))
        self._pools = pools

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with self._pools[0].lock:
                held.set()
                done.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(20)
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            done.set()
            holder.join()


def test_a_worker_that_is_forked_while_a_lock_of_the_runner_is_held_runs_its_task():
    """The task waits for others, so it would give back the slot of the run that forked, which is the parent's."""
    pools: list[Pool] = []

    @flow(task_runner=ExecutorTaskRunner(lambda: ForksAtTheWorstMoment(pools), 1))
    def body():
        context = FlowRunContext.get()
        assert context is not None
        pools.append(context.task_runner._pool)
        return remote.wait_for_child.submit(1).result()

    assert body() == 5


@pytest.mark.parametrize("runner", [ProcessPoolTaskRunner(1, start_method="fork"), None], ids=["processes", "executor"])
def test_a_fork_has_neither_the_slot_nor_the_transaction_of_the_run_that_forked(runner, tmp_path):
    from microflow.transactions import transaction

    def make() -> Any:
        return concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))

    @flow(task_runner=runner or ExecutorTaskRunner(make, 1))
    def body():
        with transaction():
            return remote.what_is_current.submit().result()

    assert body() == {"slot": False, "transactions": 1}


PROGRAM = """
import concurrent.futures, logging, multiprocessing, sys
from microflow import flow
from microflow.task_runners import ExecutorTaskRunner
from tests import remote_tasks as remote

logging.basicConfig(stream=sys.stderr, level="INFO")

def pool():
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))

@flow(task_runner=ExecutorTaskRunner(pool, 1))
def body():
    remote.log_lines.submit("said").result()

body()
"""


def test_what_a_forked_worker_logs_is_written_once(private_home):
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert run.stderr.count("said from here") == 1
