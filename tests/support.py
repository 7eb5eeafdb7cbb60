# SPDX-License-Identifier: Apache-2.0
"""What tests of the upper floors share: one body for both colours, waits that do not wait, and a look into the log.

A *colour* makes blocking or coroutine flows and tasks from one text. The text is a plain function, or a generator
that yields what it waits for::

    @colour.flow
    def body():
        value = yield add(1, 2)  # a value in the blocking form, a coroutine that is awaited in the other
        return value
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import microflow._waits as waits_module
from microflow import _kept, calls
from microflow._waits import AsyncioWaits, BlockingWaits
from microflow.client import orchestration
from microflow.client.orchestration import current_client
from microflow.exceptions import StorageError
from microflow.flow_engine import AsyncFlowRunEngine, FlowRunEngine
from microflow.flows import Flow
from microflow.futures import RunFuture
from microflow.task_engine import AsyncTaskRunEngine, SyncTaskRunEngine
from microflow.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from microflow.client.fold import Run

PATIENCE = 20.0
"""Seconds after which a test that waits for an event gives up: only a hang takes as long."""


# ------------------------------------------------------------------------------------ one body, two colours


class Colour:
    """Makes blocking (``isasync=False``) or coroutine flows and tasks."""

    def __init__(self, isasync: bool) -> None:
        self.isasync = isasync

    def __repr__(self) -> str:
        return "async" if self.isasync else "sync"

    def function(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """The function of this colour whose text is `body`, with its name and signature."""
        steps = inspect.isgeneratorfunction(body)

        def blocking(*args: Any, **kwargs: Any) -> Any:
            return drive(body(*args, **kwargs)) if steps else body(*args, **kwargs)

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            return await drive_async(body(*args, **kwargs)) if steps else body(*args, **kwargs)

        return functools.wraps(body)(coroutine if self.isasync else blocking)

    def task(self, body: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Like ``@task``."""
        if body is None:
            return lambda text: self.task(text, **options)
        return Task(self.function(body), **options)

    def flow(self, body: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Like ``@flow``."""
        if body is None:
            return lambda text: self.flow(text, **options)
        return Flow(self.function(body), **options)

    def run(self, called: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a flow or task of this colour from outside and give what it comes to."""
        value = called(*args, **kwargs)
        return run(value)


SYNC, ASYNC = Colour(False), Colour(True)
both = pytest.mark.parametrize("colour", [SYNC, ASYNC], ids=repr)
"""Runs a test once for each colour."""


def drive(steps: Any) -> Any:
    """Run a generator body in the blocking way: what it yields is the value, a future its result."""
    send, given = steps.send, None
    with closing(steps):  # also when an interrupt ends this: not later, in whatever thread collects garbage
        while True:
            try:
                thing = send(given)
            except StopIteration as end:
                return end.value
            try:
                send, given = steps.send, thing.result() if isinstance(thing, RunFuture) else thing
            except Exception as error:  # handed to the body, whose matter it is
                send, given = steps.throw, error


async def drive_async(steps: Any) -> Any:
    """Run a generator body on the loop: what it yields is awaited if it can be."""
    send, given = steps.send, None
    with closing(steps):  # also when an interrupt ends this: not later, in whatever thread collects garbage
        while True:
            try:
                thing = send(given)
            except StopIteration as end:
                return end.value
            try:
                send, given = steps.send, await thing if hasattr(thing, "__await__") else thing
            except Exception as error:  # handed to the body, whose matter it is
                send, given = steps.throw, error


def run(value: Any) -> Any:
    """The value of a blocking call, or what its coroutine comes to on a fresh loop."""
    if not inspect.iscoroutine(value):
        return value

    async def outcome() -> Any:
        return await value

    return asyncio.run(outcome())


# -------------------------------------------------------------------------------------- waits that do not wait


class FakeClock:
    """Stands in for the module ``time`` in ``_waits``: sleeping moves the wall clock and takes no time."""

    def __init__(self, slept: list[float]) -> None:
        self._ahead = 0
        self.slept = slept

    def time_ns(self) -> int:
        """The wall clock, ahead by what was slept."""
        return time.time_ns() + self._ahead

    def sleep(self, seconds: float) -> None:
        """Record the sleep; a later time is now."""
        self.slept.append(seconds)
        self._ahead += int(seconds * 1e9)


class FakeBlockingWaits(BlockingWaits):
    """Blocking waits whose sleep records."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    async def sleep(self, seconds: float, cancelled: Any = None) -> None:
        """Record instead of sleeping."""
        if seconds > 0:
            self.clock.sleep(seconds)


class FakeAsyncioWaits(AsyncioWaits):
    """Asyncio waits whose sleep records."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    async def sleep(self, seconds: float, cancelled: Any = None) -> None:
        """Record instead of sleeping."""
        if seconds > 0:
            self.clock.sleep(seconds)


def fake_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no engine sleep for the rest of the test; the list has the seconds that each sleep was to take."""
    slept: list[float] = []
    clock = FakeClock(slept)
    monkeypatch.setattr(waits_module, "time", clock)
    for engine in (SyncTaskRunEngine, FlowRunEngine):
        monkeypatch.setattr(engine, "waits", FakeBlockingWaits(clock))
    for coroutine_engine in (AsyncTaskRunEngine, AsyncFlowRunEngine):
        monkeypatch.setattr(coroutine_engine, "waits", FakeAsyncioWaits(clock))
    return slept


# ------------------------------------------------------------------------------------------ what the log holds


def memory_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the runs of this test in memory, apart from those of every other test; nobody was warned yet."""
    monkeypatch.setenv("MICROFLOW_HOME", ":memory:")
    monkeypatch.setattr(orchestration, "_clients", {})
    monkeypatch.setattr(_kept, "_warned", set())
    monkeypatch.setattr(calls, "_warned_sources", set())


def flow_run_ids(flow_name: str | None = None) -> list[str]:
    """The recorded flow runs in the order of their creation, of one flow if named."""
    client = current_client()
    ids = client.store.list()
    return [each for each in ids if flow_name is None or client.fold(each).flow_run.flow_name == flow_name]


def fold(flow_run_id: object | None = None) -> Run:
    """A run as its log has it now; without an id the only one there is."""
    if flow_run_id is None:
        (flow_run_id,) = flow_run_ids()
    return current_client().fold(str(flow_run_id))


def flow_states(flow_run_id: object | None = None) -> list[str]:
    """The names of a flow run's recorded states."""
    return [state.name for state in fold(flow_run_id).states]


def task_ids(task_name: str, flow_run_id: object | None = None) -> list[str]:
    """The task runs of one task in a log, in the order of their creation."""
    found = fold(flow_run_id).tasks
    return [key for key, history in found.items() if history.created["task"].rpartition("-")[0] == task_name]


def task_states(task_name: str, flow_run_id: object | None = None) -> list[list[str]]:
    """For each task run of one task the names of its recorded states, as the client lists them."""
    run = fold(flow_run_id)
    ids = task_ids(task_name, flow_run_id)
    return [[state.name for state in run.task_states(key, rolled_back=True)] for key in ids]


class Dead(StorageError):
    """The process of this test's engine has 'died': nothing reaches the log any more."""


class Death:
    """Lets a number of appends through, then none. What the log holds afterwards is what a kill would leave."""

    def __init__(self, appends: int) -> None:
        self.left = appends
        self.came = False
        self._lock = threading.Lock()

    def count(self) -> None:
        """Called before each append."""
        with self._lock:
            if self.left <= 0:
                self.came = True
                raise Dead("this process is dead")
            self.left -= 1


@contextmanager
def death_after(appends: int) -> Iterator[Death]:
    """In the block the process 'dies' after so many appends: every later one is refused, no result file is written,
    and on leaving it the owners are gone, as they would be after a kill."""
    client = current_client()
    store: Any = client.store
    real, real_put, death = store.append, store.put_result, Death(appends)

    def append(*args: Any, **kwargs: Any) -> Any:
        death.count()
        return real(*args, **kwargs)

    def put_result(run_id: str, data: bytes) -> Any:
        return real_put(run_id, data) if death.left > 0 else "written by nobody"

    store.append, store.put_result = append, put_result
    try:
        yield death
    except Dead:
        pass
    finally:
        del store.append, store.put_result
        for live in list(client.owned.values()):
            client.abandon(live)


def count_appends(work: Callable[[], Any]) -> int:
    """How many appends `work` makes."""
    many = 1_000_000
    with death_after(many) as death:
        work()
    return many - death.left


# ---------------------------------------------------------------------------------------------- concurrency


class Gauge:
    """Counts who is in its block now, and the most that ever were."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Gauge:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self.now -= 1


class Witness(Counter[Any]):
    """Counts what really was executed, from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def saw(self, what: object) -> None:
        """Count one execution."""
        with self._lock:
            self[what] += 1
