# SPDX-License-Identifier: Apache-2.0
"""What a process runner does when the world around it misbehaves: forks that live on, servers that cannot serve,
workers that die early, and cancels that come at an awkward moment. All with real processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from microflow import _processes
from microflow.exceptions import WorkerLost
from microflow.task_runners import Cancellation, ProcessPoolTaskRunner
from tests import remote_tasks as remote
from tests.kill_support import PATIENCE, environment, wait_until

METHODS = ("forkserver", "spawn", "fork")


def is_over(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@contextmanager
def living_fork():
    """A fork of this process that does nothing; it ends with the block, or by itself should that never end."""
    pid = os.fork()
    if pid == 0:
        try:
            time.sleep(PATIENCE / 2)
        finally:
            os._exit(0)
    try:
        yield pid
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the block has waited for the fork"
    finally:
        try:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # these programs fork all the same
class TestForksOfTheOwner:
    @pytest.mark.parametrize("method", METHODS)
    def test_leaving_does_not_wait_for_a_fork_of_this_process(self, method):
        with ExitStack() as after:
            with ProcessPoolTaskRunner(1, start_method=method) as runner:
                pid = runner.submit(remote.pid, {}).result()
                after.enter_context(living_fork())
            assert is_over(pid)

    def test_leaving_does_not_wait_for_workers_that_another_runner_forked(self, tmp_path):
        go = tmp_path / "go"
        with ProcessPoolTaskRunner(1) as left, ProcessPoolTaskRunner(1, start_method="fork") as forking:
            left.submit(remote.pid, {}).result()
            still_runs = forking.submit(remote.touch_and_wait, {"started": str(tmp_path / "started"), "go": str(go)})
            assert wait_until((tmp_path / "started").exists)
            left.carrier().close()
            assert not still_runs.state.is_final()
            go.touch()
            assert still_runs.result() == "went"

    def test_workers_end_with_their_owner_while_a_fork_of_it_lives(self, tmp_path):
        script = tmp_path / "owner.py"
        script.write_text(
            "import os, sys, time\n"
            "from microflow.task_runners import ProcessPoolTaskRunner\n"
            "from tests import remote_tasks\n"
            "given = {'started': sys.argv[1], 'go': sys.argv[1] + '.never'}\n"
            "with ProcessPoolTaskRunner(1) as runner:\n"
            "    future = runner.submit(remote_tasks.touch_and_wait, given)\n"
            "    while not (os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1])):\n"
            "        time.sleep(0.01)\n"
            "    fork = os.fork()\n"
            f"    if fork == 0:\n        time.sleep({PATIENCE})\n        os._exit(0)\n"
            "    print(fork, flush=True)\n"
            "    future.wait()\n"
        )
        told = tmp_path / "pid"
        command = [sys.executable, str(script), str(told)]
        owner = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
        assert owner.stdout is not None
        fork = int(owner.stdout.readline())
        try:
            owner.kill()
            owner.wait()
            assert wait_until(lambda: is_over(int(told.read_text())))
            assert not is_over(fork)
        finally:
            os.kill(fork, 9)
            owner.stdout.close()

    def test_a_fork_that_closes_what_it_inherited_leaves_the_owners_workers_alone(self):
        with ProcessPoolTaskRunner(1) as runner:
            pid = runner.submit(remote.pid, {}).result()
            fork = os.fork()
            if fork == 0:
                try:
                    runner.carrier().close()
                finally:
                    os._exit(0)
            os.waitpid(fork, 0)
            assert runner.submit(remote.pid, {}).result() == pid


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def crash_of(runner, one, **parameters) -> str:
    """The message of a run that is lost."""
    future = runner.submit(one, parameters)
    future.wait()
    assert future.state.is_crashed()
    return future.state.message


class TestWorkersThatCannotBe:
    @pytest.mark.parametrize("method", ["forkserver", "spawn"])
    @pytest.mark.parametrize("size", [1, 4 << 20], ids=["small initializer", "big initializer"])
    def test_an_interpreter_that_is_none_crashes_the_run_with_its_exit_status(self, method, size, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/bin/false")
        one = remote.pid.with_options(timeout_seconds=PATIENCE)
        with ProcessPoolTaskRunner(
            1, start_method=method, initializer=remote.initialize, initargs=("x", b"x" * size)
        ) as runner:
            assert "exited with status 1" in crash_of(runner, one)
            before = descriptors()
            for _ in range(3):
                crash_of(runner, one)
            assert descriptors() <= before, "nothing is kept of a worker that never was"

    @pytest.mark.parametrize("method", ["forkserver", "spawn"])
    def test_an_interpreter_that_is_not_there_crashes_the_run_by_name(self, method, monkeypatch, tmp_path):
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
        with ProcessPoolTaskRunner(1, start_method=method) as runner:
            before = descriptors()
            assert "no worker process could be started" in crash_of(runner, remote.pid)
            assert str(tmp_path / "nothing") in crash_of(runner, remote.pid)
            assert descriptors() <= before + (method == "spawn") * 2, "spawn keeps its life line"

    def test_a_fork_that_is_refused_crashes_its_run_and_the_server_goes_on(self, monkeypatch):
        real = _processes._interpreter
        refusing = "os.fork = __import__('tests.remote_tasks', fromlist=['']).refuse_one_fork; _worker_process."
        monkeypatch.setattr(_processes, "_interpreter", lambda call, *passed: real(refusing + call, *passed))
        with ProcessPoolTaskRunner(1) as runner:
            message = crash_of(runner, remote.pid)
            assert os.strerror(errno.EAGAIN) in message
            server = runner.carrier()._launcher._server.pid
            assert runner.submit(remote.pid, {}).result() != os.getpid()
            assert runner.carrier()._launcher._server.pid == server

    @pytest.mark.parametrize("is_idle", [False, True], ids=["fresh", "idle before"])
    def test_a_worker_that_a_call_kills_before_it_begins_crashes_the_run(self, is_idle):
        with ProcessPoolTaskRunner(1, initializer=remote.limit_memory, initargs=(32 << 20,)) as runner:
            if is_idle:
                runner.submit(remote.pid, {}).result()
            message = crash_of(runner, remote.length, things=b"x" * (64 << 20))
            assert "exited with status 1 before it began the task" in message
            assert runner.submit(remote.length, {"things": b"x"}).result() == 1

    def test_the_time_limit_covers_the_sending_of_arguments(self):
        with ProcessPoolTaskRunner(1) as runner:
            os.kill(runner.submit(remote.pid, {}).result(), signal.SIGSTOP)
            late = runner.submit(remote.length.with_options(timeout_seconds=0.2), {"things": b"x" * (8 << 20)})
            late.wait()
            assert late.state.name == "TimedOut"

    def test_a_worker_that_dies_while_arguments_are_sent_is_noticed_behind_a_socket_that_is_held_open(self):
        with ProcessPoolTaskRunner(1) as runner:
            first = runner.submit(remote.pid_of_one_that_leaves_a_child, {}).result()
            os.kill(first, signal.SIGKILL)
            assert runner.submit(remote.length, {"things": b"x" * (8 << 20)}).result() == 8 << 20


class TestCancels:
    def test_a_canceller_that_is_slow_kills_no_other_run_and_its_answer_holds(self, monkeypatch, tmp_path):
        """Its thread looked up whose worker that is, and the run ends before the signal is sent."""
        started, go = tmp_path / "started", tmp_path / "go"
        kill = _processes.Worker.kill

        def kill_later(worker: _processes.Worker, why: str) -> bool:
            go.touch()
            first.wait(0.5)
            return kill(worker, why)

        with ProcessPoolTaskRunner(1) as runner:
            first = runner.submit(remote.touch_and_wait, {"started": str(started), "go": str(go)})
            second = runner.submit(remote.add, {"x": 1})
            assert wait_until(started.exists)
            monkeypatch.setattr(_processes.Worker, "kill", kill_later)
            assert runner.cancel(first) is Cancellation.KILLED
            monkeypatch.undo()
            first.wait()
            assert first.state.is_cancelled()
            assert second.result() == 2

    def test_a_thread_that_asks_for_a_worker_after_the_runner_was_left_gets_none(self):
        with ProcessPoolTaskRunner(1) as runner:
            carrier = runner.carrier()
        with pytest.raises(WorkerLost, match="its runner was left"):
            carrier.carry(uuid4(), b"", None, lambda _: None)
        assert not carrier.pids()
