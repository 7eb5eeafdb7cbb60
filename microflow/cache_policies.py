# SPDX-License-Identifier: Apache-2.0
"""From a call to the key under which its result is stored, as values that add and subtract.

``INPUTS + TASK_SOURCE - "verbose"`` is a policy. A policy gives a key or None, which means no caching. It never gives
a key that leaves out what it was told to count: what cannot be counted is a ValueError that names the argument.

What a call is stored under is not what a re-execution recognises it by (``calls``): that needs no policy.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .exceptions import HashError
from .hashing import stable_hash

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from ._locks import IsolationLevel, LockManager
    from ._storage import Storage
    from .context import TaskRunContext

    CacheKeyFn = Callable[[TaskRunContext, dict[str, Any]], str | None]

#: a setting, and what two policies have that differ in it
_CONFLICTS = {
    "key_storage": "different storage locations",
    "isolation_level": "different isolation levels",
    "lock_manager": "different lock implementations",
}


@dataclass
class CachePolicy:
    """Makes the key of a call; a subclass says how in :meth:`compute_key`.

    ``key_storage`` keeps the metadata of results apart from the results. ``isolation_level`` SERIALIZABLE has equal
    calls wait for each other, by means of the ``lock_manager``."""

    key_storage: Storage | str | os.PathLike[str] | None = field(default=None, kw_only=True)
    isolation_level: IsolationLevel | None = field(default=None, kw_only=True)
    lock_manager: LockManager | None = field(default=None, kw_only=True)

    @classmethod
    def from_cache_key_fn(cls, cache_key_fn: CacheKeyFn) -> CacheKeyFnPolicy:
        """The policy that asks a function."""
        return CacheKeyFnPolicy(cache_key_fn)

    def configure(
        self,
        key_storage: Storage | str | os.PathLike[str] | None = None,
        lock_manager: LockManager | None = None,
        isolation_level: IsolationLevel | None = None,
    ) -> Any:
        """A copy with those settings that are not None."""
        given = {"key_storage": key_storage, "lock_manager": lock_manager, "isolation_level": isolation_level}
        # what is shared with others is not copied: a copy of a lock manager would lock nobody out
        shared = {id(value): value for value in (self.key_storage, self.lock_manager)}
        twin = copy.deepcopy(self, shared)
        for name, value in given.items():
            if value is not None:
                setattr(twin, name, value)
        return twin

    def compute_key(
        self,
        task_ctx: TaskRunContext | None,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The key of the call, or None for no caching. `inputs` are the arguments by name."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its keys are made")

    def __add__(self, other: object) -> CachePolicy:
        if not isinstance(other, CachePolicy):
            return NotImplemented
        if isinstance(other, _None):
            return self
        if isinstance(self, _None):
            return other
        settings = {}
        for name, difference in _CONFLICTS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                raise ValueError(f"cannot add cache policies with {difference}: {mine!r} and {theirs!r}")
            settings[name] = theirs if mine is None else mine
        return CompoundCachePolicy([self, other], **settings)

    def __sub__(self, name: object) -> CachePolicy:
        """A policy of the same kind that does not count the argument `name`; itself where inputs do not count."""
        if not isinstance(name, str):
            raise TypeError(f"only the name of an argument can be subtracted from a cache policy, not {name!r}")
        return self


@dataclass
class CacheKeyFnPolicy(CachePolicy):
    """The key is what a function of the task run's context and the inputs returns; None or "" for no caching."""

    cache_key_fn: CacheKeyFn | None = None

    def compute_key(
        self,
        task_ctx: TaskRunContext | None,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """What the function returns. TypeError when that is no string."""
        if self.cache_key_fn is None:
            return None
        key: Any = self.cache_key_fn(task_ctx, inputs)  # type: ignore[arg-type]  # None only outside of runs
        if key is not None and not isinstance(key, str):
            name = getattr(self.cache_key_fn, "__qualname__", repr(self.cache_key_fn))
            raise TypeError(f"cache_key_fn {name!r} returned a {type(key).__name__}; a key is a string, or None")
        return key or None


@dataclass
class CompoundCachePolicy(CachePolicy):
    """The key is made of the keys of several policies, in their order; inputs count last. No keys, no key.

    Compounds in it are opened, and all that count inputs become one, which excludes what any of them does."""

    policies: list[CachePolicy] = field(default_factory=list)

    def __post_init__(self) -> None:
        members: list[CachePolicy] = []
        for policy in self.policies:
            members.extend(policy.policies if isinstance(policy, CompoundCachePolicy) else [policy])
        inputs = [policy for policy in members if isinstance(policy, Inputs)]
        self.policies = [policy for policy in members if not isinstance(policy, (Inputs, _None))]
        if inputs:
            self.policies.append(Inputs(list(dict.fromkeys(name for policy in inputs for name in policy.exclude))))

    def compute_key(
        self,
        task_ctx: TaskRunContext | None,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The hash of the members' keys."""
        keys = [policy.compute_key(task_ctx, inputs, flow_parameters, **kwargs) for policy in self.policies]
        found = [key for key in keys if key is not None]
        return stable_hash(found) if found else None

    def __sub__(self, name: object) -> CachePolicy:
        members = [policy - name for policy in self.policies]
        if all(new is old for new, old in zip(members, self.policies, strict=True)):
            return super().__sub__(name)
        return CompoundCachePolicy(members, **_settings(self))


@dataclass
class _None(CachePolicy):
    """No caching."""

    def compute_key(
        self,
        task_ctx: TaskRunContext | None,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """None."""
        return None


@dataclass
class TaskSource(CachePolicy):
    """The source of the task's function counts, or its byte code where there is none, and what a partial function
    brings. What the function calls or refers to outside of itself does not."""

    def compute_key(
        self,
        task_ctx: TaskRunContext | None,
        inputs: dict[str, Any] | None,
        flow_parameters: dict[str, Any] | None,
        **kwargs: Any,
    ) -> str | None:
        """The hash of the source; None outside of runs."""
        if task_ctx is None:
            return None
        try:
            return stable_hash(_source_of(task_ctx.task), "the partial function's")
        except HashError as error:
            raise _no_key("the function of the task", error) from error


@dataclass
class FlowParameters(CachePolicy):
    """The parameters of the flow run count. Outside of flows there are none, and so no key."""

    def compute_key(
        self,
        task_ctx: TaskRunContext | None,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The hash of the parameters."""
        return _hash_of_named(flow_parameters, "flow parameter") if flow_parameters else None


@dataclass
class RunId(CachePolicy):
    """The flow run counts: what is stored is found there only. Outside of flows, each task run is on its own."""

    def compute_key(
        self,
        task_ctx: TaskRunContext | None,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The id of the flow run, else of the task run."""
        if task_ctx is None:
            return None
        return str(task_ctx.task_run.flow_run_id or task_ctx.task_run.id)


@dataclass
class Inputs(CachePolicy):
    """The arguments count, but for those that are excluded by name. Nothing else does: two tasks that are called with
    equal arguments share what is stored, unless TASK_SOURCE is added."""

    exclude: list[str] = field(default_factory=list)

    def compute_key(
        self,
        task_ctx: TaskRunContext | None,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The hash of the arguments; None when there are none. ValueError when one of them cannot be hashed."""
        if not inputs:
            return None
        return _hash_of_named({name: inputs[name] for name in inputs if name not in self.exclude}, "argument")

    def __sub__(self, name: object) -> CachePolicy:
        if not isinstance(name, str):
            return super().__sub__(name)
        return Inputs([*self.exclude, name], **_settings(self))


def _settings(policy: CachePolicy) -> dict[str, Any]:
    return {item.name: getattr(policy, item.name) for item in fields(CachePolicy)}


def _hash_of_named(values: dict[str, Any], kind: str) -> str:
    hashes = {}
    for name, value in values.items():
        try:
            hashes[name] = stable_hash(value, name)
        except HashError as error:
            raise _no_key(f"the {kind} {name!r}", error) from error
    return stable_hash(hashes)


def _no_key(what: str, error: HashError) -> ValueError:
    return ValueError(
        f"no cache key: {what} cannot be counted. {error}. This happens with objects that cannot be cached, such as "
        f"locks and connections: leave an argument out (INPUTS - 'name'), make the key with a custom cache_key_fn, or "
        f"use cache_policy=NO_CACHE."
    )


# by function: to read a source anew for each call would be most of the price of a key
_sources: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def _source_of(task: Any) -> Any:
    """The source of a function; for a partial one, with the arguments that it brings: they are no inputs."""
    fn, brought = task.fn, []
    while isinstance(fn, partial):
        brought.append([fn.args, fn.keywords])
        fn = fn.func
    try:
        source = _sources.get(fn)
        if source is None:
            source = _sources[fn] = _read_source(fn)
    except TypeError:  # a callable object that cannot be hashed, or not be referred to weakly
        source = _read_source(fn)
    return [source, brought] if brought else source


def _read_source(fn: Any) -> str:
    import inspect  # 11 ms: only for tasks that are cached

    for thing in (fn, type(fn)):
        try:
            return inspect.getsource(thing)
        except (TypeError, OSError, IndentationError):
            continue
    return stable_hash(getattr(fn, "__code__", type(fn)))


INPUTS = Inputs()
NONE = _None()
NO_CACHE = _None()
TASK_SOURCE = TaskSource()
FLOW_PARAMETERS = FlowParameters()
RUN_ID = RunId()
DEFAULT = INPUTS + TASK_SOURCE + RUN_ID
