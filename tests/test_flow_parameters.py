# SPDX-License-Identifier: Apache-2.0
"""What a flow makes of its parameters: checked against the annotations, recorded as they were given."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import pytest

from microflow import Flow, allow_failure, flow, task
from microflow.context import FlowRunContext
from microflow.exceptions import ParameterTypeError
from microflow.flow_runs import rerun
from tests.behaviour_support import pins
from tests.support import Colour, both, flow_run_ids, flow_states, fold, memory_home

make: Any = Flow


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Model:
    """Validates by itself, as pydantic's models do."""

    model_fields: dict[str, Any] = {"z": int}

    def __init__(self, z):
        self.z = z

    @classmethod
    def model_validate(cls, data):
        return cls(int(data["z"]))


def annotated(colour: Colour, body: Any, **options: Any) -> Any:
    """A flow of this colour; its annotations are the body's."""
    return colour.flow(body, **options)


@both
@pins("flows", 16)
def test_values_become_what_the_annotations_say(colour: Colour):
    def total(x: int, y: list[int], zt: Model) -> int:
        return x + sum(y) + zt.z

    assert colour.run(annotated(colour, total), x="1", y=["2", "3"], zt={"z": 4}) == 10


@both
@pins("flows", 17)
def test_a_value_that_does_not_fit_fails_the_run_before_it_runs(colour: Colour):
    called: list[int] = []

    def body(x: int):
        called.append(x)

    made = annotated(colour, body)
    state = colour.run(made, x="foo", return_state=True)
    assert (state.type, state.name) == ("FAILED", "Failed")
    assert "invalid parameters" in state.message
    assert "Validation of flow parameters failed" in state.message
    with pytest.raises(ParameterTypeError, match=r"^Flow run received invalid parameters:\n - x: must be an integer"):
        state.result(_sync=True)
    with pytest.raises(ParameterTypeError):
        colour.run(made, x="foo")
    assert called == []
    assert [flow_states(run_id) for run_id in flow_run_ids()] == [["Pending", "Failed"]] * 2


@both
def test_all_problems_of_all_parameters_are_told_together(colour: Colour):
    def body(x: int, points: list[Point], *, flag: bool = False):
        raise AssertionError

    with pytest.raises(ParameterTypeError) as caught:
        colour.run(annotated(colour, body), x="a", points=[{"x": 1}, {"y": "b"}], flag="perhaps")
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        " - x", " - points.1.x", " - points.1.y", " - flag",
    ]  # fmt: skip


@both
@pins("flows", 18)
def test_without_validation_values_pass_untouched(colour: Colour):
    def body(x: int):
        return x

    assert colour.run(annotated(colour, body, validate_parameters=False), x="foo") == "foo"


@both
@pins("flows", 20)
def test_variadic_parameters_are_not_coerced(colour: Colour):
    def body(*args: int, x: int, **kw: int):
        return args, x, kw

    assert colour.run(annotated(colour, body), 1, "2", x="5", y="6") == ((1, "2"), 5, {"y": "6"})


@both
def test_positional_only_parameters_are_coerced(colour: Colour):
    def body(x: int, /, y: int = 1):
        return [x, y]

    assert colour.run(annotated(colour, body), "4", "5") == [4, 5]


@both
@pins("flows", 21)
def test_a_parameter_may_be_called_keys(colour: Colour):
    def body(keys: list[str], items: int, *, fn: int):
        return keys, items, fn

    assert colour.run(annotated(colour, body), ("a",), items="1", fn="2") == (["a"], 1, 2)


@pins("flows", 22)
def test_defaults_are_coerced_also_for_a_run_that_was_created_without_them():
    from microflow.client.orchestration import current_client
    from microflow.flow_engine import run_flow

    @flow
    def body(model: Model = {"z": "1"}, point: Point = {"x": "2"}):  # type: ignore[assignment]  # noqa: B006
        return model.z, point

    assert body() == (1, Point(2))
    created = current_client().create_flow_run(body, parameters={})
    assert run_flow(body, flow_run=created) == (1, Point(2))


@both
def test_a_default_that_does_not_fit_is_refused_like_any_other_value(colour: Colour):
    def body(x: int = None):  # type: ignore[assignment]  # noqa: RUF013
        return x

    with pytest.raises(ParameterTypeError, match="x: must be an integer, got None"):
        colour.run(annotated(colour, body))


@both
@pins("flows", 23)
def test_invalid_parameters_take_no_time_no_retry_and_one_call_of_the_hook(colour: Colour):
    called: list[Any] = []

    def hook(made, run, state):
        context = FlowRunContext.get()
        called.append((made.name, run.name, state.name, context is not None and context.flow_run is run))

    def body(x: int):
        raise AssertionError

    colour.run(annotated(colour, body, retries=3, on_failure=[hook]), x="foo", return_state=True)
    run = fold().flow_run
    assert run.start_time == run.end_time != None  # noqa: E711 - both are set
    assert (run.run_count, flow_states()) == (0, ["Pending", "Failed"])
    assert called == [("body", run.name, "Failed", True)]


@both
@pins("flows", 24)
def test_what_cannot_be_written_reaches_the_body_and_is_recorded_by_its_name_or_attributes(colour: Colour):
    class Thing:
        def __init__(self):
            self.size, self._hidden, self.owner = 5, 6, None

        def __reduce__(self):
            raise TypeError("no")

    thing, cycle = Thing(), []
    cycle.append(cycle)
    thing.owner = thing  # type: ignore[assignment]
    made = colour.flow(lambda x, y, z: (x is thing, y is ValueError, z is cycle))
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        assert colour.run(made, thing, ValueError, cycle) == (True, True, True)
    shown = fold().flow_run.parameters
    assert shown["y"] == "<type>"
    assert shown["z"] == "<list>"
    assert shown["x"] == {"size": 5, "owner": "<Thing>"}


@both
@pins("flows", 25)
def test_an_object_of_a_class_is_the_same_one_in_the_body_and_plain_json_outside(colour: Colour):
    point, model = Point(1, 2), Model(3)
    seen: list[Any] = []

    def body(point: Point, model: Model):
        context = FlowRunContext.get()
        assert context is not None
        seen.extend([point, model, context.parameters["point"], context.parameters["model"]])

    colour.run(annotated(colour, body), point, model)
    assert [each is (point, model)[place % 2] for place, each in enumerate(seen)] == [True] * 4
    assert fold().flow_run.parameters["point"] == {"x": 1, "y": 2}


@both
def test_the_context_has_the_checked_values_and_the_log_the_given_ones(colour: Colour):
    seen: list[Any] = []

    def body(x: int):
        context = FlowRunContext.get()
        assert context is not None
        seen.append(context.parameters)

    colour.run(annotated(colour, body), "5")
    assert seen == [{"x": 5}]
    assert fold().flow_run.parameters == {"x": "5"}


@both
def test_what_has_no_annotation_is_the_very_object(colour: Colour):
    values = ([1], {"$ref": "a"}, {1})

    def body(x, y: Any, z: object):
        return x is values[0] and y is values[1] and z is values[2]

    assert colour.run(annotated(colour, body), *values)


@both
@pins("flows", 26)
def test_a_future_is_resolved_before_it_is_checked(colour: Colour):
    def inner(x: int):
        return x

    child = annotated(colour, inner, name="child")

    @colour.flow
    def outer():
        return (yield child(task(lambda: "7").submit()))

    assert colour.run(outer) == 7
    assert [flow_states(run_id) for run_id in flow_run_ids("child")] == [["Pending", "Running", "Completed"]]


@both
def test_what_a_failed_upstream_leaves_is_checked_too(colour: Colour):
    def inner(x: int):
        return x

    @task
    def fail():
        raise ValueError("no")

    child = annotated(colour, inner)

    @colour.flow
    def outer():
        return (yield child(allow_failure(fail.submit())))

    with pytest.raises(ParameterTypeError, match=r"x: must be an integer, got ValueError"):
        colour.run(outer)
    assert "Validation of flow parameters failed" in str(fold(flow_run_ids("inner")[0]).flow_run.state)


@both
@pins("flows", 32)
def test_a_callable_for_the_run_name_sees_the_checked_parameters(colour: Colour):
    def name():
        context = FlowRunContext.get()
        assert context is not None
        return f"{context.parameters['x'] + 1}"

    def body(x: int):
        return x

    colour.run(annotated(colour, body, flow_run_name=name), "5")
    assert fold().flow_run.name == "6"


def test_a_name_is_not_asked_for_when_parameters_do_not_fit():
    asked: list[int] = []

    @flow(flow_run_name=lambda: str(asked.append(1)))
    def body(x: int):
        return x

    body("foo", return_state=True)  # type: ignore[call-overload]
    assert asked == []


def test_a_run_is_run_again_with_what_was_given_checked_anew():
    """What is recorded is what was given; a re-execution makes the same of it."""
    calls: list[Any] = []

    @flow
    def body(x: int, point: Point):
        calls.append((x, point))
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body("5", {"x": "1"})  # type: ignore[arg-type]
    rerun(body, flow_run_ids()[0], force=True)
    assert calls == [(5, Point(1))] * 2


@pins("flows", 140)
def test_an_existing_run_is_run_with_what_was_recorded_and_given_parameters_replace_it_wholly():
    from microflow.client.orchestration import current_client
    from microflow.exceptions import SignatureMismatchError
    from microflow.flow_engine import run_flow

    @flow
    def body(x: int, y: int = 2):
        return x, y

    def created() -> Any:
        return current_client().create_flow_run(body, parameters={"x": "5", "y": 7})

    assert run_flow(body, flow_run=created()) == (5, 7)
    assert run_flow(body, flow_run=created(), parameters={"x": 1}) == (1, 2)
    narrower = flow(name="body")(lambda y: y)
    with pytest.raises(SignatureMismatchError):
        run_flow(narrower, flow_run=created())


@pytest.mark.parametrize("form", ["partial", "object", "method", "wrapped"])
def test_every_kind_of_callable_bears_annotations(form):
    def plain(x: int, y: str = "a"):
        return x

    class Called:
        def __call__(self, x: int):
            return x

        def method(self, x: int):
            return x

    @functools.wraps(plain)
    def wrapped(*args, **kwargs):
        return plain(*args, **kwargs)

    forms = {
        "partial": functools.partial(plain, y="b"),
        "object": Called(),
        "method": Called().method,
        "wrapped": wrapped,
    }
    assert make(forms[form])("5") == 5


def test_a_name_that_appears_later_is_found_at_a_later_call():
    names: dict[str, Any] = {"flow": flow}
    exec("from __future__ import annotations\n@flow\ndef body(x: Late, y: int):\n    return x, y\n", names)
    assert names["body"]("5", "6") == ("5", 6)
    names["Late"] = int
    assert names["body"]("5", "6") == (5, 6)


def test_names_that_never_appear_are_given_up(monkeypatch):
    """Broken if a flow whose annotations only a type checker resolves read them at every call."""
    names: dict[str, Any] = {"flow": flow}
    exec("from __future__ import annotations\n@flow\ndef body(x: Never, y: int):\n    return x, y\n", names)
    body = names["body"]
    assert [body("5", "6") for _ in range(5)] == [("5", 6)] * 5
    assert len(body._checks) == 3


def test_a_generic_function_takes_what_its_type_variables_stand_for():
    if sys.version_info >= (3, 12):
        names: dict[str, Any] = {"flow": flow}
        exec("from __future__ import annotations\n@flow\ndef body[T](x: T, y: list[T]): return x, y", names)
        assert names["body"](1, ("a",)) == (1, ["a"])


class TestSchema:
    def test_says_what_the_flow_takes(self):
        @flow
        def body(x: int, point: Point, name: str = "n", *more: int, flag: bool, anything=None):
            return x

        schema = body.parameter_schema()
        assert schema["properties"]["x"] == {"title": "x", "type": "integer", "position": 0}
        assert schema["properties"]["name"]["default"] == "n"
        assert schema["properties"]["point"]["$ref"] == "#/$defs/Point"
        assert schema["required"] == ["x", "point", "flag"]
        assert "more" not in schema["properties"]

    def test_of_a_flow_without_parameters_is_empty(self):
        assert flow(lambda: 1).parameter_schema() == {"title": "Parameters", "type": "object", "properties": {}}


class TestPlainForm:
    def test_of_parameters_is_json_whatever_they_are(self):
        import uuid
        from datetime import date
        from pathlib import Path

        run_id = uuid.uuid4()
        values = {
            "a": (1, {2}), "b": run_id, "c": date(2026, 1, 31), "d": Path("p"), "e": Point(1), "f": {1: b"x"},
            "g": float("nan"), "h": object(), "i": {"deep": [lambda: 1]}, "j": "text",
        }  # fmt: skip
        made: Any = flow(lambda **kw: 1)
        assert made.serialize_parameters(values) == {
            "a": [1, [2]], "b": str(run_id), "c": "2026-01-31", "d": "p", "e": {"x": 1, "y": 0}, "f": {"1": "x"},
            "g": "<float>", "h": "<object>", "i": "<dict>", "j": "text",
        }  # fmt: skip

    def test_leaves_out_what_the_binding_fills(self):
        class Owner:
            @flow
            def method(self, x):
                return x

        method: Any = Owner().method
        assert method.serialize_parameters({"self": 1, "x": 2}) == {"x": 2}


def test_a_parameter_of_a_few_lists_that_hold_each_other_twice_is_not_written_out():
    """Sixty layers have 2 ** 60 members when what is shared is written each time it stands there."""
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    assert flow(lambda x: x is value, name="shared")(value)
    (run_id,) = flow_run_ids("shared")
    assert fold(run_id).flow_run.parameters == {"x": "<list>"}
