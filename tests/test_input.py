# SPDX-License-Identifier: Apache-2.0
"""Typed input: its classes, what a pause asks for and what it is answered, and inputs under keys."""

from __future__ import annotations

import dataclasses
import enum
from datetime import date
from typing import Any, ClassVar, NamedTuple, Optional
from uuid import uuid4

import pytest

from microflow import flow, pause_flow_run, resume_flow_run, suspend_flow_run
from microflow import input as inputs
from microflow.client.orchestration import current_client
from microflow.exceptions import ObjectAlreadyExists, ObjectNotFound, Pause, ValidationError
from microflow.flow_runs import rerun
from microflow.input import AutomaticRunInput, RunInput, RunInputMetadata, run_input_subclass_from_type
from microflow.states import Paused, Running, Suspended
from tests.behaviour_support import pins
from tests.pause_support import own_run_id, when
from tests.support import Colour, both, flow_run_ids, flow_states, fold, memory_home


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


class Person(RunInput):
    name: str
    age: int = 30
    nick: Optional[str] = None  # noqa: UP045 - both spellings are read
    tags: list[str] = []
    limit: ClassVar[int] = 5
    _hidden: int = 1


class Checked(RunInput):
    x: int

    def __post_init__(self):
        if self.x < 0:
            raise ValueError("x is negative")


class Shade(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    left: int
    right: str


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Model:
    """Validates by itself, as pydantic's models do."""

    model_fields: ClassVar[dict[str, Any]] = {"z": int}

    def __init__(self, z):
        self.z = z

    @classmethod
    def model_validate(cls, data):
        return cls(int(data["z"]))

    def model_dump(self):
        return {"z": self.z}

    @classmethod
    def model_json_schema(cls):
        return {"type": "object", "properties": {"z": {"type": "integer"}}, "required": ["z"]}


# ------------------------------------------------------------------------------------------------- the classes


class TestRunInput:
    def test_its_fields_are_coerced_and_have_defaults_of_their_own(self):
        made = Person(name="Ann", age="5")
        assert (made.name, made.age, made.nick, made.tags) == ("Ann", 5, None, [])
        made.tags.append("a")
        assert Person(name="Ann").tags == []
        assert repr(Person(name="Ann")) == "Person(name='Ann', age=30, nick=None, tags=[])"
        assert Person(name="Ann") == Person(name="Ann") != Person(name="Bob")

    def test_everything_that_is_wrong_is_told_at_once(self):
        with pytest.raises(ValidationError) as caught:
            Person(age="x", size=5)
        assert {place for place, _ in caught.value.problems} == {("name",), ("age",), ("size",)}
        with pytest.raises(ValidationError, match="names of fields"):
            Person.model_validate({1: 2})

    def test_its_own_check_is_called_last(self):
        assert Checked(x="5").x == 5
        with pytest.raises(ValueError, match="x is negative"):
            Checked(x=-1)

    def test_a_field_cannot_have_the_name_of_what_every_input_has(self):
        class Wrong(RunInput):
            metadata: int  # type: ignore[assignment]

        with pytest.raises(TypeError, match="'metadata'"):
            Wrong.schema()

    def test_fields_are_inherited(self):
        class Employee(Person):
            boss: Person | None = None

        made = Employee(name="Ann", boss={"name": "Bob"})
        assert isinstance(made.boss, Person)
        assert list(Employee.schema()["properties"]) == ["name", "age", "nick", "tags", "boss"]

    def test_the_schema(self):
        assert Person.schema() == {
            "title": "Person",
            "type": "object",
            "properties": {
                "name": {"title": "Name", "type": "string"},
                "age": {"title": "Age", "type": "integer", "default": 30},
                "nick": {"title": "Nick", "anyOf": [{"type": "string"}, {"type": "null"}]},
                "tags": {"title": "Tags", "type": "array", "items": {"type": "string"}, "default": []},
            },
            "required": ["name"],
            "additionalProperties": False,
        }

    @pins("flows", 109)
    def test_initial_data_are_defaults_of_a_subclass(self):
        asked = Person.with_initial_data(name="Bob", nick="bobby", description="Who is it?")
        assert asked.schema()["properties"]["name"]["default"] == "Bob"
        assert asked.schema()["title"] == "Person"
        assert "required" not in asked.schema()
        assert issubclass(asked, Person)
        assert (asked().name, asked(nick=None).nick) == ("Bob", None)
        assert (Person.schema()["required"], Person._description) == (["name"], None)
        with pytest.raises(TypeError, match="no field size"):
            Person.with_initial_data(size=5)

    def test_one_that_was_made_here_has_no_metadata(self):
        with pytest.raises(RuntimeError, match="not received"):
            Person(name="Ann").metadata
        assert RunInputMetadata("k") == RunInputMetadata("k") != RunInputMetadata("l")


@pytest.mark.parametrize(
    ("wanted", "name", "given", "value"),
    [
        (int, "int", "5", 5), (list[int], "list", ["1"], [1]), (Point, "point", {"x": "1"}, Point(1)),
        (Shade, "shade", "red", Shade.RED), (Pair, "pair", ["1", "a"], Pair(1, "a")),
        (date, "date", "2026-01-31", date(2026, 1, 31)),
        (int | None, "uniontype", None, None), (dict, "dict", {}, {}),
    ],
)  # fmt: skip
def test_any_other_type_is_asked_for_as_a_single_value(wanted, name, given, value):
    made = run_input_subclass_from_type(wanted)
    assert issubclass(made, AutomaticRunInput)
    assert made.__name__.lower() in (name, "union", "optional")
    assert made.model_validate({"value": given}).value == value
    assert made.schema()["required"] == ["value"]


def test_a_run_input_stands_for_itself_and_a_model_for_one_of_both_kinds():
    assert run_input_subclass_from_type(Person) is Person
    made: Any = run_input_subclass_from_type(Model)
    assert (made.__name__, issubclass(made, Model), issubclass(made, RunInput)) == ("ModelRunInput", True, True)
    assert made.schema() == Model.model_json_schema()
    assert made.with_initial_data(z=5).z == 5


@pins("flows", 108)
def test_the_keys_of_a_pause_are_made_of_its_name_and_key():
    keyset = inputs.keyset_from_paused_state(Paused(pause_key="1"))
    assert keyset == {part: f"paused-1-{part}" for part in ("description", "response", "schema")}
    assert inputs.keyset_from_paused_state(Suspended(pause_key="1"))["schema"] == "suspended-1-schema"
    assert inputs.keyset_from_base_key("a")["response"] == "a-response"
    with pytest.raises(RuntimeError, match="unsupported"):
        inputs.keyset_from_paused_state(Running())


# ------------------------------------------------------------------------------------------------------ pauses


def asks(colour: Colour, wanted: Any, answers: list[Any], **options: Any) -> Any:
    """A flow that pauses for `wanted` and gives what it is answered; each answer resumes one pause."""
    left = iter(answers)

    @colour.flow(**options)
    def body():
        with when("PAUSED", lambda run_id: resume_flow_run(run_id, next(left), _sync=True), times=len(answers)):
            return (yield pause_flow_run(wait_for_input=wanted))

    return body


@both
@pins("flows", 104)
def test_a_pause_gives_what_it_was_answered(colour: Colour):
    assert colour.run(asks(colour, int, [{"value": 42}])) == 42
    made = colour.run(asks(colour, Checked, [{"x": 42}]))
    assert (type(made), made.x) == (Checked, 42)
    assert made.metadata == RunInputMetadata("paused-1-response", None, fold(flow_run_ids()[-1]).flow_run.id)


@both
@pytest.mark.parametrize(
    ("wanted", "answer", "value"),
    [
        (Point, {"value": {"x": 1}}, Point(1)), (Shade, {"value": "red"}, Shade.RED),
        (date, {"value": "2026-01-31"}, date(2026, 1, 31)), (tuple[int, str], {"value": [1, "a"]}, (1, "a")),
        (int | None, {"value": None}, None), (Any, {"value": {"a": [1]}}, {"a": [1]}),
    ],
    ids=str,
)  # fmt: skip
def test_answers_come_as_the_type_that_was_asked_for(colour: Colour, wanted, answer, value):
    assert colour.run(asks(colour, wanted, [answer])) == value


@both
def test_a_model_is_answered_by_one_of_its_own_kind(colour: Colour):
    made = colour.run(asks(colour, Model, [{"z": 5}]))
    assert isinstance(made, Model)
    assert (made.z, made.metadata.key) == (5, "paused-1-response")  # type: ignore[attr-defined]


@both
@pins("flows", 105, 106)
def test_an_answer_that_does_not_fit_is_refused_and_the_run_stays_paused(colour: Colour):
    class Approval(RunInput):
        approved: bool

    refusals: list[str] = []

    def answer(run_id: str) -> None:
        before = fold(run_id).flow_run.state_id
        for given in ({"approved": "not a bool!"}, None, {}, {"approved": 1}, {"approved": True, "extra": 1}):
            with pytest.raises(RuntimeError, match="Cannot resume this run") as caught:
                resume_flow_run(run_id, given, _sync=True)
            refusals.append(str(caught.value))
        with pytest.raises(TypeError, match="dict"):
            resume_flow_run(run_id, "yes", _sync=True)  # type: ignore[arg-type]
        assert fold(run_id).flow_run.state_id == before
        resume_flow_run(run_id, {"approved": True}, _sync=True)

    @colour.flow
    def body():
        with when("PAUSED", answer):
            return (yield pause_flow_run(Approval))

    assert colour.run(body).approved is True
    assert "field 'approved'" in refusals[0]
    assert "'not a bool!' is not of type 'boolean'" in refusals[0]
    assert "'approved' is a required property" in refusals[1]
    assert "'extra'" in refusals[4]
    assert flow_states() == ["Pending", "Running", "Paused", "Running", "Completed"]


@both
@pins("flows", 106, 137)
def test_when_everything_has_a_default_nothing_has_to_be_answered(colour: Colour):
    made = colour.run(asks(colour, Person.with_initial_data(name="Bob"), [None]))
    assert (type(made).__mro__[1], made.name, made.age) == (Person, "Bob", 30)
    assert "paused-1-response" not in fold().inputs


@pins("flows", 107)
@pytest.mark.parametrize("schema", [None, 5, {"type": "nothing"}, {"$ref": "#/absent"}])
def test_a_resume_is_refused_when_the_schema_is_gone_or_broken(schema):
    def answer(run_id: str) -> None:
        client = current_client()
        kept = fold(run_id).inputs["paused-1-schema"]["value"]
        inputs.delete_flow_run_input("paused-1-schema", run_id, _sync=True)
        if schema is not None:
            inputs.create_flow_run_input("paused-1-schema", schema, run_id, _sync=True)
        with pytest.raises(RuntimeError, match="Cannot resume this run"):
            resume_flow_run(run_id, {"value": 1}, _sync=True)
        assert client.read_flow_run(run_id).state_name == "Paused"
        if schema is not None:
            inputs.delete_flow_run_input("paused-1-schema", run_id, _sync=True)
        inputs.create_flow_run_input("paused-1-schema", kept, run_id, _sync=True)
        resume_flow_run(run_id, {"value": 1}, _sync=True)

    @flow
    def body():
        with when("PAUSED", answer):
            return pause_flow_run(int)

    assert body() == 1


@both
@pins("flows", 110)
def test_what_only_the_class_can_judge_is_raised_in_the_paused_code_which_may_ask_again(colour: Colour):
    answers = iter([{"x": -1}, {"x": 1}])

    @colour.flow
    def body():
        raised = 0
        with when("PAUSED", lambda run_id: resume_flow_run(run_id, next(answers), _sync=True), times=2):
            while True:
                try:
                    return raised, (yield pause_flow_run(Checked)).x
                except ValueError:
                    raised += 1

    assert colour.run(body) == (1, 1)
    assert {"paused-1-response", "paused-2-response"} < set(fold().inputs)


@both
@pins("flows", 111)
def test_a_pause_that_was_passed_gives_its_answer_again(colour: Colour):
    @colour.flow
    def body():
        with when("PAUSED", lambda run_id: resume_flow_run(run_id, {"value": 5}, _sync=True)):
            first = yield pause_flow_run(int, key="once")
            return [first, (yield pause_flow_run(int, key="once"))]

    assert colour.run(body) == [5, 5]
    assert flow_states().count("Paused") == 1


@both
@pins("flows", 112)
def test_each_attempt_asks_anew_and_no_old_answer_counts(colour: Colour):
    answers, got = iter([{"value": 1}, None, {"value": 2}]), []

    def answer(run_id: str) -> None:
        given = next(answers)
        if given is None:
            given = next(answers)
            with pytest.raises(RuntimeError, match="required property"):
                resume_flow_run(run_id, None, _sync=True)
        resume_flow_run(run_id, given, _sync=True)

    @colour.flow(retries=1)
    def body():
        with when("PAUSED", answer):
            got.append((yield pause_flow_run(int)))
        if len(got) == 1:
            raise ValueError("once more")

    colour.run(body)
    assert got == [1, 2]


@both
@pins("flows", 102)
def test_a_pause_in_a_task_gets_the_answer(colour: Colour):
    states: list[Any] = []

    def answer(run_id: str) -> None:
        states.append(current_client().read_flow_run(run_id).state_name)
        assert inputs.read_flow_run_input("paused-1-schema", run_id, _sync=True)["required"] == ["value"]
        resume_flow_run(run_id, {"value": 5}, _sync=True)

    @colour.task
    def inner():
        return (yield pause_flow_run(int))

    @colour.flow
    def body():
        with when("PAUSED", answer):
            return (yield inner())

    assert (colour.run(body), states) == (5, ["Paused"])


def test_the_question_stands_in_the_line_that_pauses_and_the_answer_in_the_line_that_resumes():
    asked = Person.with_initial_data(description="Who is it?")

    @flow
    def body():
        with when("PAUSED", lambda run_id: resume_flow_run(run_id, {"name": "Ann"}, _sync=True)):
            return pause_flow_run(asked).name

    assert body() == "Ann"
    (run_id,) = flow_run_ids()
    lines: dict[int, list[str]] = {}
    for record in current_client().store.read(run_id).records:
        lines.setdefault(record.position, []).append(record.data.get("key") or record.data.get("type") or record.kind)
    assert ["PAUSED", "paused-1-schema", "paused-1-description"] in lines.values()
    assert ["RUNNING", "paused-1-response"] in lines.values()
    assert inputs.read_flow_run_input("paused-1-description", run_id, _sync=True) == "Who is it?"


@flow
def suspends():
    return suspend_flow_run(int, timeout=None)


@pins("flows", 124)
def test_a_suspended_run_gets_its_answer_when_it_is_run_again():
    with pytest.raises(Pause):
        suspends()
    (run_id,) = flow_run_ids()
    assert set(fold().inputs) == {"suspended-1-schema"}
    resume_flow_run(run_id, {"value": 7}, _sync=True)
    state = rerun(suspends, run_id)
    assert state.result(_sync=True) == 7
    assert flow_states() == ["Pending", "Running", "Suspended", "Resuming", "Running", "Completed"]


@pins("flows", 137)
def test_a_stored_answer_that_does_not_fit_the_class_names_the_type():
    @flow
    def body():
        keyset = inputs.keyset_from_base_key("k")
        assert Person.with_initial_data(name="Bob").load(keyset).name == "Bob"
        Person.save(keyset)
        inputs.create_flow_run_input("k-response", {"name": "Ann", "age": "many"})
        with pytest.raises(ValidationError, match="age: must be an integer"):
            Person.load(keyset)
        return inputs.read_flow_run_input("k-schema")["title"]

    assert body() == "Person"


@pytest.mark.parametrize("value", [10**5000, float("inf"), {1: 2}, object(), "x" * 2_000_000], ids=type)
def test_a_hostile_answer_is_refused(value):
    def give(run_id: str) -> None:
        with pytest.raises(RuntimeError, match="Cannot resume this run"):
            resume_flow_run(run_id, {"value": value}, _sync=True)
        resume_flow_run(run_id, {"value": 1}, _sync=True)

    @flow
    def body():
        with when("PAUSED", give):
            return pause_flow_run(int)

    assert body() == 1


# --------------------------------------------------------------------------------------------- inputs under keys


@both
@pins("flows", 131)
def test_inputs_are_read_and_listed_by_their_keys(colour: Colour):
    @colour.flow
    def body():
        read = [(yield inputs.read_flow_run_input("absent"))]
        for key in ("a-1", "b_1", "a-2", "a-3"):
            yield inputs.create_flow_run_input(key, {"key": key})
        read.append((yield inputs.read_flow_run_input("b_1")))
        for limit, excluded in ((1, None), (None, None), (2, ["a-1"]), (5, {"a-1", "a-3"})):
            found = yield inputs.filter_flow_run_input("a-", limit=limit, exclude_keys=excluded)
            read.append([each.key for each in found])
        yield inputs.delete_flow_run_input("a-1")
        read.append((yield inputs.read_flow_run_input("a-1")))
        return read

    assert colour.run(body) == [
        None, {"key": "b_1"}, ["a-1"], ["a-1", "a-2", "a-3"], ["a-2", "a-3"], ["a-2"], None,
    ]  # fmt: skip


@both
@pins("flows", 132)
def test_a_model_is_signed_by_the_run_that_gives_it(colour: Colour):
    @colour.flow
    def body():
        yield inputs.create_flow_run_input_from_model("mine", Person(name="Ann"))
        yield inputs.create_flow_run_input_from_model("theirs", Point(1), sender="somebody")
        return own_run_id()

    run_id = colour.run(body)
    inputs.create_flow_run_input_from_model("outside", Person(name="Bob"), run_id, _sync=True)
    found = inputs.filter_flow_run_input("", None, flow_run_id=run_id, _sync=True)
    assert [each.sender for each in found] == [f"prefect.flow-run.{run_id}", "somebody", None]
    assert found[1].decoded_value == {"x": 1, "y": 0}
    made = Person.load_from_flow_run_input(found[0])
    assert (made, made.metadata.sender) == (Person(name="Ann"), f"prefect.flow-run.{run_id}")
    assert found[0].created is not None
    assert found[0] == inputs.filter_flow_run_input("mine", flow_run_id=run_id, _sync=True)[0] != found[1]


def test_what_is_wrong_with_a_key_or_a_run_is_named():
    run_id = flow(own_run_id)()
    inputs.create_flow_run_input("key", 1, run_id)
    with pytest.raises(ObjectAlreadyExists, match="'key'"):
        inputs.create_flow_run_input("key", 2, run_id)
    with pytest.raises(ObjectNotFound, match="'absent'"):
        inputs.delete_flow_run_input("absent", run_id)
    with pytest.raises(ObjectNotFound):
        inputs.create_flow_run_input("key", 1, uuid4())
    with pytest.raises(RuntimeError, match="provide a flow run ID or be within a flow run"):
        inputs.read_flow_run_input("key")
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        inputs.create_flow_run_input("object", object(), run_id)
    assert inputs.read_flow_run_input("key", run_id) == 1


def test_the_names_with_an_a_are_coroutines():
    from tests.support import run

    run_id = flow(own_run_id)()

    async def all_of_them():
        await inputs.acreate_flow_run_input("a", 1, run_id)
        await inputs.acreate_flow_run_input_from_model("b", Point(1), run_id)
        found = await inputs.afilter_flow_run_input("", None, flow_run_id=run_id)
        await inputs.adelete_flow_run_input("b", run_id)
        return await inputs.aread_flow_run_input("a", run_id), len(found)

    assert run(all_of_them()) == (1, 2)


# ---------------------------------------------------------------------------------------------- between runs


@both
@pins("flows", 135)
def test_tuples_are_received_as_tuples_until_nothing_comes(colour: Colour):
    @colour.flow
    def body():
        for number in "123":
            yield inputs.send_input(("a", number), own_run_id())
        handler = inputs.receive_input(tuple[str, str], timeout=0)
        return (yield received(handler, colour))

    assert colour.run(body) == [("a", "1"), ("a", "2"), ("a", "3")]
    run_id = flow_run_ids()[0]
    handler = inputs.receive_input(tuple[str, str], timeout=0, raise_timeout_error=True, flow_run_id=run_id)
    with pytest.raises(TimeoutError, match="no input 'tuple-auto'"):
        list(handler)


def received(handler: Any, colour: Colour) -> Any:
    """All that a handler gives, as a value or a coroutine."""

    async def all_of_them():
        return [each async for each in handler]

    return all_of_them() if colour.isasync else list(handler)


@pins("flows", 134, 136)
def test_a_new_handler_begins_anew_and_prefixes_keep_inputs_apart():
    run_id = flow(own_run_id)()
    inputs.send_input(1, run_id)
    inputs.send_input(2, run_id, key_prefix="other")
    inputs.send_input("text", run_id)
    first = inputs.receive_input(int, timeout=0, flow_run_id=run_id)
    assert list(first) == [1]
    assert list(first) == []
    again = inputs.receive_input(int, timeout=0, flow_run_id=run_id, with_metadata=True)
    (made,) = again
    assert (made.value, made.metadata.sender) == (1, None)
    assert list(inputs.receive_input(int, timeout=0, exclude_keys=again.exclude_keys, flow_run_id=run_id)) == []
    assert list(inputs.receive_input(int, timeout=0, key_prefix="other", flow_run_id=run_id)) == [2]


@both
def test_what_arrives_later_is_waited_for(colour: Colour):
    import threading

    @colour.flow
    def body():
        run_id = own_run_id()
        thread = threading.Thread(target=lambda: Person(name="Ann").send_to(run_id, _sync=True))
        handler = Person.receive(timeout=20)
        thread.start()
        got = yield handler.anext() if colour.isasync else handler.next()
        thread.join()
        return got

    assert colour.run(body) == Person(name="Ann")


@pins("flows", 132, 133)
def test_a_response_goes_to_the_run_that_sent_and_to_nobody_else():
    receiver = flow(own_run_id)()

    @flow
    def sender():
        Person(name="Ann").send_to(receiver)
        inputs.send_input(Model(5), receiver)
        return own_run_id()

    sending = sender()
    got = Person.receive(timeout=0, flow_run_id=receiver).next()
    got.respond("thanks", _sync=True)
    assert inputs.receive_input(str, timeout=0, flow_run_id=sending).next() == "thanks"
    model = inputs.receive_input(Model, timeout=0, flow_run_id=receiver).next()
    assert (model.z, model.metadata.sender) == (5, f"prefect.flow-run.{sending}")
    Person(name="Bob").send_to(receiver, sender="somebody", _sync=True)
    inputs.send_input(Person(name="Cid"), receiver, _sync=True)
    for other in Person.receive(timeout=0, flow_run_id=receiver, exclude_keys=[got.metadata.key]):
        with pytest.raises(RuntimeError, match="Cannot respond"):
            other.respond("no")


def test_an_input_that_does_not_fit_is_told_once_and_is_in_nobodys_way():
    run_id = flow(own_run_id)()
    inputs.send_input(["x"], run_id)
    inputs.send_input(["1"], run_id)
    handler = inputs.receive_input(list[int], timeout=0, flow_run_id=run_id)
    with pytest.raises(ValidationError, match=r"value.0: must be an integer"):
        handler.next()
    assert list(handler) == [[1]]
