# SPDX-License-Identifier: Apache-2.0
"""What a task may be told: options, defaults, what follows from several options, and ``with_options``."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from microflow import Task, task
from microflow._arguments import NotSet
from microflow._task_options import TaskOptions
from microflow.cache_policies import DEFAULT, INPUTS, NO_CACHE, CacheKeyFnPolicy
from microflow.exceptions import ReservedArgumentError
from microflow.settings import temporary_settings
from microflow.tasks import exponential_backoff
from tests.behaviour_support import pins


@task
def add(x, y=1):
    """Add.

    Two numbers.
    """
    return x + y


def policy_of(made: Task) -> str | None:
    """The name of the policy that follows from the options; None for None."""
    policy = made._cache_policy
    return policy if policy is None else repr(policy)


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestOptions:
    def test_bare_and_with_options_both_decorate(self):
        assert isinstance(add, Task)
        assert isinstance(task(retries=2)(lambda: 1), Task)

    def test_takes_name_and_description_from_the_function(self):
        assert (add.name, add.description, add.__name__) == ("add", "Add.\n\nTwo numbers.", "add")

    @pins("task_engine", 1)
    def test_a_callable_object_is_named_after_its_class(self):
        class Doubler:
            def __call__(self, x):
                return 2 * x

        doubler = Doubler()
        doubled = Task(doubler)
        assert doubled.name == "Doubler"
        assert doubled.fn is doubler
        assert doubled(4) == 8

    def test_a_partial_can_be_a_task(self):
        assert Task(functools.partial(lambda x, y: x - y, 10), name="ten-minus")(3) == 7

    def test_what_is_not_callable_is_refused(self):
        with pytest.raises(TypeError, match="'fn' must be callable"):
            Task({})

    def test_an_unknown_option_is_named(self):
        with pytest.raises(TypeError, match="'retires'"):
            task(retires=3)(lambda: 1)

    @pins("task_engine", 17)
    @pytest.mark.parametrize("name", ["wait_for", "return_state"])
    def test_parameters_that_calls_need_are_reserved(self, name):
        with pytest.raises(ReservedArgumentError, match=name):
            Task(eval(f"lambda {name}: 1"))

    @pins("task_engine", 10, 11)
    @pytest.mark.parametrize("delay", [{"a": 1}, (1, 2), "1"])
    def test_a_delay_of_another_kind_is_refused(self, delay):
        with pytest.raises(TypeError, match="Invalid `retry_delay_seconds`"):
            Task(lambda: 1, retry_delay_seconds=delay)
        with pytest.raises(TypeError, match="Invalid `retry_delay_seconds`"):
            Task(lambda: 1).with_options(retry_delay_seconds=delay)

    @pins("task_engine", 12)
    @pytest.mark.parametrize("delay", [[1.0] * 51, lambda retries: [1.0] * 51])
    def test_more_than_fifty_delays_are_refused(self, delay):
        with pytest.raises(ValueError, match="Can not configure more"):
            Task(lambda: 1, retries=60, retry_delay_seconds=delay)

    @pins("task_engine", 13)
    def test_delays_may_be_fractions_a_callable_or_empty(self):
        assert Task(lambda: 1, retries=2, retry_delay_seconds=[0.5, 1.1]).retry_delay_seconds == [0.5, 1.1]
        assert Task(lambda: 1, retries=3, retry_delay_seconds=exponential_backoff(2)).retry_delay_seconds == [2, 4, 8]
        assert Task(lambda: 1, retries=3, retry_delay_seconds=[]).retry_delay_seconds == []
        assert len(exponential_backoff(1)(1000)) == 50

    @pytest.mark.parametrize("number", ["3", 1.5, [1]])
    def test_retries_are_a_whole_number(self, number):
        with pytest.raises(TypeError, match="`retries` must be a whole number, got"):
            Task(lambda: 1, retries=number)
        with pytest.raises(TypeError, match="`retries` must be a whole number, got"):
            Task(lambda: 1).with_options(retries=number)

    @pins("task_engine", 14)
    def test_a_negative_jitter_is_refused_and_zero_is_fine(self):
        with pytest.raises(ValueError, match="must be >= 0"):
            Task(lambda: 1, retry_jitter_factor=-0.1)
        assert Task(lambda: 1, retry_jitter_factor=0).retry_jitter_factor == 0

    @pins("task_engine", 16)
    def test_a_retry_condition_must_be_callable(self):
        with pytest.raises(TypeError, match="retry_condition_fn"):
            Task(lambda: 1, retry_condition_fn="x")

    @pins("task_engine", 15)
    @pytest.mark.parametrize("option", ["on_completion", "on_failure", "on_running", "on_commit", "on_rollback"])
    def test_hooks_must_be_an_iterable_of_callables(self, option):
        with pytest.raises(TypeError, match=f"Expected iterable for '{option}'"):
            Task(lambda: 1, **{option: print})
        with pytest.raises(TypeError, match=f"Expected callables in '{option}'; got str"):
            Task(lambda: 1, **{option: [print, "x"]})
        with pytest.raises(TypeError, match="Expected callables"):
            Task(lambda: 1, **{option: "ab"})

    @pins("task_engine", 18)
    def test_no_timeout_and_a_timeout_of_zero_are_the_same(self):
        assert Task(lambda: 1, timeout_seconds=0).timeout_seconds is None
        assert Task(lambda: 1).timeout_seconds is None
        seconds = Task(lambda: 1, timeout_seconds=2).timeout_seconds
        assert (seconds, type(seconds)) == (2.0, float)
        with pytest.raises(ValueError, match=">= 0"):
            Task(lambda: 1, timeout_seconds=-1)
        with pytest.raises(TypeError, match="number of seconds, got str"):
            Task(lambda: 1, timeout_seconds="1")

    def test_tags_are_a_collection_and_no_string(self):
        given = ["a", "a"]
        assert Task(lambda: 1, tags=given).tags == {"a"}
        with pytest.raises(TypeError, match=r"write \['ab'\]"):
            Task(lambda: 1, tags="ab")

    @pytest.mark.parametrize(
        ("option", "wrong"),
        [("task_run_name", 5), ("cache_key_fn", "x"), ("cache_expiration", 5), ("cache_policy", "INPUTS")],
    )
    def test_an_option_of_another_kind_is_named_with_what_was_given(self, option, wrong):
        with pytest.raises(TypeError, match=f"{option}.* {type(wrong).__name__}"):
            Task(lambda: 1, **{option: wrong})

    def test_what_is_not_said_can_be_said_with_notset(self):
        made = Task(lambda: 1, **dict.fromkeys(TaskOptions.__annotations__, NotSet))
        assert made._given == {}

    def test_hooks_of_transactions_are_given_to_the_constructor_or_added_by_decoration(self):
        made = task(on_commit=[print], on_rollback=(repr,))(lambda: 1)
        assert made.on_commit(len) is len
        assert made.on_rollback(str) is str
        assert (made.on_commit_hooks, made.on_rollback_hooks) == ([print, len], [repr, str])
        with pytest.raises(TypeError, match="Expected callables in 'on_commit'; got int"):
            made.on_commit(5)

    @pins("task_engine", 94)
    def test_default_retries_come_from_the_settings_when_the_task_is_made(self):
        with temporary_settings(default_task_retries=2, default_task_retry_delay_seconds=3):
            made = Task(lambda: 1)
        assert (made.retries, made.retry_delay_seconds) == (2, 3)
        assert made.with_options(name="other").retries == 2
        assert made.with_options(retries=None).retries == 0
        assert Task(lambda: 1).retries == 0

    def test_the_task_key_follows_from_the_code(self):
        def one():
            return 1

        first, second = Task(one), Task(lambda: 2)
        assert first.task_key.startswith("one-")
        assert first.task_key == Task(one).task_key
        assert first.task_key[-8:] != second.task_key[-8:]


class TestCachePolicy:
    """What follows for caching and storing."""

    @pytest.mark.parametrize(
        ("options", "policy", "persist"),
        [
            ({}, "DEFAULT", None),
            ({"cache_expiration": timedelta(1)}, "DEFAULT", None),
            ({"cache_result_in_memory": False}, "DEFAULT", None),
            ({"persist_result": True}, "DEFAULT", True),
            ({"persist_result": False}, "NO_CACHE", False),
            ({"persist_result": False, "cache_policy": None}, None, False),
            ({"cache_policy": None}, None, None),
            ({"cache_key_fn": repr}, "cache_key_fn", True),
            ({"cache_key_fn": repr, "result_storage_key": "a"}, None, True),
            ({"result_storage_key": "a"}, None, True),
            ({"result_storage_key": "a", "cache_policy": None}, None, True),
            ({"result_serializer": "json"}, "DEFAULT", True),
            ({"result_storage": "place"}, "DEFAULT", True),
            ({"result_storage": "place", "persist_result": False}, "NO_CACHE", False),
        ],
    )
    def test_policy_and_persistence_follow_from_the_options(self, options, policy, persist):
        with warnings_as_errors():
            made = Task(lambda: 1, **options)
        assert (policy_of(made), made.persist_result) == (policy, persist)
        assert made.has_default_policy is (policy == "DEFAULT")

    @pytest.mark.parametrize(
        ("options", "policy", "persist"),
        [
            ({"cache_policy": INPUTS}, INPUTS, True),
            ({"cache_policy": NO_CACHE}, NO_CACHE, None),
            ({"cache_policy": NO_CACHE, "result_storage_key": "a"}, NO_CACHE, True),
            ({"cache_policy": INPUTS, "result_storage_key": "a"}, None, True),
            ({}, DEFAULT, None),
            ({"persist_result": False}, NO_CACHE, False),
        ],
    )
    def test_the_policy_itself_is_given_or_loaded_when_it_is_asked_for(self, options, policy, persist):
        made = Task(lambda: 1, **options)
        assert (made.cache_policy, made.persist_result) == (policy, persist)
        made.cache_policy = None
        assert made.cache_policy is None

    @pytest.mark.parametrize("options", [{}, {"persist_result": False}, {"cache_key_fn": repr}])
    def test_a_policy_that_follows_from_the_options_does_so_in_another_process_too(self, options):
        marker = Task(print, **options)._cache_policy
        assert pickle.loads(pickle.dumps(marker)) is copy.deepcopy(marker) is marker

    @pins("task_engine", 25)
    def test_a_key_function_wins_over_a_policy_with_a_warning_and_over_a_missing_one_without(self):
        with pytest.warns(UserWarning, match="task '<lambda>' has both `cache_policy` and `cache_key_fn`"):
            made = Task(lambda: 1, cache_key_fn=lambda *_: "key", cache_policy=INPUTS)
        assert isinstance(made.cache_policy, CacheKeyFnPolicy)
        assert made.persist_result is True
        with warnings_as_errors():
            assert policy_of(Task(lambda: 1, cache_key_fn=repr, cache_policy=None)) == "cache_key_fn"

    @pins("task_engine", 26)
    @pytest.mark.parametrize("options", [{"cache_key_fn": repr}, {"cache_policy": INPUTS}], ids=["function", "policy"])
    def test_a_policy_without_persistence_is_ignored_with_a_warning(self, options):
        with pytest.warns(UserWarning, match="Ignoring `cache_policy` of task 'mine'") as caught:
            made = task(name="mine", persist_result=False, **options)(lambda: 1)
        assert made.cache_policy == NO_CACHE
        assert caught[0].filename == __file__

    @pins("task_engine", 26)
    @pytest.mark.parametrize("policy", [None, NO_CACHE])
    def test_no_policy_without_persistence_needs_no_warning(self, policy):
        with warnings_as_errors():
            assert Task(lambda: 1, persist_result=False, cache_policy=policy).cache_policy == policy

    @pins("task_engine", 27)
    def test_caching_may_be_off_unless_a_task_asks_for_it(self):
        with temporary_settings(default_task_no_cache=True):
            assert policy_of(Task(lambda: 1)) == "NO_CACHE"
            assert policy_of(Task(lambda: 1, persist_result=True)) == "NO_CACHE"
            keyed = Task(lambda: 1, result_storage_key="a")
            assert (policy_of(keyed), keyed.persist_result) == ("NO_CACHE", True)
            assert policy_of(Task(lambda: 1, cache_key_fn=repr)) == "cache_key_fn"
            assert Task(lambda: 1, cache_policy=DEFAULT).cache_policy == DEFAULT

    @pins("task_engine", 28)
    def test_caching_may_be_off_for_all(self):
        with temporary_settings(task_disable_caching=True), warnings_as_errors():
            assert policy_of(Task(lambda: 1, cache_key_fn=repr)) == "NO_CACHE"
            assert policy_of(Task(lambda: 1, cache_key_fn=repr, persist_result=False)) == "NO_CACHE"
            assert Task(lambda: 1, cache_policy=INPUTS).cache_policy == NO_CACHE


class TestWithOptions:
    def test_gives_a_new_task_over_the_same_function(self):
        copied = add.with_options(name="plus")
        assert copied is not add
        assert copied.fn is add.fn
        assert (copied.name, add.name) == ("plus", "add")

    @pins("task_engine", 19)
    def test_zero_and_none_override_what_can_be_off(self):
        original = Task(lambda: 1, retries=3, retry_delay_seconds=5, task_run_name="a")
        changed = original.with_options(retries=0, retry_delay_seconds=0, task_run_name=None)
        assert (changed.retries, changed.retry_delay_seconds, changed.task_run_name) == (0, 0, None)

    @pins("task_engine", 20)
    def test_empty_names_tags_and_hooks_keep_the_old(self):
        original = Task(lambda: 1, name="n", tags=["a"], on_completion=[print], version="1")
        kept = original.with_options(name="", tags=[], on_completion=[], version=None)
        assert (kept.name, kept.tags, kept.version) == ("n", {"a"}, "1")
        assert kept.with_options(tags=["b"]).tags == {"b"}

    @pins("task_engine", 21)
    def test_a_copy_shares_neither_tags_nor_hooks(self):
        original = Task(lambda: 1, tags=["a"], on_completion=[print])
        copied = original.with_options(name="copy")
        original.tags.add("b")
        copied.on_completion(repr)
        assert copied.tags == {"a"}
        assert list(original.hooks.values()) == [[print]]

    def test_hooks_that_were_added_by_decoration_come_along(self):
        original, seen = Task(lambda: 1), []
        original.on_completion(lambda task, run, state: seen.append(state.name))
        original.with_options(name="copy")()
        assert seen == ["Completed"]

    @pins("task_engine", 22)
    def test_none_unsets_what_says_how_results_are_stored(self):
        names = ("result_storage", "result_serializer", "refresh_cache", "result_storage_key")
        original = Task(lambda: 1, **dict(zip(names, ("place", "json", True, "key"), strict=True)))
        copied = original.with_options(**dict.fromkeys(names))
        assert [getattr(copied, name) for name in names] == [None] * 4
        assert (copied.persist_result, policy_of(copied)) == (None, "DEFAULT")
        assert [getattr(original.with_options(name="n"), name) for name in names] == ["place", "json", True, "key"]

    @pins("task_engine", 23)
    def test_a_policy_that_followed_from_the_options_is_not_taken_for_a_given_one(self):
        copied = Task(lambda: 1).with_options(name="other")
        assert (policy_of(copied), copied.persist_result) == ("DEFAULT", None)
        keyed = Task(lambda: 1, cache_key_fn=lambda *_: "k")
        with warnings_as_errors():
            assert policy_of(keyed.with_options(name="other")) == "cache_key_fn"

    def test_none_keeps_a_timeout_and_zero_clears_it(self):
        original = Task(lambda: 1, timeout_seconds=2, cache_result_in_memory=False, at_most_once=True)
        kept = original.with_options(timeout_seconds=None, cache_result_in_memory=None, at_most_once=None)
        assert (kept.timeout_seconds, kept.cache_result_in_memory, kept.at_most_once) == (2.0, False, True)
        assert original.with_options(timeout_seconds=0).timeout_seconds is None
        assert original.with_options(at_most_once=False).at_most_once is False

    def test_every_option_that_is_not_replaced_stays(self):
        given: dict[str, Any] = {
            "name": "n", "description": "d", "tags": {"a"}, "version": "1", "task_run_name": "r", "retries": 2,
            "retry_delay_seconds": [1.0, 2.0], "retry_jitter_factor": 0.5, "retry_condition_fn": print,
            "timeout_seconds": 3.0, "at_most_once": True, "log_prints": True, "cache_key_fn": repr,
            "cache_expiration": timedelta(1), "refresh_cache": True, "persist_result": True, "result_storage": "s",
            "result_serializer": "json", "result_storage_key": "k", "cache_result_in_memory": False,
        }  # fmt: skip
        hooks = {f"on_{kind}": [print] for kind in ("completion", "failure", "running", "commit", "rollback")}
        assert given.keys() | hooks.keys() | {"cache_policy", "asset_deps"} == TaskOptions.__annotations__.keys()
        original = Task(lambda: 1, **given, **hooks)
        for copied in (original.with_options(), original.with_options(name="n").with_options()):
            assert {name: getattr(copied, name) for name in given} == given
            assert copied.hooks == original.hooks
            assert (copied.on_commit_hooks, copied.on_rollback_hooks) == ([print], [print])
            assert copied.on_commit_hooks is not original.on_commit_hooks

    def test_a_policy_that_was_given_stays_and_is_not_taken_for_a_derived_one(self):
        original = Task(lambda: 1, cache_policy=INPUTS)
        assert original.with_options(name="other").cache_policy is INPUTS
        assert original.with_options(cache_policy=None).cache_policy is None
        assert original.with_options(persist_result=None).persist_result is True

    def test_what_was_assigned_to_an_attribute_stays(self):
        original = Task(lambda: 1, retries=1)
        original.retries, original.name = 5, "renamed"
        copied = original.with_options(tags=["a"])
        assert (copied.retries, copied.name) == (5, "renamed")

    def test_delays_that_follow_from_the_retries_follow_from_the_new_ones(self):
        original = Task(lambda: 1, retries=1, retry_delay_seconds=exponential_backoff(1))
        assert original.with_options(retries=3).retry_delay_seconds == [1, 2, 4]

    def test_what_is_refused_by_the_decorator_is_refused_here(self):
        with pytest.raises(TypeError, match="'retires'"):
            add.with_options(retires=3)

    def test_a_bound_task_stays_bound(self):
        class Box:
            value = 3

            @task
            def get(self):
                return self.value

        assert Box().get.with_options(name="other")() == 3
