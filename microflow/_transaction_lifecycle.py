# SPDX-License-Identifier: Apache-2.0
"""The life of a transaction: every rule, said once for blocking and async transactions.

The essay at the head of ``transactions`` says what the rules are for, and what does not work.
"""

from __future__ import annotations

import copy
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from ._definitions import hook_name
from ._forks import new_lock
from ._locks import IsolationLevel
from ._transaction_parts import CommitMode, Lease, TransactionState
from ._waits import settle
from .context import FlowRunContext
from .exceptions import (
    ConfigurationError,
    LogError,
    MissingContextError,
    Pause,
    SerializationError,
    StorageError,
)
from .logging import get_logger, get_run_logger

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence
    from contextvars import Token

    from ._waits import Waits
    from .results import ResultRecord, ResultStore

    Hook = Callable[..., object]
    Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


# looked up once: a member of an Enum costs three times as much as a global
_ACTIVE, _STAGED = TransactionState.ACTIVE, TransactionState.STAGED
_COMMITTED, _ROLLED_BACK = TransactionState.COMMITTED, TransactionState.ROLLED_BACK
_ENDED = (_COMMITTED, _ROLLED_BACK)
_LAZY, _EAGER = CommitMode.LAZY, CommitMode.EAGER

_current: ContextVar[BaseTransaction | None] = ContextVar("microflow_transaction", default=None)

#: seconds after which one that waits for a lock looks whether it may share a relative's
LOOK_AGAIN = 0.1

# Guards ``children`` and the step into an ended state of all transactions: a child that ends in another thread either
# is in the list when its parent looks there for the last time, or finds what became of the parent. Held for a few
# instructions, never while a hook runs.
_family = new_lock()


def _goes_on_elsewhere(error: BaseException | None) -> bool:
    """Whether a block that is left by `error` goes on in another execution of its flow run."""
    return isinstance(error, (Pause, LogError, StorageError)) and FlowRunContext.get() is not None


class _Required:
    """Stands for a default that was not given."""


class BaseTransaction:
    """What blocking and async transactions have in common. All arguments are keywords; see :func:`transaction`."""

    # A transaction is made for every attempt of every task run, hence the slots, and neither holder, names nor logger
    # until they are asked for. One without key, hooks and children is entered and left in 0.9 µs.
    __slots__ = (
        "_lease",
        "_logger",
        "_parent",
        "_token",
        "_values",
        "after_commit",
        "children",
        "commit_mode",
        "is_attempt",
        "isolation_level",
        "key",
        "on_commit_hooks",
        "on_rollback_hooks",
        "overwrite",
        "spares_parent",
        "staged_value",
        "state",
        "store",
        "write_on_commit",
    )

    waits: ClassVar[Waits]
    _is_plain: ClassVar[bool] = False

    # the public steps: plain methods of the blocking form, coroutines of the other; settle() takes both
    begin: Callable[[], Any]
    commit: Callable[[], Any]
    rollback: Callable[[], Any]
    reset: Callable[[], Any]
    run_hook: Callable[[Hook, str], Any]
    _ask: Callable[..., Any]  # calls a method of the store by its name: the one for coroutines in the async form

    def __init_subclass__(cls) -> None:
        # what a user's subclass overrides must be felt: no shortcuts
        cls._is_plain = "_is_plain" in cls.__dict__

    def __init__(
        self,
        *,
        store: ResultStore | None = None,
        key: str | None = None,
        children: Sequence[BaseTransaction] = (),
        commit_mode: CommitMode | str | None = None,
        isolation_level: IsolationLevel | str | None = IsolationLevel.READ_COMMITTED,
        state: TransactionState = TransactionState.PENDING,
        on_commit_hooks: Sequence[Hook] = (),
        on_rollback_hooks: Sequence[Hook] = (),
        overwrite: bool = False,
        logger: Logger | None = None,
        write_on_commit: bool = True,
    ) -> None:
        self.store = store
        self.key = key
        self.children = [*children]
        self.commit_mode: Any = CommitMode(commit_mode) if commit_mode.__class__ is str else commit_mode
        if isolation_level.__class__ is str:
            isolation_level = IsolationLevel(isolation_level)  # ValueError for others
        self.isolation_level: Any = isolation_level
        self.state = state
        self.on_commit_hooks = [*on_commit_hooks]
        self.on_rollback_hooks = [*on_rollback_hooks]
        self.overwrite = overwrite
        self.write_on_commit = write_on_commit
        self.staged_value: Any = None
        #: called with the transaction right after its commit, the lock given back. What it raises goes to who commits:
        #: the task engine appends the note ``committed`` here, and must hear when the log refuses it
        self.after_commit: Callable[[Any], object] | None = None
        #: set by the task engine: this attempt may be made again, so its rollback leaves the parent alone. The engine
        #: calls ``roll_parent_back`` when the failure turned out to be final
        self.spares_parent = False
        #: set by the task engine: nobody opened this one by hand
        self.is_attempt = False
        self._parent: BaseTransaction | None = None
        self._token: Token[BaseTransaction | None] | None = None  # there while entered
        self._lease: Lease | None = None  # there while the lock is ours
        self._values: dict[str, Any] | None = None
        self._logger = logger

    def __eq__(self, other: object) -> bool:
        """Field by field, as values; two of the same fields are equal."""
        if type(other) is not type(self):
            return NotImplemented
        return self is other or all(getattr(self, name) == getattr(other, name) for name in _COMPARED)

    __hash__ = None  # type: ignore[assignment]  # equality changes with the fields

    def __repr__(self) -> str:
        key = "" if self.key is None else f"key={self.key!r}, "
        return f"{type(self).__name__}({key}state={self.state.value})"

    # ---------------------------------------------------------------------------------- what it knows

    @property
    def logger(self) -> Logger:
        """Where hooks are announced: the logger given, else the current run's, else ``microflow.transactions``."""
        if self._logger is None:
            try:
                self._logger = get_run_logger()
            except MissingContextError:
                self._logger = get_logger("transactions")
        return self._logger

    @classmethod
    def get_active(cls) -> BaseTransaction | None:
        """The innermost transaction that is entered here, or None."""
        return _current.get()

    def get_parent(self) -> BaseTransaction | None:
        """The transaction inside of which this one was entered, also after its exit."""
        return self._parent

    def is_pending(self) -> bool:
        """Whether it was not entered yet."""
        return self.state is TransactionState.PENDING

    def is_active(self) -> bool:
        """Whether it was entered, and nothing is staged."""
        return self.state is _ACTIVE

    def is_staged(self) -> bool:
        """Whether a value is staged and not committed yet."""
        return self.state is _STAGED

    def is_committed(self) -> bool:
        """Whether it was committed, or found a value under its key when it was entered."""
        return self.state is _COMMITTED

    def is_rolled_back(self) -> bool:
        """Whether it was rolled back."""
        return self.state is _ROLLED_BACK

    def stage(
        self,
        value: Any,
        on_rollback_hooks: Sequence[Hook] | None = None,
        on_commit_hooks: Sequence[Hook] | None = None,
    ) -> None:
        """Set the value that the commit writes, and add hooks. Ignored when it is committed already.

        One that was rolled back is staged again: its commit is decided anew at its exit."""
        if self.state is _COMMITTED:
            return
        if on_commit_hooks:
            self.on_commit_hooks += on_commit_hooks
        if on_rollback_hooks:
            self.on_rollback_hooks += on_rollback_hooks
        self.staged_value = value
        self.state = _STAGED

    def set(self, name: str, value: Any) -> None:
        """Keep a value for the hooks, and for the children, which see it and cannot change it."""
        if self._values is None:
            self._values = {}
        self._values[name] = value

    def get(self, name: str, default: Any = _Required) -> Any:
        """A copy of the value set under `name` here, or in the nearest transaction around; else `default`.

        ValueError when there is neither."""
        if self._values is not None and name in self._values:
            return copy.deepcopy(self._values[name])
        if self._parent is not None:
            return self._parent.get(name, default)
        if default is _Required:
            raise ValueError(f"Could not retrieve value for unknown key {name!r}: no transaction here has set it.")
        return default

    def is_opened_by_hand(self) -> bool:
        """Whether this one, or one around it, was opened by the user; the others are attempts of task runs."""
        around: BaseTransaction | None = self
        while around is not None and around.is_attempt:
            around = around._parent
        return around is not None

    def add_child(self, child: BaseTransaction) -> None:
        """Have `child` committed or rolled back with this one."""
        with _family:
            self.children.append(child)

    # ------------------------------------------------------------------------------------------ enter

    def _prepare(self) -> None:
        """What an entry inherits and checks."""
        if self._token is not None:
            raise RuntimeError(f"{self!r} is entered already; enter another one")
        self._parent = parent = _current.get()
        if self.commit_mode is None:
            self.commit_mode = _LAZY if parent is None else parent.commit_mode
        if self.isolation_level is None:
            self.isolation_level = IsolationLevel.READ_COMMITTED if parent is None else parent.isolation_level
        self.state = _ACTIVE

    async def _begin(self) -> None:
        """Lock the key and look what is stored under it."""
        store, key = self.store, self.key
        if store is None or key is None:
            return
        if not store.supports_isolation_level(self.isolation_level):
            raise ConfigurationError(
                f"Isolation level {self.isolation_level.name} is not supported by provided configuration: "
                f"the result store of the transaction on key {key!r} has no lock manager. Give it one."
            )
        try:
            if self.isolation_level is IsolationLevel.SERIALIZABLE:
                await self._lock(store, key)
            if not self.overwrite and await settle(self._ask("exists", key)):
                self.state = _COMMITTED
        except BaseException:
            self._release()
            raise

    async def _lock(self, store: ResultStore, key: str) -> None:
        """Get the lock on the key, or share that of a relative, which keeps it until the whole family is committed:
        to wait for that would be to wait for ourselves. A relative may come to that point while we wait."""
        lease = Lease(os.urandom(16).hex())
        try:
            while not (self._shares_lease() or await settle(self._ask("acquire_lock", key, lease.holder, LOOK_AGAIN))):
                pass
        except BaseException:  # an interrupt may have come before the lock was got, or after
            if store.is_lock_holder(key, lease.holder):
                store.release_lock(key, lease.holder)
            raise
        if self._lease is None:
            self._lease = lease

    def _shares_lease(self) -> bool:
        with _family:
            above = self._parent
            while above is not None:
                lease = above._lease_on(self)
                if lease is not None:
                    lease.users += 1
                    self._lease = lease
                    return True
                above = above._parent
        return False

    def _lease_on(self, other: BaseTransaction) -> Lease | None:
        """The lock that this one or a child of it has on the key of `other`."""
        if self._lease is not None and self.key == other.key and self._locks() == other._locks():
            return self._lease
        return next((lease for child in self.children if (lease := child._lease_on(other)) is not None), None)

    def _locks(self) -> Any:
        return None if self.store is None else self.store.lock_manager

    async def enter(self) -> None:
        """Enter, in code that is written once for both colours. Undone by :meth:`leave`."""
        self._prepare()
        if self.key is not None:
            await settle(self.begin())
        self._activate()

    def _activate(self) -> None:
        self._token = _current.set(self)

    # ------------------------------------------------------------------------------------------- leave

    async def leave(self, error: BaseException | None = None) -> None:
        """Leave, in code that is written once for both colours; `error` is what ended the block, if anything.

        Raises nothing that a hook raised: what became of it is in ``state``."""
        if error is None and self._left_at_once():
            return
        if self._token is None:
            raise RuntimeError(f"{self!r} was not entered, so it cannot be left")
        if _goes_on_elsewhere(error):
            self._restore()
            self._release()
            return
        try:
            if error is not None:
                await settle(self.rollback())
            elif self.commit_mode is _EAGER or (self._parent is None and self.commit_mode is _LAZY):
                await settle(self.commit())
            elif self._parent is None:
                await settle(self.rollback())
        finally:
            await settle(self.reset())

    def has_effects(self) -> bool:
        """Whether its commit would run or write anything."""
        return bool(self.key is not None or self.on_commit_hooks or self.after_commit or self.children)

    def _left_at_once(self) -> bool:
        """The exit of one that has nothing to run or write, as that of most task runs, in plain code."""
        mode, parent = self.commit_mode, self._parent
        if not self._is_plain or self.key is not None or self.state in _ENDED or self._token is None:
            return False
        if mode is _EAGER or (parent is None and mode is _LAZY):
            if self.on_commit_hooks or self.after_commit is not None:
                return False
            with _family:
                if self.children:
                    return False
                self.state = _COMMITTED
        elif parent is None or not self._is_handed_to(parent):
            return False
        _current.reset(self._token)
        self._token = None
        return True

    def _is_handed_to(self, parent: BaseTransaction) -> bool:
        """Become a child of `parent`, unless it is too late for that."""
        with _family:
            if parent.state is _COMMITTED or (parent.state is _ROLLED_BACK and parent._token is None):
                return False
            parent.children.append(self)
            return True

    def _restore(self) -> None:
        if self._token is None:
            raise RuntimeError(f"{self!r} was not entered, so it cannot be reset")
        _current.reset(self._token)
        self._token = None

    async def _reset(self) -> None:
        """Leave the transaction to its parent, or do what became of that one."""
        self._restore()
        parent = self._parent
        if self.state is _ROLLED_BACK:
            await self._roll_children_back()  # those that ended after it was rolled back
            if not self.spares_parent:
                await self.roll_parent_back()
        elif self.state is not _COMMITTED and parent is not None and not self._is_handed_to(parent):
            await settle(self.commit() if parent.state is _COMMITTED else self.rollback())
        if self.state in _ENDED:
            self._release()

    async def roll_parent_back(self) -> None:
        """Roll the transaction around this one back at once, which failed for good."""
        if self._parent is not None:
            (await self.waits.call(self._parent.rollback)).unwrap()

    # ------------------------------------------------------------------------------------------ commit

    async def _commit(self) -> bool:
        if self.state in _ENDED:
            self._release()
            return False
        try:
            if not await self._commit_all():
                return False
        except LogError:  # a child's note: the flow run goes on elsewhere
            raise
        except SerializationError as error:
            self.logger.warning("Encountered an error while serializing result for transaction %r: %s", self.key, error)
            await settle(self.rollback())
            return False
        except Exception as error:  # a hook's, or the store's: the caller's value stands, its effects are undone
            message = "An error was encountered while committing transaction %r"
            self.logger.error(message, self.key, exc_info=error)
            await settle(self.rollback())
            return False
        except BaseException:  # an interrupt: undone like a failure, then on its way
            await settle(self.rollback())
            raise
        finally:
            self._release()
        if self.after_commit is not None:
            self.after_commit(self)
        return True

    async def _commit_all(self) -> bool:
        """Children, hooks, value; then once more those children that ended meanwhile. False when a hook rolled
        the transaction back."""
        done = await self._commit_children(0)
        for hook in [*self.on_commit_hooks]:
            await settle(self.run_hook(hook, "commit"))
        if self.state is not _ROLLED_BACK and self.key is not None and self.write_on_commit:
            await self._write()
        while True:
            with _family:
                if self.state is _ROLLED_BACK:
                    return False
                if done == len(self.children):
                    self.state = _COMMITTED
                    return True
            done = await self._commit_children(done)

    async def _commit_children(self, done: int) -> int:
        while done < len(self.children):
            child = self.children[done]
            done += 1
            if child.state in _ENDED:
                child._release()
                continue
            (await self.waits.call(child.commit)).unwrap()
            if child.state is _ROLLED_BACK:
                raise _ChildFailed(f"{child!r} could not be committed, so {self!r} is not either")
        return done

    async def _write(self) -> None:
        """Write the staged value under the key: None when nothing was staged, as a mark that it was done."""
        from ._records import ResultRecord  # loaded already by who made the store

        value = self.staged_value
        if self.store is None:
            return
        if isinstance(value, ResultRecord):
            await settle(self._ask("persist_result_record", value, self._holder()))
        else:
            await settle(self._ask("write", value, self.key, None, self._holder()))

    # ---------------------------------------------------------------------------------------- rollback

    async def _rollback(self) -> bool:
        with _family:
            ended, self.state = self.state in _ENDED, self.state if self.state in _ENDED else _ROLLED_BACK
        try:
            if ended:
                return False
            for hook in reversed(self.on_rollback_hooks):
                try:
                    await settle(self.run_hook(hook, "rollback"))
                except Exception as error:  # the other effects are to be undone all the same
                    self._say_not_rolled_back(hook_name(hook), error)
            await self._roll_children_back()
            return True
        finally:
            self._release()

    async def _roll_children_back(self) -> None:
        for child in reversed(self.children):
            if child.state in _ENDED:
                child._release()
                continue
            outcome = await self.waits.call(child.rollback)
            if outcome.error is not None:
                self._say_not_rolled_back(repr(child), outcome.error)

    def _say_not_rolled_back(self, what: str, error: Exception) -> None:
        message = "An error was encountered while rolling back transaction %r: %s; its other effects are undone"
        self.logger.error(message, self.key, what, exc_info=error)

    # ------------------------------------------------------------------------------------ hooks and the rest

    async def _run_hook(self, hook: Hook, hook_type: str) -> None:
        """Call one hook with the transaction, outside of it: what the hook calls is not part of it."""
        name = hook_name(hook)
        is_loud = getattr(hook, "log_on_run", True)
        if is_loud:
            self.logger.info("Running %s hook %r", hook_type, name)
        token = _current.set(None)
        try:
            await self._call_hook(hook, is_loud)
        except Exception as error:
            if is_loud:
                self.logger.error("An error was encountered while running %s hook %r", hook_type, name, exc_info=error)
            raise
        finally:
            _current.reset(token)
        if is_loud:
            self.logger.info("%s hook %r finished running successfully", hook_type.capitalize(), name)

    async def _call_hook(self, hook: Hook, is_loud: bool) -> None:
        (await self.waits.call(hook, self)).unwrap()

    def _holder(self) -> str | None:
        return None if self._lease is None else self._lease.holder

    async def _read(self) -> ResultRecord[Any] | None:
        if self.store is None or self.key is None:
            return None
        record: ResultRecord[Any] = await settle(self._ask("read", self.key, self._holder()))
        return record

    def _release(self) -> None:
        """Give the lock back, once, if we have it and no relative needs it."""
        lease, self._lease = self._lease, None
        if lease is None or self.store is None or self.key is None:
            return
        with _family:
            lease.users -= 1
            if lease.users:
                return
        try:
            self.store.release_lock(self.key, lease.holder)
        except ValueError as error:  # its time was over, or somebody broke it: the work is done all the same
            self.logger.warning("The lock on %r was lost before transaction %r ended: %s", self.key, self, error)


_COMPARED = tuple(name for name in BaseTransaction.__slots__ if name not in ("_token", "_lease", "_logger", "_parent"))


class _ChildFailed(Exception):
    """A child's commit ended in its rollback."""


def get_transaction() -> BaseTransaction | None:
    """The innermost transaction that is entered here, or None. Inside of a task that is the task's own."""
    return _current.get()
