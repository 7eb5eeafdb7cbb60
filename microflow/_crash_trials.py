# SPDX-License-Identifier: Apache-2.0
"""Killing a flow run at every place where it can be killed, and going on with it.

A flow run is what its log says, so a process that dies can leave only what one of its writes left: all writes before,
and of that one nothing, or some bytes. :func:`crash_everywhere` runs the flow once unbroken, counting its writes. Then,
for each of them, it starts the flow in a process of its own (a fork, which dies by ``os._exit`` in the middle of the
write: no handler runs, no file is closed in order, the kernel lets the locks go), resumes what it left in another
process, and compares:

* the outcome, the value or the exception, is that of the unbroken run;
* each task was executed as often as in the unbroken run, and once more only where the log says that it was being
  executed when the process died;
* whatever had ended in the log was not executed again.

Executions are counted where the function is called, in a file of their own beside the log, so that the log is not
believed in its own matter.

The process that asks, not the one that dies, answers the pauses of the flow: as a person elsewhere would.

Known holes: work of a process runner is executed, and counted, elsewhere, so it is not seen. A run with threads makes
its writes in another order each time; each trial is then one of the possible ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from . import _files
from ._task_lifecycle import BaseTaskRunEngine
from .client.orchestration import SyncClient
from .exceptions import MicroflowException, ObjectNotFound, Pause, describe
from .flow_runs import rerun
from .settings import temporary_settings
from .stores import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .client.fold import Run
    from .flows import Flow

KILLED = 137  # the status of a process that died by kill -9
_BROKEN = 70  # our own code raised in the child
_LOOK = 0.005  # seconds between two looks at a run that may be paused


class Trials:
    """The trials of one flow: each in a home of its own."""

    def __init__(
        self, flow: Flow[Any, Any], parameters: dict[str, Any], answers: Mapping[str, Any], seconds: float
    ) -> None:
        self.flow = flow
        self.parameters = parameters
        self.answers = answers
        self.seconds = seconds
        self.home = ""

    # ------------------------------------------------------------------------------------------ in the child

    def _run(self) -> None:
        _finished(self.flow(**self.parameters, return_state=True))

    def _resume(self, run_id: str) -> Callable[[], None]:
        return lambda: _finished(rerun(self.flow, run_id, force=True))

    def _child(self, work: Callable[[], None], die_at: int | None, share: float) -> None:
        """All of the child's life. Never returns."""
        status = _BROKEN
        try:
            writes = os.open(os.path.join(self.home, "writes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            executions = os.open(os.path.join(self.home, "executions"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            _watch(writes, executions, die_at, share)
            with temporary_settings(home=os.path.join(self.home, "home")):
                work()
            status = 0
        except Pause:  # suspended: the flow has left its process as it should
            status = 0
        except BaseException as error:  # told on standard error, and by the status
            print(f"a trial of {self.flow.name!r} broke: {describe(error)}", file=sys.stderr)
        finally:
            os._exit(status)

    # ------------------------------------------------------------------------------------------ in the parent

    def _process(self, work: Callable[[], None], die_at: int | None = None, share: float = 0.0) -> int:
        """Do some work in a process of its own, and answer what it asks; the status that it ends with."""
        child = os.fork()
        if child == 0:
            self._child(work, die_at, share)
        deadline = time.monotonic() + self.seconds
        try:
            while True:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    return os.waitstatus_to_exitcode(status)
                if time.monotonic() > deadline:
                    raise AssertionError(f"flow {self.flow.name!r} did not end within {self.seconds:g} seconds")
                self._answer_pauses()
                time.sleep(_LOOK)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise

    def _runs(self) -> list[Run]:
        """The runs of the home whose first line was written, callers first."""
        found = []
        for run_id in self.client.store.list():
            try:
                found.append(self.client.fold(run_id))
            except ObjectNotFound:  # killed before its first line was whole
                pass
        return found

    def _answer_pauses(self) -> None:
        for run in self._runs():
            state = run.flow_run.state
            if state is not None and state.is_paused():
                answer = self.answers.get(state.state_details.pause_key or "")
                try:
                    self.client.resume_flow_run(run.run_id, answer)
                except MicroflowException:  # it has ended, or goes on, since we looked
                    pass

    def trial(self, die_at: int | None = None, share: float = 0.0) -> Outcome:
        """Run the flow, dying in the write number `die_at` after this share of its bytes, and go on until it ends."""
        self.home = tempfile.mkdtemp(prefix="microflow-trial-")
        home = os.path.join(self.home, "home")
        os.mkdir(home, 0o700)
        self.client = SyncClient(FileStore(home))
        try:
            status = self._process(self._run, die_at, share)
            before = self._open_calls()
            resumed = 0
            while (root := self._root()) is None or not self._is_final(root):
                if status not in (0, KILLED) or resumed > 20:
                    raise AssertionError(f"flow {self.flow.name!r} could not be resumed: see standard error")
                resumed += 1
                self._answer_pauses()
                status = self._process(self._run if root is None else self._resume(root.run_id))
            return Outcome(self, root, before)
        finally:
            for run_id in self.client.store.list():
                self.client.store.close(run_id)
            shutil.rmtree(self.home, ignore_errors=True)

    def _root(self) -> Run | None:
        return next((run for run in self._runs() if run.flow_run.parent_flow_run_id is None), None)

    def _is_final(self, run: Run) -> bool:
        state = run.flow_run.state
        return state is not None and state.is_final() and not state.is_crashed()

    def _open_calls(self) -> Counter[str]:
        """How many calls of each task the log shows as begun and not ended."""
        return Counter(
            task.created["task"]
            for run in self._runs()
            for task in run.tasks.values()
            if task.last is not None and task.last["type"] == "RUNNING"
        )

    def read(self, name: str) -> list[str]:
        """The lines of a file that the children wrote."""
        with open(os.path.join(self.home, name), encoding="utf-8") as file:
            return file.read().splitlines()

    def again(self) -> list[str]:
        """The task runs of the home that entered RUNNING after their completion was logged."""
        return [
            f"{task.created['task']} ({task_id})"
            for run in self._runs()
            for task_id, task in run.tasks.items()
            if "COMPLETED" in (types := [state["type"] for state in task.states])
            and "RUNNING" in types[types.index("COMPLETED") :]
        ]


class Outcome:
    """What a trial came to."""

    def __init__(self, trials: Trials, root: Run, open_calls: Counter[str]) -> None:
        state = root.flow_run.state
        assert state is not None
        value = state.read_result(raise_on_failure=False)
        self.result = (state.type.value, describe(value) if isinstance(value, BaseException) else value)
        self.executions = Counter(trials.read("executions"))
        self.open_calls = open_calls
        self.writes = len(trials.read("writes"))
        self.again = trials.again()


def _finished(state: Any) -> None:
    """Drive a coroutine flow to its end."""
    if hasattr(state, "__await__"):
        import asyncio  # only for coroutine flows

        async def drive() -> None:
            await state

        asyncio.run(drive())


def _watch(writes: int, executions: int, die_at: int | None, share: float) -> None:
    """Count this process's writes and executions, and die in a write. What is patched here dies with the process."""
    write, call, number = _files.write, BaseTaskRunEngine._call_fn, 0

    def counted_write(descriptor: int, data: bytes) -> int:
        nonlocal number
        if number == die_at:
            os.write(descriptor, data[: int(len(data) * share)])
            os._exit(KILLED)
        number += 1
        os.write(writes, b".\n")
        return write(descriptor, data)

    async def counted_call(self: Any) -> Any:
        os.write(executions, f"{self.task.task_key}\n".encode())
        return await call(self)

    _files.write = counted_write
    BaseTaskRunEngine._call_fn = counted_call  # type: ignore[method-assign]


def compare(broken: Outcome, whole: Outcome, where: str) -> None:
    """AssertionError, which says where the process was killed, when something differs."""
    assert broken.result == whole.result, f"{where}: the run came to {broken.result}, unbroken to {whole.result}"
    assert not broken.again, f"{where}: executed again though the log had their end: {', '.join(broken.again)}"
    for task in whole.executions.keys() | broken.executions.keys():
        expected, most = whole.executions[task], whole.executions[task] + broken.open_calls[task]
        assert expected <= broken.executions[task] <= most, (
            f"{where}: {task} was executed {broken.executions[task]} times, unbroken {expected} times; "
            f"{broken.open_calls[task]} of its calls were open when the process died"
        )


def crash_everywhere(
    flow: Flow[Any, Any],
    parameters: dict[str, Any] | None = None,
    *,
    answers: Mapping[str, Any] | None = None,
    seconds: float = 60.0,
) -> int:
    """Kill a run of `flow` after every record and inside of records, resume it, and compare it with an unbroken run.

    Raises AssertionError when a resumed run comes to another result, or executes a task more often than the log allows.
    Gives the number of kills. `answers` holds the input for each pause by its key (None for a pause that asks for
    nothing); `seconds` is how long one process may take.

    Each kill takes two processes, forked from this one, so this works where there is ``os.fork`` and no other
    thread runs. A flow that pauses must be importable (not defined inside a function), its result must be one that
    can be kept, and equal ones must compare equal."""
    if not hasattr(os, "fork"):
        raise NotImplementedError("crash_everywhere needs os.fork, which this system does not have")
    if flow.isgenerator:
        raise TypeError(f"crash_everywhere runs flows that return; the items of {flow.name!r} would have no consumer")
    trials = Trials(flow, parameters or {}, answers or {}, seconds)
    whole = trials.trial()
    kills = 0
    for number in range(whole.writes):
        for share in (0.0, (0.02, 0.5, 0.98)[number % 3]):
            where = f"flow {flow.name!r}, killed in write {number} of {whole.writes} after {share:.0%} of it"
            compare(trials.trial(number, share), whole, where)
            kills += 1
    return kills

