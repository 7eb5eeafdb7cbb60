# SPDX-License-Identifier: Apache-2.0
"""The transaction of a task run's attempt: its key, its hooks, and what the log is told of it.

Each attempt is a transaction, inside of the one around it. Its success stages the result with the task's hooks; who
commits, and when, is said in ``transactions``. What is particular here:

* A result is looked up and stored under a key only when it is to be persisted. When no key can be made the call is
  run, its result is not stored, and one warning for each task names the argument.
* Whatever goes wrong in committing never fails the run: its COMPLETED is in the log before.
* An attempt that fails, by raising or by returning a state that is not COMPLETED, is rolled back, and nothing is
  stored. The transaction around it is rolled back only for a failure that no retry follows.
* A run is noted as rolled back where a transaction was opened by hand around it, or where it has hooks or a key: in a
  program that does not use transactions, a failure undoes nothing, and says nothing of the kind.
* The note ``committed`` follows the commit. A completed call without it, handed back in a re-execution, joins the
  transaction around it again, so that its hooks run at least once, at the commit or at the rollback of the new one.

This room is loaded only when somebody can tell a transaction from none: when a task of the program has hooks or
persists its results, or something has loaded ``transactions``.

Known hole: a program whose very first import of ``transactions`` happens inside of a running task finds no transaction
of that task around it. Imports at the top of a module do not have that.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ._loggers import WARNING
from ._waits import AsyncioWaits
from .cache_policies import CachePolicy
from .context import FlowRunContext, TaskRunContext
from .results import get_result_store
from .settings import current_settings
from .transactions import AsyncTransaction, Transaction, get_transaction

if TYPE_CHECKING:
    from ._task_lifecycle import BaseTaskRunEngine
    from ._task_transitions import TaskTransitions
    from ._transaction_lifecycle import BaseTransaction
    from .results import ResultStore
    from .states import State
    from .tasks import Task

_warned: set[str] = set()


def store_of(task: Task[Any, Any]) -> ResultStore:
    """Where the results of a run of `task` that begins here are persisted."""
    around = get_transaction()
    lock_manager = getattr(around.store, "lock_manager", None) if around is not None else None
    return get_result_store().update_for_task(task, lock_manager)


def compute_key(engine: BaseTaskRunEngine[Any]) -> str | None:
    """The key under which the result of this call is found again; None for no caching."""
    task, policy = engine.task, engine.task.cache_policy
    if isinstance(policy, CachePolicy):
        flow_context = FlowRunContext.get()
        try:
            return policy.compute_key(
                task_ctx=TaskRunContext.get(),
                inputs=engine.parameters,
                flow_parameters={} if flow_context is None else flow_context.parameters,
            )
        except Exception as error:  # the user's key function, or an argument without a stable content
            if task.name not in _warned:
                _warned.add(task.name)
                message = "Error encountered when computing cache key of task %r, so its result is not stored: %s"
                engine._log(WARNING, message, task.name, error, error=error)
            return None
    if task.result_storage_key is not None:
        context = TaskRunContext.get()
        store = (context.result_store if context is not None else None) or store_of(task)
        return store.storage_key_fn()
    return None


def new_transaction(engine: BaseTaskRunEngine[Any]) -> BaseTransaction:
    """The transaction of an attempt that begins now, in its run context; not entered."""
    context, task = TaskRunContext.get(), engine.task
    if context is None or not context.persist_result:
        plain: BaseTransaction = _kind(engine)(isolation_level=None)
        plain.is_attempt = True
        return plain
    key = engine.compute_transaction_key()
    # the items of a generator are not stored: it runs whatever stands under its key, and is not Cached
    refresh = True if engine._is_consumed else task.refresh_cache
    made: BaseTransaction = _kind(engine)(
        key=key,
        store=context.result_store,
        isolation_level=getattr(task.cache_policy, "isolation_level", None),
        overwrite=current_settings().task_refresh_cache if refresh is None else refresh,
        logger=engine.logger,
    )
    made.is_attempt = True
    return made


def _kind(engine: BaseTaskRunEngine[Any]) -> Any:
    return AsyncTransaction if isinstance(engine.waits, AsyncioWaits) else Transaction


def stage(engine: TaskTransitions[Any], transaction: BaseTransaction, state: State[Any]) -> None:
    """Stage a COMPLETED state's value, with the task's hooks. Called before the state is recorded."""
    task, value = engine.task, state.data
    if transaction.is_committed():
        state.name = "Cached"
        return
    store: Any = transaction.store
    if transaction.key is not None and store is not None:
        expiration = task.cache_expiration
        until = None if expiration is None else datetime.now(timezone.utc) + expiration
        value = store.create_result_record(value.load(), transaction.key, until)
        state.data = value
        state.state_details.cache_key, state.state_details.cache_expiration = transaction.key, until
    _stage(engine, transaction, value)


def _stage(engine: TaskTransitions[Any], transaction: BaseTransaction, value: Any) -> None:
    task = engine.task
    has_hooks = bool(task.on_commit_hooks or task.on_rollback_hooks)
    has_effects = has_hooks or transaction.key is not None
    hooks = [*task.on_rollback_hooks]
    if has_effects or transaction.is_opened_by_hand():
        hooks.insert(0, engine.handle_rollback)  # called last
    transaction.stage(value, hooks, task.on_commit_hooks)
    if has_effects:
        transaction.after_commit = lambda _: engine._note("committed")
    if has_hooks:
        transaction._logger = engine.logger


async def join_again(engine: BaseTaskRunEngine[Any], ended: State[Any]) -> None:
    """A completed call that was not committed is handed back: it joins the transaction around it, or commits now."""
    details = ended.state_details
    key, store = details.cache_key, store_of(engine.task)
    transaction = _kind(engine)(
        key=key, store=store if key is not None else None, isolation_level=None, overwrite=True, logger=engine.logger
    )
    value = ended.data
    if key is not None:
        value = store.create_result_record(value.load(), key, details.cache_expiration)
    transaction.is_attempt = True
    await transaction.enter()
    _stage(engine, transaction, value)
    await transaction.leave()
