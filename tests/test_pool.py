# SPDX-License-Identifier: Apache-2.0
"""The worker threads: slots are counted, handed on and never lost. Jobs here are bare, without runs."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest

from microflow._pool import LoopThread, Pool, PoolSlot
from microflow._waits import SLOT, slot_given_back
from tests.support import PATIENCE, Gauge

if TYPE_CHECKING:
    from collections.abc import Callable


class Job:
    """A job that calls a function, or awaits what it gives."""

    def __init__(self, work: Callable[[], Any], isasync: bool = False) -> None:
        self.work = work
        self.isasync = isasync
        self.context = copy_context()
        self.loop_thread: LoopThread | None = None
        self.waiting: Any = None
        self.done = threading.Event()

    def run(self, slot: PoolSlot) -> None:
        SLOT.set(slot)
        try:
            self.work()
        finally:
            self.done.set()

    async def run_async(self, slot: PoolSlot) -> None:
        SLOT.set(slot)
        try:
            await self.work()
        finally:
            self.done.set()


@pytest.fixture(params=[1, 3])
def pool(request):
    made = Pool(request.param, "test-pool")
    yield made
    if not made._closed:
        wait_until_idle(made)
    assert not made.returning


def wait_until_idle(pool: Pool) -> None:
    """Close the pool and join its threads: no slot may be in use then."""
    pool.close()
    pool.join()
    assert pool.active == 0


def test_no_thread_is_begun_before_there_is_a_job():
    before = threading.active_count()
    pool = Pool(5, "test-pool")
    assert threading.active_count() == before
    wait_until_idle(pool)


def test_jobs_run_in_the_order_in_which_they_were_put():
    pool, order = Pool(1, "test-pool"), list[int]()
    for number in range(20):
        pool.put(Job(lambda number=number: order.append(number)))  # type: ignore[misc]
    last = Job(lambda: None)
    pool.put(last)
    assert last.done.wait(PATIENCE)
    assert order == list(range(20))
    wait_until_idle(pool)


def test_idle_threads_are_used_again(pool):
    seen: set[int] = set()
    for _ in range(20):
        job = Job(lambda: seen.add(threading.get_ident()))
        pool.put(job)
        assert job.done.wait(PATIENCE)
    assert len(seen) <= pool.max_workers + 1


def test_a_job_that_raises_does_not_end_its_worker(pool, caplog):
    def bad():
        raise KeyboardInterrupt

    for _ in range(5):
        pool.put(Job(bad))
    good = Job(lambda: None)
    pool.put(good)
    assert good.done.wait(PATIENCE)
    wait_until_idle(pool)
    assert caplog.text.count("a callback in worker thread") == 5


def test_a_coroutine_job_that_raises_does_not_end_its_loop(pool, caplog):
    async def bad():
        raise KeyboardInterrupt

    async def fine():
        return None

    pool.put(Job(bad, isasync=True))
    good = Job(fine, isasync=True)
    pool.put(good)
    assert good.done.wait(PATIENCE)
    wait_until_idle(pool)
    assert "a callback on the loop thread" in caplog.text


def test_a_slot_that_is_given_back_goes_to_a_waiting_job_and_is_taken_again(pool):
    inner, order = Job(lambda: order.append("inner")), list[str]()

    def outer():
        pool.put(inner)
        with slot_given_back(), slot_given_back():  # nested waits give back once
            inner.done.wait(PATIENCE)
        order.append("outer")

    job = Job(outer)
    pool.put(job)
    assert job.done.wait(PATIENCE)
    assert order == ["inner", "outer"]


def test_a_returning_worker_comes_before_queued_jobs():
    pool, order = Pool(1, "test-pool"), list[str]()
    go_on, waiting, blocker_runs = threading.Event(), threading.Event(), threading.Event()

    def returning():
        with slot_given_back():
            waiting.set()
            go_on.wait(PATIENCE)
        order.append("returning")

    def blocker():
        blocker_runs.set()
        go_on.set()
        while not pool.returning:  # the other one is back and asks for a slot
            threading.Event().wait(0.001)
        order.append("blocker")

    first, second = Job(returning), Job(blocker)
    third = Job(lambda: order.append("queued"))
    pool.put(first)
    assert waiting.wait(PATIENCE)
    pool.put(second)
    assert blocker_runs.wait(PATIENCE)
    pool.put(third)
    assert third.done.wait(PATIENCE)
    wait_until_idle(pool)
    assert order == ["blocker", "returning", "queued"]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_many_nested_waits_never_have_more_than_the_limit_active(workers):
    pool, gauge, done = Pool(workers, "test-pool"), Gauge(), threading.Semaphore(0)

    def leaf():
        with gauge:
            done.release()

    def branch():
        for _ in range(5):
            with gauge:
                job = Job(leaf)
                pool.put(job)
            with slot_given_back():
                job.done.wait(PATIENCE)

    branches = [Job(branch) for _ in range(20)]
    for job in branches:
        pool.put(job)
    for job in branches:
        assert job.done.wait(PATIENCE)
    wait_until_idle(pool)
    assert gauge.most <= workers


def test_a_slot_taken_over_the_limit_is_made_up_for():
    pool = Pool(1, "test-pool")
    release, held = threading.Event(), threading.Event()
    first = Job(lambda: (held.set(), release.wait(PATIENCE)))
    pool.put(first)
    assert held.wait(PATIENCE)
    slot = PoolSlot(pool, first)
    slot._depth = 1
    slot.take_again(at_once=True)
    assert pool.active == 2
    queued = Job(lambda: None)
    pool.put(queued)
    with pool.lock:
        pool.pass_on()  # the one over the limit ends: nobody gets its slot
    assert pool.active == 1
    assert not queued.done.is_set()
    release.set()
    assert queued.done.wait(PATIENCE)
    wait_until_idle(pool)


def test_a_closed_pool_takes_no_job_and_gives_back_what_has_not_started():
    pool, release, held = Pool(1, "test-pool"), threading.Event(), threading.Event()
    pool.put(Job(lambda: (held.set(), release.wait(PATIENCE))))
    assert held.wait(PATIENCE)
    waiting = [Job(lambda: None) for _ in range(3)]
    for job in waiting:
        assert pool.put(job)
    assert pool.close() == waiting
    assert not pool.put(Job(lambda: None))
    release.set()
    pool.join()
    assert not any(job.done.is_set() for job in waiting)


def test_coroutines_share_one_loop_until_it_blocks():
    pool, threads = Pool(3, "test-pool"), list[int]()
    other_done = threading.Event()

    async def other():
        threads.append(threading.get_ident())
        other_done.set()

    async def blocking():
        threads.append(threading.get_ident())
        pool.put(Job(other, isasync=True))
        with slot_given_back():
            assert other_done.wait(PATIENCE)

    job = Job(blocking, isasync=True)
    pool.put(job)
    assert job.done.wait(PATIENCE)
    wait_until_idle(pool)
    assert len(set(threads)) == 2


def test_a_loop_thread_waits_for_its_coroutines_before_it_ends():
    loop_thread, seen = LoopThread("test-loop"), list[int]()

    async def slow():
        for _ in range(20):
            await asyncio.sleep(0)
        seen.append(1)

    loop_thread.call(loop_thread.start, slow())
    loop_thread.close()
    assert seen == [1]
    assert not loop_thread.thread.is_alive()


def test_where_no_thread_can_start_the_caller_is_told_and_no_slot_is_lost(monkeypatch):
    """The system may refuse a thread; a later job must find every slot again."""
    pool = Pool(2, "refused")

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start new thread"):
            pool.put(Job(lambda: None))
    assert pool.active == 0
    assert pool.close() == []
    pool.join()
