# SPDX-License-Identifier: Apache-2.0
"""Arguments are bound as Python binds them, called again as they were, and mapped as the page says."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow._arguments import (
    Parameters,
    allow_failure,
    check_reserved,
    expand_mapping,
    opaque,
    quote,
    unmapped,
)
from microflow.exceptions import (
    MappingLengthMismatch,
    MappingMissingIterable,
    ParameterBindError,
    ReservedArgumentError,
    SignatureMismatchError,
)
from tests.behaviour_support import pins

ROOT = Path(__file__).resolve().parent.parent


def plain(x, y=2):
    return x, y


def words(x, *, y, z=3):
    return x, y, z


def only(x, y=2, /, z=3):
    return x, y, z


def spread(x, *args, y=2):
    return x, args, y


def extra(x, y=2, **kwargs):
    return x, y, kwargs


def everything(a, b=2, /, c=3, *args, d, e=5, **kwargs):
    return a, b, c, args, d, e, kwargs


def nothing():
    return ()


class Counter:
    """Things to call that are no plain functions."""

    def method(self, x, y=2):
        return x, y

    @classmethod
    def of_class(cls, x, y=2):
        return x, y

    @staticmethod
    def static(x, y=2):
        return x, y

    def __call__(self, x, y=2):
        return x, y


@functools.wraps(plain)
def wrapped(*args, **kwargs):
    return plain(*args, **kwargs)


FUNCTIONS: list[Any] = [plain, words, only, spread, extra, everything, nothing, wrapped]
CALLABLES: list[Any] = [
    *FUNCTIONS,
    Counter().method,
    Counter.of_class,
    Counter.static,
    Counter(),
    functools.partial(words, y=1),
    functools.partial(everything, 1, d=4),
]


# ------------------------------------------------------------------------------------------------ binding


def callable_with(fn, args, kwargs):
    try:
        fn(*args, **kwargs)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("fn", CALLABLES)
def test_parameters_are_those_of_the_signature(fn):
    parameters, signature = Parameters(fn), inspect.signature(fn)
    assert list(parameters.names) == list(signature.parameters)
    kinds = {name: parameter.kind for name, parameter in parameters.signature.parameters.items()}
    assert kinds == {name: parameter.kind for name, parameter in signature.parameters.items()}
    assert parameters.defaults == {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty
    }


@given(
    fn=st.sampled_from(CALLABLES),
    args=st.lists(st.integers(), max_size=5),
    kwargs=st.dictionaries(st.sampled_from("abcdexyzq"), st.integers(), max_size=5),
    apply_defaults=st.booleans(),
)
def test_a_call_binds_as_inspect_binds_it_and_fails_where_it_fails(fn, args, kwargs, apply_defaults):
    try:
        expected = inspect.signature(fn).bind(*args, **kwargs)
    except TypeError as problem:
        if "positional only" in str(problem) and callable_with(fn, args, kwargs):
            return  # inspect is wrong before 3.13: the next test has this case
        with pytest.raises(ParameterBindError, match=re.escape(str(problem))):
            Parameters(fn).bind(args, kwargs, apply_defaults=apply_defaults)
        return
    if apply_defaults:
        expected.apply_defaults()
    bound = Parameters(fn).bind(args, kwargs, apply_defaults=apply_defaults)
    assert list(bound.items()) == list(expected.arguments.items())


@given(
    fn=st.sampled_from(CALLABLES),
    args=st.lists(st.integers(), max_size=5),
    kwargs=st.dictionaries(st.sampled_from("abcdexyzq"), st.integers(), max_size=5),
    apply_defaults=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_the_call_made_from_bound_parameters_does_what_the_first_call_did(fn, args, kwargs, apply_defaults, order):
    parameters = Parameters(fn)
    if not callable_with(fn, args, kwargs):
        with pytest.raises(ParameterBindError):
            parameters.bind(args, kwargs)
        return
    expected = fn(*args, **kwargs)
    items = list(parameters.bind(args, kwargs, apply_defaults=apply_defaults).items())
    order.shuffle(items)  # a dict from elsewhere may have another order
    again, words = parameters.call_arguments(dict(items))
    assert fn(*again, **words) == expected


def test_variadic_parameters_stand_under_their_own_names():
    bound = Parameters(everything).bind((1, 2, 3, 4, 5), {"d": 6, "q": 7})
    assert bound == {"a": 1, "b": 2, "c": 3, "args": (4, 5), "d": 6, "e": 5, "kwargs": {"q": 7}}


def test_a_failed_binding_names_the_function_its_signature_the_problem_and_what_was_given():
    with pytest.raises(ParameterBindError) as caught:
        Parameters(plain).bind((), {"y": "z"})
    assert str(caught.value) == "cannot call plain(x, y=2): missing a required argument: 'x' (given: y='z')"
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        Parameters(plain).bind((1,), {"x": 1})


def test_a_function_in_c_that_does_not_tell_its_signature_takes_anything():
    parameters = Parameters(dict)
    assert parameters.bind(([("a", 1)],), {"b": 2}) == {"args": ([("a", 1)],), "kwargs": {"b": 2}}
    args, kwargs = parameters.call_arguments({"args": ([("a", 1)],), "kwargs": {"b": 2}})
    assert dict(*args, **kwargs) == {"a": 1, "b": 2}


def test_annotations_are_never_evaluated():
    def annotated(x: NotDefinedAnywhere) -> AlsoNot:  # type: ignore[name-defined]  # noqa: F821
        return x

    assert Parameters(annotated).bind((1,), {}) == {"x": 1}
    assert Parameters(functools.partial(annotated)).bind((1,), {}) == {"x": 1}


def test_binding_a_call_of_a_plain_function_does_not_load_inspect():
    code = (
        "import sys\n"
        "from microflow._arguments import Parameters\n"
        "def f(x, y=2, *, z=3): pass\n"
        "parameters = Parameters(f)\n"
        "print(parameters.call_arguments(parameters.bind((1,), {'z': 4})), 'inspect' in sys.modules)\n"
        "Parameters(lambda *args, **kwargs: 0)\n"
        "print('inspect' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "((1, 2), {'z': 4}) False\nFalse\n", done.stderr


# ------------------------------------------------------------------------------------------------ calling again


def test_unknown_names_and_missing_ones_are_refused_with_both_lists():
    with pytest.raises(SignatureMismatchError, match=r"^plain\(\) takes .*\['x', 'y'\], but was given \['x', 'q'\]"):
        Parameters(plain).call_arguments({"x": 1, "q": 2})
    with pytest.raises(SignatureMismatchError, match=r"was given \['y'\]"):
        Parameters(plain).call_arguments({"y": 1})
    with pytest.raises(SignatureMismatchError):
        Parameters(spread).call_arguments({"args": (1, 2)})  # 1 would become x


def test_a_gap_before_variadic_arguments_is_filled_with_the_default():
    def fn(x, y=2, *args):
        return x, y, args

    args, kwargs = Parameters(fn).call_arguments({"x": 1, "args": (3, 4)})
    assert fn(*args, **kwargs) == (1, 2, (3, 4))


def test_variadic_keywords_may_repeat_positional_only_names_and_no_others():
    args, kwargs = Parameters(everything).call_arguments({"a": 1, "d": 4, "kwargs": {"a": 9}})
    assert everything(*args, **kwargs) == (1, 2, 3, (), 4, 5, {"a": 9})
    for name in ("c", "d", "e"):
        with pytest.raises(TypeError, match=f"multiple values for '{name}'"):
            Parameters(everything).call_arguments({"a": 1, "d": 4, "kwargs": {name: 9}})


def test_exploding_lifts_variadic_keywords_and_collapsing_puts_them_back():
    parameters = Parameters(extra)
    bound = parameters.bind((1,), {"q": 2, "r": 3})
    lifted = parameters.explode_variadic(bound)
    assert lifted == {"x": 1, "y": 2, "q": 2, "r": 3}
    assert parameters.collapse_variadic(lifted) == bound
    assert bound["kwargs"] == {"q": 2, "r": 3}  # neither changed what it was given


def test_without_variadic_keywords_exploding_and_collapsing_return_the_same_dict():
    bound = {"x": 1, "y": 2}
    assert Parameters(plain).explode_variadic(bound) is bound
    assert Parameters(plain).collapse_variadic(bound) is bound
    assert Parameters(extra).collapse_variadic(bound) is bound  # and no empty "kwargs" is added


@pytest.mark.parametrize("name", ["x", "kwargs"])
def test_a_variadic_keyword_that_would_hide_a_parameter_is_an_error(name):
    def fn(x, /, **kwargs):
        return x, kwargs

    bound = Parameters(fn).bind((1,), {name: 2})
    with pytest.raises(TypeError, match=name):
        Parameters(fn).explode_variadic(bound)


def test_collapsing_names_that_the_function_cannot_take_is_a_value_error():
    with pytest.raises(ValueError, match=r"plain\(\) does not take q"):
        Parameters(plain).collapse_variadic({"x": 1, "q": 2})


@pytest.mark.parametrize("name", ["wait_for", "return_state"])
@pins("futures_runners", 58)
def test_reserved_names_are_refused(name):
    check_reserved(["x", "state"])
    with pytest.raises(ReservedArgumentError, match=f"'{name}' is a reserved argument name"):
        check_reserved(["x", name])


# ------------------------------------------------------------------------------------------------ mapping


def test_iterables_are_mapped_and_the_rest_goes_to_every_child():
    shared = object()
    children = expand_mapping({"x": [1, 2], "y": (3, 4), "z": shared, "s": "text", "b": b"ab", "n": None})
    assert [(child["x"], child["y"]) for child in children] == [(1, 3), (2, 4)]
    assert all(child["z"] is shared and child["s"] == "text" and child["b"] == b"ab" for child in children)
    assert list(children[0]) == ["x", "y", "z", "s", "b", "n"]


@pytest.mark.parametrize(
    ("iterable", "members"),
    [
        (range(2), [0, 1]),
        ({"a": 1, "b": 2}, ["a", "b"]),
        ((letter for letter in "ab"), ["a", "b"]),
        (bytearray(b"\x01\x02"), [1, 2]),
        (iter([5, 6]), [5, 6]),
        ([], []),
    ],
)
def test_any_iterable_is_mapped_in_its_own_order(iterable, members):
    assert [child["x"] for child in expand_mapping({"x": iterable})] == members


def test_unmapped_is_passed_whole_and_its_wrapper_is_gone():
    assert expand_mapping({"x": [1, 2], "y": unmapped([3, 4])}) == [{"x": 1, "y": [3, 4]}, {"x": 2, "y": [3, 4]}]


@pytest.mark.parametrize("annotation", [allow_failure, quote, opaque])
def test_other_annotations_are_put_around_each_element_or_around_the_whole_static_value(annotation):
    assert expand_mapping({"x": annotation([1, 2])}) == [{"x": annotation(1)}, {"x": annotation(2)}]
    assert expand_mapping({"x": [1], "y": annotation(5)}) == [{"x": 1, "y": annotation(5)}]


def test_annotations_in_each_other_are_kept_in_their_order():
    assert expand_mapping({"x": [1], "y": allow_failure(unmapped([2]))}) == [{"x": 1, "y": allow_failure([2])}]
    assert expand_mapping({"x": [1], "y": unmapped(allow_failure([2]))}) == [{"x": 1, "y": allow_failure([2])}]
    assert expand_mapping({"x": quote(allow_failure([1]))}) == [{"x": quote(allow_failure(1))}]


def test_nothing_to_map_over_is_an_error_that_names_the_parameters():
    with pytest.raises(MappingMissingIterable, match="given x, y"):
        expand_mapping({"x": 1, "y": unmapped([1])})
    with pytest.raises(MappingMissingIterable):
        expand_mapping({})
    with pytest.raises(MappingMissingIterable):
        expand_mapping({"x": allow_failure(object())})


def test_different_lengths_are_an_error_that_lists_them():
    with pytest.raises(MappingLengthMismatch, match=r"\{'x': 2, 'y': 3\}"):
        expand_mapping({"x": [1, 2], "y": [1, 2, 3], "z": 5})


def test_variadic_arguments_are_mapped_one_by_one_when_asked_for():
    assert expand_mapping({"x": 0, "args": ([1, 2], [3, 4], 5)}, "args") == [
        {"x": 0, "args": (1, 3, 5)},
        {"x": 0, "args": (2, 4, 5)},
    ]
    with pytest.raises(MappingLengthMismatch, match=r"\{'args\[0\]': 1, 'args\[1\]': 2\}"):
        expand_mapping({"args": ([1], [1, 2])}, "args")
    assert expand_mapping({"args": ([1, 2], [3, 4])}) == [{"args": [1, 2]}, {"args": [3, 4]}]
