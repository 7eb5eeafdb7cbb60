# SPDX-License-Identifier: Apache-2.0
"""What a process runner does when the world around it misbehaves: forks that live on, servers that cannot serve,
workers that die early, and cancels that come at an awkward moment. All with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from microflow.task_runners import ProcessPoolTaskRunner
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
