# SPDX-License-Identifier: Apache-2.0
"""Transactions inside of others: what the task engine uses, mixed colours, threads, and children that are late."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext, suppress
from contextvars import copy_context

import pytest

from microflow._waits import finish
from microflow.exceptions import Fenced
from microflow.transactions import BaseTransaction, TransactionState, atransaction, get_transaction, transaction
from tests.support import PATIENCE, both
from tests.transactions_support import Tale, ends_with, entered, new, run

COMMITTED, ROLLED_BACK = TransactionState.COMMITTED, TransactionState.ROLLED_BACK

# ------------------------------------------------------------------------------------- what the task engine uses


@both
def test_an_attempt_that_is_made_again_leaves_the_parent_alone_until_the_failure_is_final(colour):
    """A3: what siblings did is undone only when a task failed for good."""
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as parent:
            async with entered(new(colour)) as sibling:
                tale.stage(sibling, "sibling")
            attempt = new(colour)
            attempt.spares_parent = True
            await attempt.enter()
            async with entered(new(colour)) as inner:
                tale.stage(inner, "inner")
            await attempt.leave(RuntimeError("first attempt"))
            assert attempt.is_rolled_back()
            assert not parent.is_rolled_back()
            assert tale == ["undo inner"]
            await attempt.roll_parent_back()
            assert parent.is_rolled_back()
            assert tale == ["undo inner", "undo sibling"]
            await parent.roll_parent_back()  # there is none

    run(colour, body)


@both
def test_after_commit_is_called_when_nothing_can_undo_it_any_more(colour):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as parent:
            async with entered(new(colour)) as child:
                tale.stage(child, "child")
                child.after_commit = lambda txn: tale.append(f"note {txn.state.value}")
            parent.after_commit = lambda txn: tale.append("note parent")
        assert tale == ["commit child", "note COMMITTED", "note parent"]
        with ends_with(RuntimeError()) as error:
            async with entered(new(colour)) as failing:
                failing.after_commit = lambda txn: tale.append("never")
                raise error
        assert len(tale) == 3

    run(colour, body)


@both
def test_when_the_log_refuses_a_note_whoever_commits_hears_of_it(colour):
    """Another process has the run: what is not committed yet is neither committed nor undone here."""
    tale = Tale()

    refusal = Fenced("another process has the run")

    def refuse(txn: BaseTransaction) -> None:
        raise refusal

    async def body() -> None:
        parent = new(colour)
        with ends_with(refusal):
            async with entered(parent):
                for name in "ab":
                    async with entered(new(colour)) as child:
                        tale.stage(child, name)
                        child.after_commit = refuse
        assert tale == ["commit a"]
        assert [each.state for each in (*parent.children, parent)] == [COMMITTED, TransactionState.STAGED, parent.state]
        assert parent.state not in (COMMITTED, ROLLED_BACK)
        assert get_transaction() is None

    run(colour, body)


# ------------------------------------------------------------------------------------- colours mixed, late children


@pytest.mark.parametrize("error", [None, RuntimeError("no")], ids=["commit", "rollback"])
@pytest.mark.parametrize("outermost", [transaction, atransaction])
def test_blocking_and_async_transactions_nest_in_each_other(outermost, error):
    tale = Tale()
    kind = "commit" if error is None else "undo"
    innermost = atransaction if outermost is transaction else transaction

    async def later(txn: BaseTransaction) -> None:
        await asyncio.sleep(0)
        tale.append("coroutine hook")

    async def body() -> None:
        with nullcontext() if error is None else ends_with(error):
            async with entered(outermost()) as outer, entered(innermost()) as middle, entered(outermost()) as inner:
                for name, txn in (("outer", outer), ("middle", middle), ("inner", inner)):
                    tale.stage(txn, name)
                inner.stage("", [later], [later])
                if error is not None:
                    raise error
        expected = ["inner", "middle", "outer"]
        told = [each for each in tale if each != "coroutine hook"]
        assert told == [f"{kind} {name}" for name in expected]
        assert tale.count("coroutine hook") == 1
        expected_state = COMMITTED if kind == "commit" else ROLLED_BACK
        assert {txn.state for txn in (outer, middle, inner)} == {expected_state}

    asyncio.run(body())


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
@both
def test_a_child_that_ends_after_its_parent_does_what_became_of_the_parent(colour, fails):
    """A16: as a submitted task that outlives the task which submitted it."""
    tale = Tale()

    async def body() -> None:
        with suppress(RuntimeError):
            async with entered(new(colour)):
                context = copy_context()
                if fails:
                    raise RuntimeError

        async def late() -> None:
            async with entered(new(colour)) as child:
                tale.stage(child, "child")
            assert child.state is (ROLLED_BACK if fails else COMMITTED)

        if colour.isasync:
            await context.run(asyncio.get_running_loop().create_task, late())
        else:
            context.run(finish, late())
        assert tale == ["undo child" if fails else "commit child"]

    run(colour, body)


@both
def test_a_child_that_ends_while_its_parent_waits_for_a_grandparent_is_committed_with_them(colour):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as grandparent:
            async with entered(new(colour)) as parent:
                context = copy_context()
            child = new(colour)
            context.run(child._prepare)
            assert child.get_parent() is parent
            token = context.run(child._activate)
            assert token is None
            tale.stage(child, "child")
            assert context.run(child._left_at_once)
            assert tale == []
        assert tale == ["commit child"]
        assert grandparent.is_committed()

    run(colour, body)


@both
def test_children_that_end_in_threads_while_their_parent_ends_are_all_committed(colour):
    """None is lost between the parent's last look at its children and its being committed."""
    tale = Tale()
    many = 40

    async def body() -> None:
        async with entered(new(colour)) as parent:
            threads = []
            start = threading.Event()

            def work(name: str) -> None:
                start.wait(PATIENCE)
                with transaction() as child:
                    tale.stage(child, name)

            for number in range(many):
                threads.append(threading.Thread(target=copy_context().run, args=(work, str(number))))
                threads[-1].start()
            parent.stage("", None, [lambda txn: start.set()])
        for thread in threads:
            thread.join(PATIENCE)

    run(colour, body)
    assert sorted(tale) == sorted(f"commit {number}" for number in range(many))


def test_transactions_of_concurrent_coroutines_do_not_become_each_others_parents():
    async def one(name: str) -> BaseTransaction | None:
        async with atransaction() as txn:
            await asyncio.sleep(0)
            assert get_transaction() is txn
            return txn.get_parent()

    async def body() -> None:
        async with atransaction() as outer:
            assert all(parent is outer for parent in await asyncio.gather(*map(one, "abc")))

    asyncio.run(body())
