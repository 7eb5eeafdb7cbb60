# SPDX-License-Identifier: Apache-2.0
"""What ``@task`` and ``@flow`` have in common: names, kinds of functions, methods, hooks, run names, digests."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import microflow
from microflow import flow, task
from microflow._definitions import Definition, _clean, hook_name
from microflow.exceptions import ParameterBindError, ReservedArgumentError
from microflow.states import StateType

both = pytest.mark.parametrize("decorate", [task, flow])


# ------------------------------------------------------------------------------------- the function


@both
def test_a_definition_looks_like_its_function(decorate):
    def work(x: int) -> int:
        """What it does.

        More of it.
        """
        return x

    made = decorate(work)
    assert (made.__name__, made.__qualname__, made.__module__) == (work.__name__, work.__qualname__, __name__)
    assert made.__doc__ == work.__doc__
    assert made.__wrapped__ is made.fn is work
    assert made.description == "What it does.\n\nMore of it."
    assert made.parameters.names == ("x",)


@both
def test_options_win_over_what_the_function_says(decorate):
    made = decorate(name="mine", description="d", version="3")(lambda: 1)
    assert (made.name, made.description, made.version) == ("mine", "d", "3")


@both
@pytest.mark.parametrize("thing", [5, "text", None, object()])
def test_what_cannot_be_called_is_refused(decorate, thing):
    if thing is None:
        return  # @task(None) is the decorator without options
    with pytest.raises(TypeError, match="'fn' must be callable"):
        decorate(thing)


def plain() -> None: ...
async def coroutine() -> None: ...
def generator() -> Any:
    yield
async def async_generator() -> Any:
    yield


class Called:
    """Callable objects."""

    def __call__(self) -> None: ...


class CalledAsync:
    """Likewise, with a coroutine."""

    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("fn", "isasync", "isgenerator"),
    [
        (plain, False, False),
        (coroutine, True, False),
        (generator, False, True),
        (async_generator, True, True),
        (functools.partial(coroutine), True, False),
        (functools.partial(functools.partial(plain)), False, False),
        (Called(), False, False),
        (CalledAsync(), True, False),
        (CalledAsync().__call__, True, False),
        (len, False, False),
        (int, False, False),
        (Called, False, False),
    ],
)
def test_the_kind_of_a_function_is_found_through_partials_methods_and_objects(fn, isasync, isgenerator):
    made = Definition(fn, {}, ())
    assert (made.isasync, made.isgenerator) == (isasync, isgenerator)


@pytest.mark.parametrize(
    ("fn", "name"), [(plain, "plain"), (Called(), "Called"), (functools.partial(plain), "partial"), (len, "len")]
)
def test_a_callable_without_a_name_is_called_by_its_class(fn, name):
    assert Definition(fn, {}, ()).name == name


@both
@pytest.mark.parametrize("name", ["wait_for", "return_state"])
def test_a_parameter_that_calls_need_themselves_is_refused(decorate, name):
    namespace: dict[str, Any] = {}
    exec(f"def work({name}): pass", namespace)
    with pytest.raises(ReservedArgumentError, match=f"'{name}' is a reserved argument name"):
        decorate(namespace["work"])


@both
def test_a_call_that_does_not_fit_is_refused_before_there_is_a_run(decorate):
    @decorate
    def work(x: int) -> None: ...

    with pytest.raises(ParameterBindError, match="work"):
        work()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (None, None),
        ("", None),
        ("One line.", "One line."),
        ("First.\n\n        Second.\n            Deeper.\n        ", "First.\n\nSecond.\n    Deeper."),
        ("\n    First.\n    Second.\n", "First.\nSecond."),
    ],
)
def test_a_docstring_loses_its_indentation(text, clean):
    assert _clean(text) == clean


# ------------------------------------------------------------------------------------- digests


def test_a_digest_follows_from_the_code_and_not_from_place_or_name():
    sources = ["def f(x): return x + 1", "\n\n# moved\ndef f(x): return x + 1", "def g(x): return x + 1"]
    changed = ["def f(x): return x + 2", "def f(y): return y + 1", "def f(x): return (lambda: x + 1)()"]

    def digest(source: str) -> str:
        namespace: dict[str, Any] = {}
        exec(source, namespace)
        return Definition(namespace.get("f") or namespace["g"], {}, ()).code_digest()

    assert len({digest(source) for source in sources}) == 1
    assert len({digest(source) for source in [sources[0], *changed]}) == 4
    assert Definition(len, {}, ()).code_digest() == "unknown"


def test_a_digest_is_the_same_in_every_process():
    """Sets among the constants have an order that depends on the hash seed."""
    program = (
        "from microflow._definitions import Definition\n"
        "def f(x): return x in {'a', 'b', 'c', 'd', 'e'}, [lambda: 1.5]\n"
        "print(Definition(f, {}, ()).source_digest)"
    )
    place = Path(microflow.__file__).parent.parent
    found = set()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(place)}
        command = [sys.executable, "-c", program]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
    assert found.pop().startswith(f"py{sys.version_info[0]}.{sys.version_info[1]}-")


# ------------------------------------------------------------------------------------- methods


class Box:
    """Methods of every kind."""

    def __init__(self, content: int) -> None:
        self.content = content

    @task
    def add(self, n: int) -> int:
        """Add to the content."""
        return self.content + n

    @task
    @classmethod
    def of(cls, n: int) -> str:
        return f"{cls.__name__} {n}"

    @task
    @staticmethod
    def double(n: int) -> int:
        return 2 * n

    @flow
    def run(self, n: int) -> int:
        box: Any = self  # a static task has no type of its own for that
        return box.add(n) * box.double(n)


class Crate(Box):
    """Inherits all of them."""


def test_methods_of_every_kind_can_be_decorated_and_called():
    box = Box(10)
    assert box.add(1) == 11
    assert box.add(n=2) == 12
    assert (Box.of(1), box.of(1), Crate.of(1), Crate(1).of(1)) == ("Box 1", "Box 1", "Crate 1", "Crate 1")
    assert (Box.double(3), box.double(3)) == (6, 6)
    assert box.run(2) == 48
    unbound: Any = Box.add
    assert unbound(box, 1) == 11


def test_two_bound_copies_never_mix_up():
    one, two = Box(1).add, Box(2).add
    assert (one(0), two(0), one(0)) == (1, 2, 1)
    assert one is not Box.add
    assert one.fn is Box.add.fn


def test_a_binding_fills_the_first_parameter_and_no_other():
    bound = Box(1).add
    assert bound.bound_names == ("self",)
    assert Box.add.bound_names == Box.double.bound_names == ()
    assert Box.of.bound_names == ("cls",)
    assert sorted(bound.bind((5,), {})) == ["n", "self"]


def test_a_bound_copy_says_that_it_is_one():
    assert (Box(1).add.ismethod, Box.add.ismethod, Box.of.ismethod) == (True, False, True)


def test_a_bound_copy_keeps_its_binding_through_with_options():
    assert Box(1).add.with_options(name="other")(5) == 6
    assert Box.of.with_options(name="other")(5) == "Box 5"


def test_hooks_that_are_added_later_are_those_of_the_bound_copies_too():
    class Local:
        @task
        def work(self) -> None: ...

    bound = Local().work
    Local.work.on_completion(print)
    assert bound.hooks_for(StateType.COMPLETED) == [print]


# ------------------------------------------------------------------------------------- hooks


@both
def test_hooks_are_lists_of_callables(decorate):
    made = decorate(on_completion=(print,), on_failure=[len, print])(plain)
    assert made.hooks_for(StateType.COMPLETED) == [print]
    assert made.hooks_for(StateType.FAILED) == [len, print]
    assert made.hooks_for(StateType.RUNNING) == []
    assert made.hooks
    assert not decorate(plain).hooks


@both
def test_a_hook_that_is_no_list_or_no_callable_is_refused_and_named(decorate):
    with pytest.raises(TypeError, match="Expected iterable for 'on_completion'; got .*function"):
        decorate(on_completion=plain)(plain)
    with pytest.raises(TypeError, match="Expected callables in 'on_failure'; got int instead"):
        decorate(on_failure=[5])(plain)
    with pytest.raises(TypeError, match="Expected callables in 'on_running'; got int instead"):
        decorate(plain).on_running(5)


@both
def test_a_hook_can_be_added_by_decoration(decorate):
    made = decorate(plain)

    @made.on_failure
    def hook(*args: Any) -> None: ...

    assert made.hooks_for(StateType.FAILED) == [hook]
    assert made.hooks


def test_the_name_of_a_hook_in_a_log_line():
    assert hook_name(plain) == "plain"
    assert hook_name(functools.partial(plain)) == "plain"
    assert hook_name(Called()) == "Called"


# ------------------------------------------------------------------------------------- run names


def test_a_run_name_is_a_template_or_a_callable_with_or_without_parameters():
    def named(option: Any) -> Any:
        return task(task_run_name=option)(lambda x: x).render_run_name({"x": 5})

    def by_parameters(parameters: dict[str, Any]) -> str:
        return f"x is {parameters['x']}"

    assert named("x={x}") == "x=5"
    assert named(lambda: "fixed") == "fixed"
    assert named(by_parameters) == "x is 5"
    assert named(None) is None


def test_a_callable_that_gives_no_string_is_named():
    made = flow(flow_run_name=lambda: 5, name="main")(plain)
    with pytest.raises(TypeError, match="name of a run of 'main' returned int"):
        made.render_run_name({})


def test_another_run_name_is_refused_at_once():
    with pytest.raises(TypeError, match="Expected string or callable for 'task_run_name'; got int instead"):
        task(task_run_name=5)(plain)
    with pytest.raises(TypeError, match="'flow_run_name'; got list"):
        flow(flow_run_name=["a"])(plain)
