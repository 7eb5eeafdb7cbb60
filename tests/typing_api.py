# SPDX-License-Identifier: Apache-2.0
"""What a type checker infers for users' code. ``test_typing`` has mypy read this file; nothing here is run.

``assert_type`` fails the check when the inferred type is another, and each ``type: ignore`` marks a mistake of a user
that the checker must report: an unused one fails as well.
"""

from __future__ import annotations

from typing_extensions import assert_type

from microflow import State, flow, task
from microflow.futures import ConcurrentFuture, FutureList


@task
def length(text: str, factor: int = 1) -> int:
    return len(text) * factor


@task(retries=2, retry_delay_seconds=[1, 2], tags=["a"])
async def fetch(url: str) -> bytes:
    return url.encode()


class Shop:
    @task
    def price(self, item: str) -> float:
        return float(len(item))

    @flow
    def close(self, hour: int) -> str:
        return str(hour)


@flow
def blocking(number: int) -> list[int]:
    assert_type(length("a"), int)
    assert_type(length("a", factor=2), int)
    assert_type(length("a", return_state=True), State[int])
    assert_type(length("a", wait_for=[]), int)
    assert_type(length.submit("a"), ConcurrentFuture[int])
    assert_type(length.submit("a").result(), int)
    assert_type(length.submit("a", return_state=True), State[int])
    assert_type(length.map(["a"]), FutureList[int])
    assert_type(length.map(["a"]).result(), list[int])
    assert_type(length.map(["a"], return_state=True), list[State[int]])
    assert_type(length.with_options(name="n")("a"), int)
    assert_type(fetch.submit("u").result(), bytes)
    assert_type(fetch.submit("u", return_state=True), State[bytes])
    assert_type(fetch.map(["u"]).result(), list[bytes])
    assert_type(Shop().price("tea"), float)
    assert_type(Shop().price.submit("tea"), ConcurrentFuture[float])
    assert_type(Shop.price(Shop(), "tea"), float)
    length(1)  # type: ignore[call-overload]
    length()  # type: ignore[call-overload]
    task(retires=2)  # type: ignore[call-overload]
    return [number]


@flow(name="other", retries=1)
async def coroutine(number: int) -> str:
    assert_type(await fetch("u"), bytes)
    assert_type(await fetch("u", return_state=True), State[bytes])
    assert_type(await fetch("u", wait_for=[]), bytes)
    assert_type(await fetch.submit("u"), bytes)
    assert_type(await length.submit("u"), int)
    assert_type([await future for future in fetch.map(["u"])], list[bytes])
    assert_type(blocking(1), list[int])
    assert_type(blocking(1, return_state=True), State[list[int]])
    return "done"


async def outside() -> None:
    assert_type(await coroutine(1), str)
    assert_type(await coroutine(1, return_state=True), State[str])
    assert_type(await coroutine.with_options(name="x")(number=1), str)
    assert_type(Shop().close(20), str)
    assert_type(Shop().close(20, return_state=True), State[str])
    blocking("text")  # type: ignore[call-overload]
    flow(version=1)  # type: ignore[call-overload]
