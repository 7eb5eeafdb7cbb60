# SPDX-License-Identifier: Apache-2.0
"""What a task may be told: its options, how they are checked, and what follows from several of them.

Options are checked when a function is decorated, so that a mistake is reported where it stands and before
any run exists. Nothing here runs when a task is called.
"""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from importlib import import_module
from operator import index
from typing import TYPE_CHECKING, Any

from ._arguments import NotSet
from ._typing_only import TypedDict
from .settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .cache_policies import CachePolicy
    from .client.objects import TaskRun
    from .context import TaskRunContext
    from .states import State
    from .tasks import Task

    Condition = Callable[["Task[Any, Any]", TaskRun, "State[Any]"], object]
    Hook = Callable[..., object]

#: no list of delays may be longer
MAXIMUM_DELAYS = 50


class TaskOptions(TypedDict, total=False):
    """The options of a task, said once for ``@task``, ``Task`` and ``with_options``."""

    #: the function's name unless given
    name: str | None
    #: the function's docstring unless given
    description: str | None
    #: given to every run, beside those of ``tags(...)``
    tags: Iterable[str] | None
    #: part of a call's identity in a re-execution: change it to have ended calls run again
    version: str | None
    #: a template for ``str.format`` with the parameters (``"{self.shop}: {item.name}"``), or a callable,
    #: which may take ``parameters``
    task_run_name: str | Callable[..., str] | None
    #: how often a failed run is tried again
    retries: int | None
    #: seconds before each retry: a number, a list with one item for each retry (the last repeats), or a
    #: callable that is given ``retries`` and returns such a list
    retry_delay_seconds: float | list[float] | Callable[[int], list[float]] | None
    #: lengthens each delay by a random share of up to this factor
    retry_jitter_factor: float | None
    #: called with task, task run and the failed state; a false answer ends the retries
    retry_condition_fn: Condition | None
    #: seconds that each attempt may take; 0 and None: as long as it likes. A coroutine is cancelled at its next await,
    #: a blocking call on the main thread interrupted; in a worker thread the run is recorded as timed out, but its
    #: function goes on until it makes its next call: Python can stop no thread
    timeout_seconds: float | None
    #: a run that was started and not logged as ended is not started again in a re-execution: it fails
    at_most_once: bool
    #: whether ``print`` in the task logs at INFO; None: as its flow does
    log_prints: bool | None
    #: from what the key is made under which a result is found again; None: no key
    cache_policy: CachePolicy | type[NotSet] | None
    #: called with the run's context and the parameters; gives that key, or None for no key. Wins over `cache_policy`
    cache_key_fn: Callable[[TaskRunContext, dict[str, Any]], str | None] | None
    #: for how long a stored result is used
    cache_expiration: timedelta | None
    #: run and store anew, whatever is stored; None: the setting ``task_refresh_cache``
    refresh_cache: bool | None
    #: whether results are stored under their key, for other runs to find; None: if another option needs it,
    #: else as the flow does
    persist_result: bool | None
    #: where they are stored: a storage object or a folder
    result_storage: Any
    #: how they are stored: a serializer or the name of its type
    result_serializer: Any
    #: the name under which they are stored: a template with ``flow_run``, ``task_run`` and ``parameters``
    result_storage_key: str | None
    #: whether results that were stored stay in memory too
    cache_result_in_memory: bool
    #: names of the assets that the task reads beside those of its upstreams
    asset_deps: Iterable[Any] | None
    #: called with task, task run and state after the run completed
    on_completion: Iterable[Hook] | None
    #: called likewise after the run failed for good
    on_failure: Iterable[Hook] | None
    #: called likewise each time the run enters RUNNING
    on_running: Iterable[Hook] | None
    #: called with the transaction when the run's work is committed
    on_commit: Iterable[Hook] | None
    #: called with the transaction when it is rolled back
    on_rollback: Iterable[Hook] | None


# What ``with_options`` takes for "as it was", beside NotSet. Of all others None is a value.
_FALSY_KEEPS = frozenset(
    {
        "name",
        "description",
        "tags",
        "version",
        "cache_key_fn",
        "cache_expiration",
        "retry_condition_fn",
        "asset_deps",
        "on_completion",
        "on_failure",
        "on_running",
        "on_commit",
        "on_rollback",
    }
)
_NONE_KEEPS = frozenset({"cache_result_in_memory", "timeout_seconds", "at_most_once"})


def replaced(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options given to ``with_options`` that do replace the old ones."""
    return {
        name: value
        for name, value in options.items()
        if value is not NotSet
        and (name not in _NONE_KEEPS or value is not None)
        and (name not in _FALSY_KEEPS or value)
    }


def exponential_backoff(backoff_factor: float) -> Callable[[int], list[float]]:
    """Delays that double: ``backoff_factor`` seconds, then twice that, and so on, for each retry."""

    def delays(retries: int) -> list[float]:
        return [backoff_factor * 2**retry for retry in range(min(retries, MAXIMUM_DELAYS))]

    return delays


def retry_delays(given: Any, retries: int) -> float | list[float] | None:
    """The delays as a number or a list; a callable is asked now, once."""
    delays = given(retries) if callable(given) else given
    if isinstance(delays, list):
        if len(delays) > MAXIMUM_DELAYS:
            raise ValueError(f"Can not configure more than {MAXIMUM_DELAYS} retry delays per task, got {len(delays)}")
        return delays
    if delays is not None and not isinstance(delays, (int, float)):
        raise TypeError(
            f"Invalid `retry_delay_seconds` provided; must be a number, a list or a callable, "
            f"got {type(delays).__name__}"
        )
    return delays


def jitter_factor(given: Any) -> float | None:
    """How far delays may vary."""
    if given is not None and given < 0:
        raise ValueError(f"`retry_jitter_factor` must be >= 0, got {given}")
    factor: float | None = given
    return factor


def callable_or_none(option: str, given: Any) -> Any:
    """A function that the engine calls."""
    if given is not None and not callable(given):
        raise TypeError(f"`{option}` must be callable, got {type(given).__name__}")
    return given


def retries(given: Any) -> int:
    """How many attempts may follow the first; less than none counts as none."""
    try:
        return index(given)
    except TypeError:
        raise TypeError(f"`retries` must be a whole number, got {given!r}") from None


def timeout(given: Any) -> float | None:
    """Seconds, or None for no limit."""
    if not given:
        return None
    if not isinstance(given, (int, float)):
        raise TypeError(f"`timeout_seconds` must be a number of seconds, got {type(given).__name__}")
    if not given > 0:
        raise ValueError(f"`timeout_seconds` must be >= 0, got {given}")
    return float(given)


def expiration(given: Any) -> timedelta | None:
    """For how long a stored result is used. No time at all is a time too: it has expired when it is stored."""
    if given is not None and not isinstance(given, timedelta):
        raise TypeError(f"`cache_expiration` must be a timedelta, got {type(given).__name__}")
    return given


def set_of_tags(given: Any) -> set[str]:
    """The tags as a set of the task's own."""
    if isinstance(given, str):
        raise TypeError(f"`tags` must be a collection of strings, got the string {given!r}; write [{given!r}]")
    return set(given or ())


# --------------------------------------------------------------------------------- what follows for caching


class Unresolved:
    """A cache policy that follows from other options: made when it is asked for, because nearly every task has
    one, hardly any uses it, and its module must not be loaded for that."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def resolve(self, cache_key_fn: Any) -> Any:
        """The policy itself."""
        cache_policies = import_module(".cache_policies", __package__)  # only programs that cache load it
        if self is KEY_FN:
            return cache_policies.CachePolicy.from_cache_key_fn(cache_key_fn)
        return getattr(cache_policies, self.name)

    def __reduce__(self) -> str:  # there is one of each, also after a task was pickled
        return "KEY_FN" if self is KEY_FN else self.name

    def __repr__(self) -> str:
        return self.name


DEFAULT, NO_CACHE, KEY_FN = Unresolved("DEFAULT"), Unresolved("NO_CACHE"), Unresolved("cache_key_fn")


def caching(options: Mapping[str, Any], name: str) -> tuple[Any, bool | None]:
    """The cache policy, or an :class:`Unresolved` one, and ``persist_result``, as they follow from the options of
    the task called `name` and the settings of this moment."""
    settings = current_settings()
    given = _policy_given(options)
    policy, persist = given, options.get("persist_result")
    storage_key = options.get("result_storage_key")
    if options.get("cache_key_fn") is not None:
        if given not in (NotSet, None):
            _warn(f"task {name!r} has both `cache_policy` and `cache_key_fn`: `cache_key_fn` is used")
        policy = KEY_FN
    elif given is NotSet and settings.default_task_no_cache:
        policy = NO_CACHE
    stores = any(options.get(option) is not None for option in ("result_storage", "result_serializer"))
    if persist is None and (stores or storage_key is not None or policy not in (NotSet, None, NO_CACHE)):
        persist = True
    if settings.task_disable_caching:
        return NO_CACHE, persist
    if persist is False:
        if policy not in (NotSet, None, NO_CACHE):
            _warn(f"Ignoring `cache_policy` of task {name!r}, because `persist_result` is False")
        return (None if policy is None else NO_CACHE), persist
    if policy is NotSet and storage_key is None:
        return DEFAULT, persist
    # a storage key is the key: there is none to be made
    return (None if policy is not NO_CACHE and storage_key is not None else policy), persist


def _policy_given(options: Mapping[str, Any]) -> Any:
    """The user's policy, checked; the policy that stands for none as :data:`NO_CACHE`."""
    given = options.get("cache_policy", NotSet)
    if given is NotSet or given is None:
        return given
    policies: Any = sys.modules.get(f"{__package__}.cache_policies")  # loaded if there is an instance of one
    if policies is None or not isinstance(given, policies.CachePolicy):
        raise TypeError(f"`cache_policy` must be a cache policy, got {type(given).__name__}")
    return NO_CACHE if given == policies.NO_CACHE else given


def _warn(text: str) -> None:
    """Warn of the line, outside of this package, that defines the task."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
