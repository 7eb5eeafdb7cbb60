# SPDX-License-Identifier: Apache-2.0
"""What the tests of transactions share. Each of them is one coroutine for both colours: in the blocking form it is
stepped once, see ``finish``, so whatever is awaited in it has its value already."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from microflow._waits import finish
from microflow.transactions import BaseTransaction, Transaction, atransaction, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.support import Colour


class entered:
    """``async with entered(txn)`` for transactions of both colours."""

    def __init__(self, txn: BaseTransaction) -> None:
        self.txn: Any = txn

    async def __aenter__(self) -> Any:
        return self.txn.__enter__() if isinstance(self.txn, Transaction) else await self.txn.__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        if isinstance(self.txn, Transaction):
            self.txn.__exit__(*exc_info)  # type: ignore[arg-type]  # what the interpreter gives
        else:
            await self.txn.__aexit__(*exc_info)


@contextmanager
def ends_with(error: BaseException) -> Iterator[BaseException]:
    """The block is to raise this very object."""
    try:
        yield error
    except type(error) as raised:
        if raised is not error:
            raise
    else:
        pytest.fail(f"{error!r} was not raised")


def new(colour: Colour, *args: Any, **options: Any) -> Any:
    return (atransaction if colour.isasync else transaction)(*args, **options)


def run(colour: Colour, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine: on a loop, or by stepping it once."""
    if colour.isasync:
        asyncio.run(body())
    else:
        finish(body())


class Tale(list[str]):
    """What hooks tell, in order."""

    def hook(self, what: str, error: BaseException | None = None) -> Callable[[Any], None]:
        """A hook that tells, and then raises `error` if there is one."""

        def tell(txn: BaseTransaction) -> None:
            self.append(what)
            if error is not None:
                raise error

        return tell

    def stage(self, txn: BaseTransaction, name: str, **errors: BaseException) -> None:
        """Stage `name` with a hook of each kind."""
        undo, commit = (self.hook(f"{kind} {name}", errors.get(kind)) for kind in ("undo", "commit"))
        txn.stage(name, [undo], [commit])
