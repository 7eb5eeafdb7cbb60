# SPDX-License-Identifier: Apache-2.0
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# pyright: reportUnusedCoroutine=false, reportUnusedFunction=false, reportUnusedExpression=false
"""What type checkers infer for users' code. ``test_typing`` has mypy and pyright read this file; nothing here is run.

``assert_type`` fails the check when the inferred type is another, and each ``type: ignore`` marks a mistake of a user
that both checkers must report: an unused one fails as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from typing_extensions import assert_type

from microflow import State, Task, allow_failure, flow, quote, task, unmapped
from microflow.assets import materialize
from microflow.futures import ConcurrentFuture, DistributedFuture, FutureList
from microflow.tasks import exponential_backoff

if TYPE_CHECKING:
    from microflow.client.objects import TaskRun


@task
def length(text: str, factor: int = 1) -> int:
    return len(text) * factor


@task(retries=2, retry_delay_seconds=[1, 2], tags=["a"], timeout_seconds=3, at_most_once=True, log_prints=True)
async def fetch(url: str) -> bytes:
    return url.encode()


@task(retries=3, retry_delay_seconds=exponential_backoff(2))
def numbers(stop: int) -> Generator[int, None, str]:
    yield from range(stop)
    return "end"


@task
async def pages(url: str) -> AsyncGenerator[bytes, None]:
    yield url.encode()


class Shop:
    @task
    def price(self, item: str) -> float:
        return float(len(item))

    @task
    async def order(self, item: str) -> bool:
        return bool(item)

    @flow
    def close(self, hour: int) -> str:
        return str(hour)


# ------------------------------------------------------------------------------------------ what is decorated

made = task(name="other")(lambda: 1)
assert_type(made(), int)
assert_type(Task(len)([1, 2]), int)


@length.on_completion
@length.on_failure
@length.on_running
def announce(of: Task[..., Any], run: TaskRun, state: State[Any]) -> None:
    assert_type(run.name, str)
    assert_type(state.is_completed(), bool)


@length.on_commit
@length.on_rollback
def undo(transaction: object) -> int:
    return 1


hook: Callable[[Task[..., Any], TaskRun, State[Any]], None] = announce
assert_type(undo(1), int)


# ------------------------------------------------------------------------------------------------------ calls


@flow
def blocking(number: int) -> list[int]:
    assert_type(length("a"), int)
    assert_type(length("a", factor=2), int)
    assert_type(length("a", return_state=True), State[int])
    assert_type(length("a", return_state=False, wait_for=[]), int)
    assert_type(length("a", wait_for=[]), int)
    length(1)  # type: ignore[call-overload]
    length()  # type: ignore[call-overload]
    length("a", factors=2)  # type: ignore[call-overload]
    task(retires=2)  # type: ignore[call-overload]
    task(retries="2")  # type: ignore[call-overload]
    return [number]


@flow
def submitting() -> None:
    future = length.submit("a")
    assert_type(future, ConcurrentFuture[int])
    assert_type(future.result(), int)
    assert_type(future.state, State[int])
    assert_type(length.submit("a", return_state=True), State[int])
    assert_type(length.submit(future, wait_for=[future]).result(), int)
    assert_type(fetch.submit("u"), ConcurrentFuture[bytes])
    assert_type(fetch.submit("u").result(), bytes)
    assert_type(fetch.submit("u", return_state=True), State[bytes])


@flow
def mapping() -> None:
    assert_type(length.map(["a"]), FutureList[int])
    assert_type(length.map(["a"]).result(), list[int])
    assert_type(length.map(["a"], unmapped(2), return_state=True), list[State[int]])
    assert_type(length.map(allow_failure(["a"]), factor=quote([1]), deferred=True), FutureList[int])
    assert_type(fetch.map(["u"]).result(), list[bytes])
    assert_type(fetch.map(["u"], return_state=True), list[State[bytes]])


def deferring() -> None:
    assert_type(length.delay("a"), DistributedFuture[int])
    assert_type(length.delay("a", factor=2).result(), int)
    assert_type(fetch.delay("u"), DistributedFuture[bytes])
    assert_type(length.apply_async(["a"], {"factor": 2}), DistributedFuture[int])
    assert_type(fetch.apply_async(["u"]).result(), bytes)
    length.delay(1)  # type: ignore[arg-type]
    length.delay("a", wait_for=[])  # type: ignore[call-arg]


def other_options() -> None:
    copied = length.with_options(name="n", retries=0, tags=["b"], cache_policy=None, persist_result=False)
    assert_type(copied("a"), int)
    assert_type(copied.submit("a").result(), int)
    assert_type(fetch.with_options(timeout_seconds=1).submit("u").result(), bytes)
    length.with_options(retires=0)  # type: ignore[call-arg]
    length.with_options(retries="0")  # type: ignore[arg-type]


def generators() -> None:
    assert_type(numbers(3), Generator[int, None, str])
    assert_type([number + 1 for number in numbers(3)], list[int])
    assert_type(pages("u"), AsyncGenerator[bytes, None])


def methods(shop: Shop) -> None:
    assert_type(shop.price("tea"), float)
    assert_type(shop.price("tea", return_state=True), State[float])
    assert_type(shop.price.submit("tea"), ConcurrentFuture[float])
    assert_type(shop.price.map(["tea"]).result(), list[float])
    assert_type(shop.order.submit("tea").result(), bool)
    assert_type(Shop.price(shop, "tea"), float)
    assert_type(shop.close(20), str)
    assert_type(shop.close(20, return_state=True), State[str])
    shop.price(1)  # type: ignore[call-overload]
    Shop.price("tea")  # type: ignore[call-overload]


@flow(name="other", retries=1)
async def coroutine(number: int) -> str:
    assert_type(await fetch("u"), bytes)
    assert_type(await fetch("u", return_state=True), State[bytes])
    assert_type(await fetch("u", wait_for=[]), bytes)
    assert_type(await fetch.submit("u"), bytes)
    assert_type(await length.submit("u"), int)
    assert_type([await future for future in fetch.map(["u"])], list[bytes])
    assert_type([page async for page in pages("u")], list[bytes])
    assert_type(await Shop().order("tea"), bool)
    assert_type(blocking(1), list[int])
    assert_type(blocking(1, return_state=True), State[list[int]])
    await length("u")  # type: ignore[misc]
    return "done"


@materialize("s3://bucket/table", by="dbt", retries=1)
def table(rows: int) -> str:
    return "table" * rows


def assets() -> None:
    assert_type(table(1), str)
    assert_type(table.submit(1), ConcurrentFuture[str])
    assert_type(table.with_options(assets=["s3://bucket/other"])(1), str)
    table("rows")  # type: ignore[call-overload]


async def outside() -> None:
    assert_type(await coroutine(1), str)
    assert_type(await coroutine(1, return_state=True), State[str])
    assert_type(await coroutine.with_options(name="x")(number=1), str)
    blocking("text")  # type: ignore[call-overload]
    flow(version=1)  # type: ignore[call-overload]


def takes_any_coroutine_task(given: Task[[str], Coroutine[Any, Any, bytes]]) -> None:
    assert_type(given.submit("u").result(), bytes)


takes_any_coroutine_task(fetch)
