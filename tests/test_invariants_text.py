# SPDX-License-Identifier: Apache-2.0
"""The invariants that can be read off the source: who appends states (I2), what may await (I6)."""

from __future__ import annotations

import ast
import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from microflow.client.orchestration import current_client
from microflow.states import Running

from .invariants_support import (
    PACKAGE,
    both_colours,
    home_fixture,  # noqa: F401 - autouse, named home
    new_task,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microflow.client.objects import TaskRun


# ------------------------------------------------------------------------------------------------ I2

# who may hand a state to the client, and why it is not set_state where it is not
STATE_SETTERS = {
    "_task_transitions.TaskTransitions.set_state": "the task engine's",
    "_flow_lifecycle.BaseFlowRunEngine.set_state": "the flow engine's",
    "_tracking.Tracking._append": "a subflow's tracking run has no engine: its state is the child's",
    "_flow_lifecycle.BaseFlowRunEngine._prepare": "NotReady, before the run begins",
    "_serving.DeferredWork.end": "a run that could not begin, or that killed its workers and is not run again",
    "_serving.FlowWork.end": "the same of a flow run",
    "_submitting.Submission._record": "a run that no engine ever had, or whose engine is left behind",
    "_submitting.PooledTaskRunner._submit_all": "the creation of runs that no engine has yet",
    "tasks.Task.create_run": "the creation of a run that no engine has yet",
    "client.memory.MemoryTasks.create_tasks": "is propose_task, many times",
    "client.orchestration.SyncClient.set_flow_run_state": "an operator's or another process's word",
    "client.orchestration.SyncClient.set_task_run_state": "likewise, on a deferred task run",
}
APPENDERS = {
    "client.live.LiveRun._transition": "every transition",
    "client.live.LiveRun._append_release": "a release, no state",
    "client.orchestration.SyncClient.start": "the first line of a run",
    "client.orchestration.SyncClient.append_claim": "a claim",
    "client.orchestration.SyncClient.create_task_run": "the first line of a deferred task run",
    "_carried.teach": "what an owner knows, copied into a worker's memory",
}


def callers(*methods: str, of: str | None = None) -> set[str]:
    """The functions of the package that call a method of one of these names (on an attribute named `of`)."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name, function in functions(ast.parse(path.read_text()), module):
            for node in ast.walk(function):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if node.func.attr in methods and of in (None, ast.unparse(node.func.value).split(".")[-1]):
                    found.add(name)
    return found


def functions(node: ast.AST, path: str) -> Iterator[tuple[str, ast.AST]]:
    """Each function of a module or class with its dotted name; inner functions belong to the outer one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{path}.{child.name}")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{path}.{child.name}", child


def test_I2_nobody_but_those_listed_proposes_a_state():
    """Broken if an engine, a runner or a later module proposed states past ``set_state``."""
    assert callers("propose", "propose_task", "create_tasks") == set(STATE_SETTERS)


def test_I2_nobody_but_the_client_appends_and_it_does_so_in_few_places():
    """Broken if a state were written to the log without the table being asked."""
    found = callers("append", of="store")
    # check_store appends to storage that it makes for its questions, where no run of a flow is
    assert {name for name in found if not name.startswith("_store_checks.")} == set(APPENDERS)


# ------------------------------------------------------------------------------------------------ I6

SHARED = {"_task_transitions": "TaskTransitions", "_flow_lifecycle": "BaseFlowRunEngine"}
# what is shared beside those classes
AROUND = ["_task_lifecycle", "_task_preparation", "_task_transactions", "_task_generators"]
OURS_TO_AWAIT = {"settle", "resolve_argument", "released", "prepare", "_resolve", "_wait_for_dependencies"}
OURS_TO_AWAIT |= {"join_again", "consume", "_begin", "_hand_over_all", "_close", "hand_over", "until_due"}
USERS_TO_AWAIT = {"generator.__anext__"}  # in a coroutine that is handed to ``waits.call``
# a transaction's own: written once for both colours like the engine that awaits them
OURS_TO_AWAIT |= {f"transaction.{step}" for step in ("enter", "leave", "roll_parent_back")}
ASYNCIO = {
    "_waits": "AsyncioWaits, and what carries a coroutine to a loop",
    "_pool": "loop threads",
    "_inline_pool": "starts coroutine tasks on the loop that runs already, where there are no threads",
    "_timeouts": "the limit of a coroutine cancels its asyncio task",
    "cli": "a coroutine flow's loop",
    "_crash_trials": "a coroutine flow's loop, in a child process",
    "_locks": "waiting for a lock on a loop, for a time",
    "results": "reading and writing off the loop",
    "_executors": "loads it before a pool forks, whose workers may need it",
}


def class_of(module: str, name: str) -> ast.ClassDef:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    return next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)


def foreign_awaits(tree: ast.AST) -> list[str]:
    """What is awaited beside ``self.waits.*``, ``self._step(…)`` and the names above; any async for, and any async
    with but over a public scope: ``async with entered(self.scope())``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFor):
            found.append(ast.unparse(node))
        if isinstance(node, ast.AsyncWith):
            managers = [ast.unparse(item.context_expr) for item in node.items]
            found += [name for name in managers if not name.startswith(("entered(self.", "entered(engine."))]
        if isinstance(node, ast.Await):
            call = node.value
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            own = name.startswith(("self._", "engine._")) and name.count(".") == 1
            if not (name.startswith(("self.waits.", "engine.waits.")) or own or name in OURS_TO_AWAIT | USERS_TO_AWAIT):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("module", SHARED)
def test_I6_shared_engine_code_awaits_only_the_waits_and_its_own_steps(module):
    """The type check that "never suspends" lacks: broken if shared code awaited anything that may suspend by itself."""
    assert foreign_awaits(class_of(module, SHARED[module])) == []


@pytest.mark.parametrize("module", AROUND)
def test_I6_what_an_engine_is_handed_to_awaits_no_more_than_it_does(module):
    """Broken if a function of the shared lifecycle that stands outside of the engine's class awaited anything else."""
    assert foreign_awaits(ast.parse((PACKAGE / f"{module}.py").read_text())) == []


def test_I6_the_check_finds_what_it_looks_for():
    """The control of the test above."""
    source = """
class Engine:
    async def _good(self):
        await self.waits.sleep(1)
        await self._step()
        await settle(self.begin_run())
        await resolve_argument(1, self.waits)
        async with entered(self.scope()): pass
    async def _bad(self):
        await asyncio.sleep(1)
        await self.begin_run()
        await self._call.something()
        await future
        async with lock: pass
"""
    assert len(foreign_awaits(ast.parse(source))) == 5


@pytest.mark.parametrize("module", SHARED)
def test_I6_public_steps_are_awaited_through_settle(module):
    """Broken if shared code called a public step of an engine directly: the async one would never run."""
    base = class_of(module, SHARED[module])
    steps = {ast.unparse(node.target) for node in base.body if isinstance(node, ast.AnnAssign)} - {"waits"}
    settled, called = [], []
    others = [ast.parse((PACKAGE / f"{each}.py").read_text()) for each in AROUND] if "task" in module else []
    for node in (inner for tree in (base, *others) for inner in ast.walk(tree)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "settle":
            settled.append(node.args[0])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"self.{step}" for step in steps}:
            called.append(node)
    assert steps
    assert [ast.unparse(call) for call in called if call not in settled] == []


def test_I6_nothing_can_await_between_deciding_and_appending():
    """Broken if a coroutine stood in the module that decides and appends, or ``set_state`` became one."""
    for path in ("client/live.py", "client/fold.py", "transitions.py", "log.py", "_chain.py", "_media.py", "stores.py"):
        tree = ast.parse((PACKAGE / path).read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, (ast.AsyncFunctionDef, ast.Await))], path
    for module, name in SHARED.items():
        (set_state,) = (node for node in class_of(module, name).body if getattr(node, "name", "") == "set_state")
        assert isinstance(set_state, ast.FunctionDef)


def test_I6_asyncio_is_named_only_where_loops_are_our_business():
    """Broken if shared code or a lower floor began to use asyncio; test_layers asks each for a reason."""
    naming = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "asyncio" for name in names):
                naming.add(path.stem)
    assert naming <= set(ASYNCIO)


@both_colours
def test_I6_a_concurrent_run_cannot_come_between_a_decision_and_its_append(isasync, monkeypatch):
    """Broken if deciding and appending were two steps: here every append waits for another thread's proposal."""
    live = started()
    append, order = live.store.append, []

    def slow(run_id: str, bodies: list[Any], **kwargs: Any) -> int:
        order.append(("append", kwargs["expect"]))
        return append(run_id, bodies, **kwargs)

    monkeypatch.setattr(live.store, "append", slow)
    tasks = [new_task(live) for _ in range(20)]

    def work(task_run: TaskRun) -> None:
        live.propose_task(task_run, Running())

    if isasync:

        async def main() -> None:
            await asyncio.gather(*(asyncio.to_thread(work, task_run) for task_run in tasks))

        asyncio.run(main())
    else:
        threads = [threading.Thread(target=work, args=(task_run,)) for task_run in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert order == [("append", position) for position in range(2, 22)]  # no position was ever tried twice
    current_client().abandon(live)
