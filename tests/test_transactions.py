# SPDX-License-Identifier: Apache-2.0
"""What takes effect together or is undone together: modes, order, staging, hooks, entering and leaving."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from microflow import _transaction_lifecycle as lifecycle
from microflow._waits import settle
from microflow.exceptions import Fenced, Pause
from microflow.states import Suspended
from microflow.transactions import (
    AsyncTransaction,
    BaseTransaction,
    CommitMode,
    IsolationLevel,
    Transaction,
    TransactionState,
    atransaction,
    get_transaction,
)
from tests.behaviour_support import pins
from tests.support import both
from tests.transactions_support import Tale, ends_with, entered, new, run

LAZY, EAGER, OFF = CommitMode.LAZY, CommitMode.EAGER, CommitMode.OFF
COMMITTED, ROLLED_BACK = TransactionState.COMMITTED, TransactionState.ROLLED_BACK


# ------------------------------------------------------------------------------------- states and modes


@both
def test_a_transaction_is_pending_then_active_then_staged_then_committed(colour):
    async def body() -> None:
        txn = new(colour)
        seen = [txn.is_pending()]
        async with entered(txn) as inside:
            current: Any = get_transaction()
            assert txn is inside
            assert current is inside
            assert BaseTransaction.get_active() is current
            seen.append(txn.is_active())
            txn.stage("value")
            seen.append(txn.is_staged())
        seen.append(txn.is_committed())
        assert seen == [True] * 4
        assert get_transaction() is None
        assert not txn.is_rolled_back()

    run(colour, body)


@both
def test_a_child_takes_mode_and_isolation_from_its_parent_unless_it_has_its_own(colour):
    async def body() -> None:
        async with entered(new(colour)) as alone:
            assert (alone.commit_mode, alone.isolation_level) == (LAZY, IsolationLevel.READ_COMMITTED)
        options = {"commit_mode": "OFF", "isolation_level": "SERIALIZABLE"}
        async with entered(new(colour, **options)) as parent:
            async with entered(new(colour)) as child:
                assert (child.commit_mode, child.isolation_level) == (OFF, IsolationLevel.SERIALIZABLE)
                assert child.get_parent() is parent
            async with entered(new(colour, commit_mode=EAGER)) as child:
                assert child.commit_mode is EAGER

    run(colour, body)


@pytest.mark.parametrize("option", ["commit_mode", "isolation_level"])
@both
def test_a_mode_or_level_that_does_not_exist_is_refused(colour, option):
    with pytest.raises(ValueError, match="SOMETIMES"):
        new(colour, **{option: "SOMETIMES"})


@both
def test_children_are_committed_in_order_when_the_outermost_is_and_before_it(colour):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as outer:
            for name in "ab":
                async with entered(new(colour)) as child:
                    tale.stage(child, name)
                    async with entered(new(colour)) as grandchild:
                        tale.stage(grandchild, f"in {name}")
            tale.stage(outer, "outer")
            assert tale == []
            assert child.is_staged()
        assert tale == ["commit in a", "commit a", "commit in b", "commit b", "commit outer"]
        assert child.is_committed()
        assert grandchild.is_committed()

    run(colour, body)


@both
def test_an_error_undoes_everything_last_to_first_and_is_raised_itself(colour):
    tale, error = Tale(), RuntimeError("no")

    async def body() -> None:
        outer = new(colour)
        with ends_with(error):
            async with entered(outer):
                outer.stage("", [tale.hook("undo outer first"), tale.hook("undo outer second")], [tale.hook("commit")])
                for name in "ab":
                    async with entered(new(colour)) as child:
                        tale.stage(child, name)
                raise error
        assert tale == ["undo outer second", "undo outer first", "undo b", "undo a"]
        assert outer.is_rolled_back()
        assert child.is_rolled_back()

    run(colour, body)


@pins("task_engine", 120)
@both
def test_a_rollback_by_hand_reaches_every_ancestor(colour):
    async def body() -> None:
        async with entered(new(colour)) as outer:
            async with entered(new(colour)) as middle:
                async with entered(new(colour)) as inner:
                    assert await settle(inner.rollback()) is True
                    assert not middle.is_rolled_back()
                assert middle.is_rolled_back()
                assert not outer.is_rolled_back()
            assert outer.is_rolled_back()
        assert [each.state for each in (inner, middle, outer)] == [ROLLED_BACK] * 3
        assert await settle(outer.rollback()) is False, "it is ended already"
        assert await settle(outer.commit()) is False

    run(colour, body)


@pins("task_engine", 121)
@both
def test_without_a_parent_off_is_rolled_back_unless_committed_by_hand(colour):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour, commit_mode=OFF)) as left_alone:
            tale.stage(left_alone, "one")
        assert left_alone.is_rolled_back()
        async with entered(new(colour, commit_mode=OFF)) as by_hand:
            tale.stage(by_hand, "two")
            assert await settle(by_hand.commit()) is True
        assert by_hand.is_committed()
        async with entered(new(colour, commit_mode=LAZY)), entered(new(colour, commit_mode=OFF)) as child:
            tale.stage(child, "three")
        assert child.is_committed()
        assert tale == ["undo one", "commit two", "commit three"]

    run(colour, body)


@pins("task_engine", 122)
@both
def test_an_eager_child_stays_committed_when_its_parent_is_rolled_back(colour):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour, commit_mode=OFF)) as parent:
            async with entered(new(colour, commit_mode=EAGER)) as child:
                tale.stage(child, "child")
            assert child.is_committed()
        assert (parent.state, child.state) == (ROLLED_BACK, COMMITTED)
        assert tale == ["commit child"]

    run(colour, body)


@both
def test_what_was_rolled_back_can_be_staged_again_and_is_then_committed(colour):
    """As by an outer task that catches the failure of an inner one: siblings that ended after it are committed."""
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as outer:
            async with entered(new(colour)) as before:
                tale.stage(before, "before")
            with ends_with(RuntimeError("caught outside")) as error:
                async with entered(new(colour)):
                    raise error
            assert outer.is_rolled_back()
            async with entered(new(colour)) as after:
                tale.stage(after, "after")
            tale.stage(outer, "outer")
        assert tale == ["undo before", "commit after", "commit outer"]
        assert [each.state for each in (before, after, outer)] == [ROLLED_BACK, COMMITTED, COMMITTED]

    run(colour, body)


@both
def test_what_ends_in_a_parent_that_was_rolled_back_is_undone_with_it(colour):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as outer:
            await settle(outer.rollback())
            async with entered(new(colour)) as child:
                tale.stage(child, "child")
            assert tale == []
        assert tale == ["undo child"]
        assert child.is_rolled_back()

    run(colour, body)


# ------------------------------------------------------------------------------------- stage, set, get


@both
def test_nothing_is_staged_once_it_is_committed(colour):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as txn:
            await settle(txn.commit())
            tale.stage(txn, "late")
            assert (txn.state, txn.staged_value, txn.on_commit_hooks) == (COMMITTED, None, [])
        assert tale == []

    run(colour, body)


@pins("task_engine", 124)
@both
def test_a_name_that_was_not_set_is_an_error_that_names_it_or_the_default(colour):
    async def body() -> None:
        async with entered(new(colour)), entered(new(colour)) as txn:
            with pytest.raises(ValueError, match="missing"):
                txn.get("missing")
            assert txn.get("missing", None) is None

    run(colour, body)


@pins("task_engine", 125)
@both
def test_a_value_is_read_as_a_copy(colour):
    async def body() -> None:
        async with entered(new(colour)) as txn:
            txn.set("list", [1])
            txn.get("list").append(2)
            assert txn.get("list") == [1]

    run(colour, body)


@both
def test_a_child_sees_what_its_parent_sets_also_later_and_changes_nothing_there(colour):
    async def body() -> None:
        async with entered(new(colour)) as parent:
            async with entered(new(colour)) as child:
                parent.set("a", 1)
                assert child.get("a") == 1
                child.set("a", 2)
                assert (child.get("a"), parent.get("a")) == (2, 1)
            assert child.get("a") == 2, "its hooks may ask after its exit"

    run(colour, body)


@both
def test_without_a_key_there_is_nothing_to_read(colour):
    async def body() -> None:
        async with entered(new(colour)) as txn:
            assert await settle(txn.read()) is None

    run(colour, body)


# ------------------------------------------------------------------------------------- hooks


@pins("task_engine", 116, 119)
@both
def test_hooks_are_given_the_transaction_which_knows_its_parent_after_its_exit(colour):
    seen: list[Any] = []

    def see(txn: BaseTransaction) -> None:
        seen.append((txn, txn.get_parent(), get_transaction()))

    async def body() -> None:
        async with entered(new(colour)) as outer:
            async with entered(new(colour)) as child:
                child.stage("", [see], [see])
        with ends_with(RuntimeError()) as error:
            async with entered(new(colour)) as failing:
                async with entered(new(colour)) as undone:
                    undone.stage("", [see])
                raise error
        assert [each[:2] for each in seen] == [(child, outer), (undone, failing)]
        assert seen[0][0] is child
        assert seen[1][1] is failing

    run(colour, body)
    assert [each[2] for each in seen] == [None, None], "what a hook calls is not part of the transaction"


@pins("task_engine", 118)
@both
def test_hooks_may_be_plain_or_coroutines_whatever_the_transaction_is(colour):
    tale, threads = Tale(), set()

    async def later(txn: BaseTransaction) -> None:
        await asyncio.sleep(0)
        tale.append("coroutine")

    def plain(txn: BaseTransaction) -> None:
        threads.add(threading.current_thread())
        tale.append("plain")

    def hands_out_a_coroutine(txn: BaseTransaction) -> Any:
        return later(txn)

    async def body() -> None:
        async with entered(new(colour)) as txn:
            txn.stage("", [], [later, plain, hands_out_a_coroutine])
        with ends_with(RuntimeError()) as error:
            async with entered(new(colour)) as txn:
                txn.stage("", [plain, later])
                raise error

    run(colour, body)
    assert tale == ["coroutine", "plain", "coroutine", "coroutine", "plain"]
    assert (threading.current_thread() in threads) is not colour.isasync, "a plain hook does not block the loop"


@pytest.mark.parametrize("error", [RuntimeError("no"), StopIteration("no")], ids=repr)
@both
def test_a_commit_hook_that_raises_undoes_the_transaction_and_nobody_else_hears_of_it(colour, error, caplog):
    """Not even of a StopIteration, which coroutines and threads of asyncio cannot carry."""
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as txn:
            txn.stage("", [tale.hook("undo")], [tale.hook("first"), tale.hook("second", error), tale.hook("third")])
        assert txn.is_rolled_back()
        assert tale == ["first", "second", "undo"]

    run(colour, body)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "An error was encountered while running commit hook 'tell'" in errors
    assert any("error was encountered while committing" in each for each in errors)


@pins("task_engine", 123)
@both
def test_a_child_that_cannot_be_committed_takes_its_parent_along(colour):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour)) as parent:
            for name, errors in (("a", {}), ("b", {"commit": RuntimeError("no")}), ("c", {})):
                async with entered(new(colour)) as child:
                    tale.stage(child, name, **errors)
            tale.stage(parent, "parent")
        assert parent.is_rolled_back()
        assert tale == ["commit a", "commit b", "undo b", "undo parent", "undo c"]
        assert [each.state for each in parent.children] == [COMMITTED, ROLLED_BACK, ROLLED_BACK]

    run(colour, body)


@pins("task_engine", 123)
@both
def test_an_overridden_commit_is_called_and_may_raise(colour):
    class Broken(Transaction):
        def commit(self) -> bool:
            raise ValueError("broken")

    class BrokenAsync(AsyncTransaction):
        async def commit(self) -> bool:
            raise ValueError("broken")

    async def body() -> None:
        async with entered(new(colour)) as parent, entered(BrokenAsync() if colour.isasync else Broken()):
            pass
        assert parent.is_rolled_back()
        with pytest.raises(ValueError, match="broken"):
            async with entered(BrokenAsync() if colour.isasync else Broken()):
                pass
        assert get_transaction() is None

    run(colour, body)


@both
def test_a_rollback_hook_that_raises_is_logged_and_the_others_have_their_turn(colour, caplog):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour, commit_mode=OFF)) as outer:
            async with entered(new(colour)) as child:
                child.stage("", [tale.hook("child")])
            outer.stage("", [tale.hook("first"), tale.hook("second", RuntimeError("no")), tale.hook("third")])
        assert tale == ["third", "second", "first", "child"]
        assert (outer.state, child.state) == (ROLLED_BACK, ROLLED_BACK)

    run(colour, body)
    assert any("error was encountered while rolling back" in record.getMessage() for record in caplog.records)


@both
def test_hooks_are_announced_unless_they_ask_for_silence(colour, caplog):
    caplog.set_level(logging.INFO)

    def loud(txn: BaseTransaction) -> None: ...

    def silent(txn: BaseTransaction) -> None: ...

    silent.log_on_run = False  # type: ignore[attr-defined]

    async def body() -> None:
        async with entered(new(colour)) as txn:
            txn.stage("", [], [loud, silent])
        async with entered(new(colour, commit_mode=OFF)) as txn:
            txn.stage("", [loud, silent])

    run(colour, body)
    assert [record.getMessage() for record in caplog.records if "hook" in record.getMessage()] == [
        "Running commit hook 'loud'",
        "Commit hook 'loud' finished running successfully",
        "Running rollback hook 'loud'",
        "Rollback hook 'loud' finished running successfully",
    ]
    assert {record.name for record in caplog.records if "hook" in record.getMessage()} == {"microflow.transactions"}


@both
def test_a_logger_that_was_given_is_used(colour, caplog):
    caplog.set_level(logging.INFO)

    async def body() -> None:
        async with entered(new(colour, logger=logging.getLogger("mine"))) as txn:
            txn.stage("", [], [Tale().hook("")])

    run(colour, body)
    assert {record.name for record in caplog.records if "hook" in record.getMessage()} == {"mine"}


@both
def test_a_hook_may_roll_its_transaction_back(colour):
    async def undo(txn: BaseTransaction) -> None:
        await settle(txn.rollback())

    async def body() -> None:
        async with entered(new(colour)) as txn:
            txn.stage("", [], [undo])
        assert txn.is_rolled_back()

    run(colour, body)


# ------------------------------------------------------------------------------------- enter and leave


@both
def test_a_transaction_is_entered_once_at_a_time_and_can_be_used_again(colour):
    async def body() -> None:
        txn = new(colour)
        for _ in range(2):
            async with entered(txn):
                with pytest.raises(RuntimeError, match="entered already"):
                    await txn.enter()
                assert txn.is_active()
            assert txn.is_committed()
        for leave in (entered(txn).__aexit__(None, None, None), txn.leave(), txn.leave(RuntimeError())):
            with pytest.raises(RuntimeError, match="not entered"):
                await leave
        with pytest.raises(RuntimeError, match="not entered"):
            await settle(txn.reset())

    run(colour, body)


def test_an_async_transaction_is_not_entered_by_a_plain_with():
    with pytest.raises(NotImplementedError, match="async with"), atransaction():  # type: ignore[attr-defined]
        pass
    with pytest.raises(NotImplementedError, match="async with"):
        atransaction().__exit__(None, None, None)


def test_transactions_are_equal_field_by_field():
    assert Transaction() == Transaction()
    assert Transaction(key="a") != Transaction(key="b")
    assert Transaction() != AsyncTransaction()
    assert Transaction(children=[Transaction(key="a")]) == Transaction(children=[Transaction(key="a")])
    assert Transaction() != "a transaction"
    assert repr(Transaction(key="a")) == "Transaction(key='a', state=PENDING)"


@both
def test_a_subclass_goes_through_its_own_steps(colour):
    steps: list[str] = []

    class Seen(Transaction):
        def commit(self) -> bool:
            steps.append("commit")
            return super().commit()

        def reset(self) -> None:
            steps.append("reset")
            super().reset()

    class SeenAsync(AsyncTransaction):
        async def commit(self) -> bool:
            steps.append("commit")
            return await super().commit()

        async def reset(self) -> None:
            steps.append("reset")
            await super().reset()

    async def body() -> None:
        async with entered(SeenAsync() if colour.isasync else Seen()) as txn:
            pass
        assert txn.is_committed()
        assert steps == ["commit", "reset"]

    run(colour, body)


@both
def test_an_interrupt_in_a_commit_hook_undoes_the_transaction_and_goes_on(colour):
    tale = Tale()

    async def interrupt(txn: BaseTransaction) -> None:
        raise SystemExit

    async def body() -> None:
        txn = new(colour)
        with pytest.raises(SystemExit):
            async with entered(txn):
                txn.stage("", [tale.hook("undo")], [interrupt])
        assert txn.is_rolled_back()
        assert get_transaction() is None
        assert tale == ["undo"]

    run(colour, body)


@pytest.mark.parametrize("signal", [Pause(Suspended()), Fenced("another process has the run")], ids=repr)
@both
def test_a_block_that_goes_on_in_another_execution_is_neither_committed_nor_rolled_back(colour, signal, monkeypatch):
    tale = Tale()

    async def body() -> None:
        outer = new(colour)
        with ends_with(signal):
            async with entered(outer), entered(new(colour)) as child:
                tale.stage(child, "child")
                raise signal
        assert (outer.state, child.state) == (TransactionState.ACTIVE, TransactionState.STAGED)
        assert get_transaction() is None
        assert tale == []

    monkeypatch.setattr(lifecycle.FlowRunContext, "get", classmethod(lambda cls: object()))
    run(colour, body)


@both
def test_outside_of_flows_nothing_goes_on_elsewhere(colour):
    async def body() -> None:
        txn = new(colour)
        with pytest.raises(Fenced):
            async with entered(txn):
                raise Fenced("some run")
        assert txn.is_rolled_back()

    run(colour, body)
