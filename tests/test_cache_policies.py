# SPDX-License-Identifier: Apache-2.0
"""Cache policies: which key a call gets, how policies add and subtract, and what has no key."""

from __future__ import annotations

import itertools
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from microflow.cache_policies import (
    DEFAULT,
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    NONE,
    RUN_ID,
    TASK_SOURCE,
    CacheKeyFnPolicy,
    CachePolicy,
    CompoundCachePolicy,
    Inputs,
)
from microflow.results import FileSystemLockManager, IsolationLevel, MemoryLockManager
from microflow.tasks import task
from tests.behaviour_support import pins


@task
def first(x: Any, lock: Any = None) -> None:
    """A task."""


@task
def second(x: Any, lock: Any = None) -> None:
    """Another one."""
    print("with another source")


def context(of: Any = first, flow_run: int | None = 1, task_run: int = 2) -> Any:
    """What a policy sees of a task run."""
    ids = SimpleNamespace(id=UUID(int=task_run), flow_run_id=None if flow_run is None else UUID(int=flow_run))
    return SimpleNamespace(task=of, task_run=ids)


def key(policy: CachePolicy, inputs: dict[str, Any] | None = None, ctx: Any = None, flow: dict[str, Any] | None = None):
    return policy.compute_key(ctx or context(), inputs or {}, flow or {})


# ------------------------------------------------------------------------------------------------ the policies


def test_inputs_count_by_name_and_value_and_their_order_does_not():
    keys = [
        key(INPUTS, inputs)
        for inputs in ({"x": 1}, {"x": 2}, {"y": 1}, {"x": 1.0}, {"x": True}, {"x": "1"}, {"x": [1]}, {"x": (1,)})
    ]
    assert len(set(keys)) == len(keys)
    assert all(isinstance(text, str) for text in keys)
    assert key(INPUTS, {"a": 1, "b": 2}) == key(INPUTS, {"b": 2, "a": 1})


def test_without_inputs_there_is_no_key_but_there_is_one_when_all_are_excluded():
    assert key(INPUTS) is None
    assert key(INPUTS - "x", {"x": 1}) == key(INPUTS - "y", {"y": threading.Lock()}) != None  # noqa: E711


@pytest.mark.parametrize("policy", [INPUTS, DEFAULT, INPUTS + TASK_SOURCE])
def test_an_argument_that_cannot_be_hashed_is_named_with_the_cures(policy):
    with pytest.raises(ValueError, match="cannot be cached") as caught:
        key(policy, {"x": 1, "lock": {"held": [threading.Lock()]}})
    for part in ("'lock'", "lock['held'][0] is a _thread:lock", "Unable to create hash", "cache_key_fn", "NO_CACHE"):
        assert part in str(caught.value)


@pins("task_engine", 134)
def test_an_argument_that_is_subtracted_need_not_be_hashable():
    policy = DEFAULT - "lock"
    one, other = (key(policy, {"x": 1, "lock": threading.Lock()}) for _ in range(2))
    assert one == other != None  # noqa: E711
    assert one != key(policy, {"x": 2, "lock": None})


def test_the_source_of_the_task_counts():
    assert key(TASK_SOURCE) == key(TASK_SOURCE, {"x": 1}) != key(TASK_SOURCE, ctx=context(second))
    assert TASK_SOURCE.compute_key(None, {}, {}) is None


def test_a_callable_without_source_counts_by_its_class_or_its_code():
    class Callable:
        def __call__(self) -> None: ...

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]
        __slots__ = ()

        def __call__(self) -> None: ...

    made: dict[str, Any] = {}
    exec("def a(): return 1\ndef b(): return 2", made)
    tasks = [task(Callable()), task(Unhashable()), task(made["a"]), task(made["b"])]
    assert len({key(TASK_SOURCE, ctx=context(each)) for each in tasks}) == 4


def test_a_partial_function_counts_with_what_it_brings():
    def scaled(factor: int, x: int) -> int:
        return factor * x

    keys = [key(TASK_SOURCE, ctx=context(task(partial(scaled, factor)))) for factor in (2, 3, 2)]
    assert keys[0] == keys[2] != keys[1]
    with pytest.raises(ValueError, match="the function of the task cannot be counted"):
        key(TASK_SOURCE, ctx=context(task(partial(scaled, threading.Lock()))))


def test_flow_parameters_count_and_outside_of_flows_there_are_none():
    assert key(FLOW_PARAMETERS) is None
    assert key(FLOW_PARAMETERS, flow={"a": 1}) != key(FLOW_PARAMETERS, flow={"a": 2})
    with pytest.raises(ValueError, match="flow parameter 'a'"):
        key(FLOW_PARAMETERS, flow={"a": threading.Lock()})


def test_the_run_is_the_flow_run_and_outside_of_flows_the_task_run():
    assert key(RUN_ID) == str(UUID(int=1))
    assert key(RUN_ID, ctx=context(flow_run=None)) == str(UUID(int=2))
    assert RUN_ID.compute_key(None, {}, {}) is None


@pytest.mark.parametrize("policy", [NONE, NO_CACHE])
def test_no_cache_gives_no_key(policy):
    assert key(policy, {"x": 1}) is None


def test_by_default_a_call_is_found_in_its_own_flow_run_only():
    here = key(DEFAULT, {"x": 1})
    assert here == key(DEFAULT, {"x": 1}, context(task_run=9))
    assert here != key(DEFAULT, {"x": 1}, context(flow_run=7))
    assert here != key(DEFAULT, {"x": 1}, context(second))
    assert here != key(DEFAULT, {"x": 2})


def test_the_base_does_not_say_how_keys_are_made():
    with pytest.raises(NotImplementedError, match="CachePolicy"):
        key(CachePolicy())


# ------------------------------------------------------------------------------------------------ key functions


def test_a_key_function_is_given_context_and_inputs():
    given = context()
    policy = CachePolicy.from_cache_key_fn(lambda ctx, inputs: f"{ctx is given}-{inputs['x']}")
    assert isinstance(policy, CacheKeyFnPolicy)
    assert key(policy, {"x": 5}, given) == "True-5"


@pins("task_engine", 133)
@pytest.mark.parametrize("answer", [None, ""])
def test_a_key_function_that_gives_nothing_means_no_caching(answer):
    assert key(CachePolicy.from_cache_key_fn(lambda ctx, inputs: answer)) is None


def test_a_key_that_is_no_string_is_a_type_error_that_names_the_function():
    def half_done(ctx: Any, inputs: Any) -> Any:
        return 5

    with pytest.raises(TypeError, match=r"half_done' returned a int"):
        key(CachePolicy.from_cache_key_fn(half_done))


# ------------------------------------------------------------------------------------------------ sums


@pins("task_engine", 148)
def test_the_order_of_a_sum_counts_but_inputs_always_come_last():
    given = {"x": 1}
    assert key(INPUTS + TASK_SOURCE, given) == key(TASK_SOURCE + INPUTS, given)
    assert key(RUN_ID + TASK_SOURCE, given) != key(TASK_SOURCE + RUN_ID, given)


@pins("task_engine", 149)
def test_all_inputs_of_a_sum_become_one_that_excludes_what_any_of_them_does():
    policy = CompoundCachePolicy(policies=[Inputs(), Inputs(exclude=["x"]), Inputs(exclude=["y"])])
    assert policy.policies == [Inputs(exclude=["x", "y"])]
    assert (policy - "z") == CompoundCachePolicy(policies=[Inputs(exclude=["x", "y", "z"])])


def test_sums_of_sums_are_flat():
    policy = (TASK_SOURCE + RUN_ID) + (INPUTS + FLOW_PARAMETERS)
    assert isinstance(policy, CompoundCachePolicy)
    assert policy.policies == [TASK_SOURCE, RUN_ID, FLOW_PARAMETERS, INPUTS]


def test_a_sum_whose_members_give_no_key_gives_none():
    assert key(INPUTS + FLOW_PARAMETERS) is None
    assert key(INPUTS + FLOW_PARAMETERS, {"x": 1}) is not None


def test_no_cache_adds_nothing_on_either_side():
    assert (INPUTS + NO_CACHE) is INPUTS
    assert (NONE + INPUTS) is INPUTS


def test_what_is_no_policy_cannot_be_added():
    with pytest.raises(TypeError):
        INPUTS + "x"  # type: ignore[operator]


@pytest.mark.parametrize("policy", [INPUTS, TASK_SOURCE, DEFAULT, RUN_ID + TASK_SOURCE, NO_CACHE])
def test_only_a_name_can_be_subtracted(policy):
    with pytest.raises(TypeError, match="name of an argument"):
        policy - 5


@pytest.mark.parametrize("policy", [TASK_SOURCE, RUN_ID, NO_CACHE, RUN_ID + TASK_SOURCE])
def test_where_inputs_do_not_count_subtraction_changes_nothing(policy):
    assert (policy - "x") is policy


# ------------------------------------------------------------------------------------------------ settings


def test_configure_gives_a_copy_and_shares_what_must_be_shared():
    locks = MemoryLockManager()
    policy = INPUTS.configure(key_storage="keys", lock_manager=locks, isolation_level=IsolationLevel.SERIALIZABLE)
    assert (policy.key_storage, policy.isolation_level) == ("keys", IsolationLevel.SERIALIZABLE)
    assert policy.lock_manager is locks
    assert (policy.configure() - "x").lock_manager is locks
    assert Inputs() == INPUTS


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("key_storage", (Path("a"), Path("b")), "different storage locations"),
        ("isolation_level", tuple(IsolationLevel), "different isolation levels"),
        ("lock_manager", (FileSystemLockManager("a"), FileSystemLockManager("b")), "different lock implementations"),
    ],
)
def test_a_sum_takes_the_setting_that_one_side_has_and_refuses_two_that_differ(name, values, words):
    mine, theirs = (INPUTS.configure(**{name: value}) for value in values)
    for left, right in itertools.permutations((mine, TASK_SOURCE)):
        assert getattr(left + right, name) == values[0]
    assert getattr(mine + TASK_SOURCE.configure(**{name: values[0]}), name) == values[0]
    with pytest.raises(ValueError, match=words):
        mine + theirs


def test_subtraction_keeps_the_settings():
    for policy in (INPUTS, DEFAULT):
        assert (policy.configure(key_storage="keys") - "x").key_storage == "keys"
