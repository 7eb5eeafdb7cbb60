# SPDX-License-Identifier: Apache-2.0
"""Several calls that take effect together, or are undone together.

Goal: what a block of calls does becomes final at one moment, the *commit*, and what was done is undone by the
users' own rollback hooks if the block fails. A transaction opened inside another is its *child*; the task engine
opens one around each attempt of a task run, so tasks are children of the transaction, or of the task, around them.

::

    PENDING ── enter ── ACTIVE ── stage ── STAGED ─┬─ commit ──── COMMITTED     children, commit hooks, then the value
                          └────────────────────────┴─ rollback ── ROLLED_BACK   own rollback hooks, then the children

Both walk a tree of transactions: commit in the order of the children, rollback last to first. Who commits, and when,
is the *commit mode*: EAGER at its own exit; LAZY with its parent, or at its exit when there is none; OFF likewise, but
without a parent it is rolled back unless it was committed by hand. With a ``key`` the staged value is written under
it, and who finds a value there when entering is COMMITTED from the start: the block may skip its work and ``read``.

What does not work, and why
---------------------------
* *Committing on the way.* A child that wrote its value when it ended could not be undone with its siblings.
* *Stopping a rollback at the first hook that raises.* The remaining effects would stay for ever. It is logged, and
  the other hooks and children have their turn.
* *Going by the children alone.* A submitted child may end when its parent has long ended. It does then what became of
  the parent: commits itself after a commit, is undone after a rollback. A child that ends in an open parent
  which was rolled back waits for the parent's exit: an outer task that catches the failure stages again, and commits.
* *Undoing what goes on elsewhere.* A suspended flow run, and one whose log refuses us because another process took it
  over, is executed again from the top; its ended calls are handed back. So a block that is left by Pause, LogError or
  StorageError is neither committed nor rolled back here; the next execution does either.
* *Rolling back a parent for an attempt that is made again.* Only a failure for good is one: see ``spares_parent``.
* *One holder for each thread.* Transactions on one key may interleave on one loop; each is a holder of its own. But
  a child that waits for the lock of its parent, or of a sibling that ended and waits for the parent's commit, waits
  for ever: relatives share a lock.

The rule for locks (SERIALIZABLE): got when entering, given back once, by whatever comes first of commit, rollback, and
an exit that leaves nothing to be decided. The lock is a lease, so user code runs while it is held (invariant I9).

In the log a ``committed`` note follows the commit of a task run (``after_commit``), ``rolled_back`` its hooks. A call
that is handed back without the first joins the transaction around it again: hooks run at least once. One with the
second is executed again.

Known holes: what a child committed EAGER, or before a later sibling's commit failed, stays. A call whose process is
killed between its rollback hooks and the note is handed back as done. Hooks are not part of the transaction they
belong to: what they call opens transactions of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._locks import IsolationLevel
from ._transaction_lifecycle import BaseTransaction, get_transaction
from ._transaction_parts import CommitMode, TransactionState
from ._waits import AsyncioWaits, BlockingWaits, Outcome, finish

if TYPE_CHECKING:
    from types import TracebackType

    from ._transaction_lifecycle import Hook, Logger
    from .results import ResultRecord, ResultStore

__all__ = [
    "AsyncTransaction", "BaseTransaction", "CommitMode", "IsolationLevel", "Transaction", "TransactionState",
    "atransaction", "get_transaction", "transaction",
]  # fmt: skip


class Transaction(BaseTransaction):
    """A transaction of blocking code, entered by ``with``. Coroutine hooks are run to their end."""

    __slots__ = ()
    _is_plain = True
    waits = BlockingWaits()

    def _ask(self, method: str, *args: Any) -> Any:
        return getattr(self.store, method)(*args)

    def __enter__(self) -> Transaction:
        self._prepare()
        if self.key is not None:
            self.begin()
        self._activate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._left_at_once():
            finish(self.leave(error))

    def begin(self) -> None:
        """Lock the key if the isolation level says so, and look whether a value stands under it."""
        finish(self._begin())

    def read(self) -> ResultRecord[Any] | None:
        """The record under the key; None without key or store. Works after the exit too."""
        return finish(self._read())

    def reset(self) -> None:
        """Stop being the current transaction, and go to the parent. Called by the exit."""
        finish(self._reset())

    def commit(self) -> bool:
        """Commit the children, run the commit hooks, write the value. False if it was ended before, or if something
        went wrong: then it is rolled back, and what went wrong is logged."""
        return finish(self._commit())

    def rollback(self) -> bool:
        """Run the rollback hooks, last to first, then roll the children back, last to first. False if it was ended
        before. A hook that raises is logged, and the others have their turn."""
        return finish(self._rollback())

    def run_hook(self, hook: Hook, hook_type: str) -> None:
        """Run a hook ("commit" or "rollback"), announced in the log; what it raises is raised."""
        finish(self._run_hook(hook, hook_type))


class AsyncTransaction(BaseTransaction):
    """A transaction of coroutines, entered by ``async with``. Plain hooks run in a thread, for they may block."""

    __slots__ = ()
    _is_plain = True
    waits = AsyncioWaits()

    async def _ask(self, method: str, *args: Any) -> Any:
        return await getattr(self.store, f"a{method}")(*args)

    async def _call_hook(self, hook: Hook, is_loud: bool) -> None:
        if not is_loud or _is_coroutine_function(hook):  # a hook of our own does not block
            await super()._call_hook(hook, is_loud)
            return
        result = (await self.waits.block(_outcome, hook, self)).unwrap()
        if hasattr(result, "__await__"):
            await result

    async def __aenter__(self) -> AsyncTransaction:
        await self.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave(error)

    def __enter__(self) -> AsyncTransaction:
        raise NotImplementedError("an AsyncTransaction is entered by `async with`")

    def __exit__(self, *exc_info: object) -> None:
        raise NotImplementedError("an AsyncTransaction is left by `async with`")

    async def begin(self) -> None:
        """See :meth:`Transaction.begin`."""
        await self._begin()

    async def read(self) -> ResultRecord[Any] | None:
        """See :meth:`Transaction.read`."""
        return await self._read()

    async def reset(self) -> None:
        """See :meth:`Transaction.reset`."""
        await self._reset()

    async def commit(self) -> bool:
        """See :meth:`Transaction.commit`."""
        return await self._commit()

    async def rollback(self) -> bool:
        """See :meth:`Transaction.rollback`."""
        return await self._rollback()

    async def run_hook(self, hook: Hook, hook_type: str) -> None:
        """See :meth:`Transaction.run_hook`."""
        await self._run_hook(hook, hook_type)


def _outcome(hook: Hook, transaction: BaseTransaction) -> Outcome[Any]:
    """What a hook came to, as a value: a thread of asyncio's cannot hand a StopIteration over."""
    try:
        return Outcome(hook(transaction))
    except Exception as error:  # user code: whatever it raises is its outcome
        return Outcome(error=error)


def _is_coroutine_function(hook: Hook) -> bool:
    code = getattr(getattr(hook, "__func__", hook), "__code__", None)
    return code is not None and bool(code.co_flags & 0x80)


def _options(key: str | None, store: ResultStore | None, options: dict[str, Any]) -> dict[str, Any]:
    if key is not None and store is None:
        from .results import get_result_store  # most transactions have no key, and need no store

        store = get_result_store()
    return {"key": key, "store": store, **options}


def transaction(
    key: str | None = None,
    store: ResultStore | None = None,
    commit_mode: CommitMode | str | None = None,
    isolation_level: IsolationLevel | str | None = None,
    overwrite: bool = False,
    write_on_commit: bool = True,
    logger: Logger | None = None,
) -> Transaction:
    """A transaction for ``with``; yields it.

    With a `key` the staged value is written under it (in `store`, else that of the current run, else a default one)
    when the transaction commits; if a value stands there when it is entered, it is COMMITTED from the start, unless
    `overwrite`. `commit_mode` and `isolation_level` come from the transaction around it unless given, and are LAZY and
    READ_COMMITTED without one; SERIALIZABLE needs a store with a lock manager, or ConfigurationError is raised.
    With `write_on_commit` false nothing is written. `logger` announces the hooks."""
    return Transaction(
        **_options(key, store, {"commit_mode": commit_mode, "isolation_level": isolation_level}),
        overwrite=overwrite,
        write_on_commit=write_on_commit,
        logger=logger,
    )


def atransaction(
    key: str | None = None,
    store: ResultStore | None = None,
    commit_mode: CommitMode | str | None = None,
    isolation_level: IsolationLevel | str | None = None,
    overwrite: bool = False,
    write_on_commit: bool = True,
    logger: Logger | None = None,
) -> AsyncTransaction:
    """A transaction for ``async with``; see :func:`transaction`."""
    return AsyncTransaction(
        **_options(key, store, {"commit_mode": commit_mode, "isolation_level": isolation_level}),
        overwrite=overwrite,
        write_on_commit=write_on_commit,
        logger=logger,
    )
