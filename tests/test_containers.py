# SPDX-License-Identifier: Apache-2.0
"""What stands in containers is found and replaced wherever it is, and what did not change stays the same object."""

from __future__ import annotations

import copy
import dataclasses
import gc
import io
import pickle
import time
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow._containers import (
    BaseAnnotation,
    StopVisiting,
    allow_failure,
    contains_special,
    find,
    is_iterable,
    opaque,
    quote,
    unmapped,
    visit_collection,
)
from microflow.exceptions import MicroflowException
from tests.behaviour_support import pins

ANNOTATIONS = [unmapped, allow_failure, quote, opaque]


class Future:
    """Stands for a future: hashable by identity, with a result."""

    def __init__(self, result: Any = "done") -> None:
        self.result = result


def resolve(node):
    return node.result if isinstance(node, Future) else node


def resolved(expr, **options):
    return visit_collection(expr, resolve, return_data=True, **options)


def visited(expr, **options):
    """The nodes in the order in which the visitor saw them."""
    seen = []
    visit_collection(expr, seen.append, **options)
    return seen


Pair = namedtuple("Pair", "left right")  # noqa: PYI024  # the untyped kind is a case of its own


class Typed(NamedTuple):
    left: Any
    right: Any = None


class OwnNew(tuple):
    """A tuple whose constructor takes something else than its members."""

    def __new__(cls, first, second):
        return super().__new__(cls, (first, second))


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any


# ------------------------------------------------------------------------------------------------ annotations


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_an_annotation_holds_one_value(annotation):
    value = [1]
    wrapped = annotation(value)
    assert wrapped.value is wrapped.unwrap() is value
    assert list(wrapped) == [value]
    assert wrapped.rewrap(2) == annotation(2)
    assert type(wrapped.rewrap(2)) is annotation
    assert repr(wrapped) == f"{annotation.__name__}([1])"


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_an_annotation_equals_only_its_own_class_and_has_no_hash(annotation):
    assert annotation(1) == annotation(1)
    assert (annotation(1) != annotation(1)) is False
    assert annotation(1) != annotation(2)
    assert annotation(1) != (1,)
    assert all(annotation(1) != other(1) for other in ANNOTATIONS if other is not annotation)
    with pytest.raises(TypeError, match="unhashable"):
        hash(annotation(1))


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_an_annotation_survives_copying_and_pickling(annotation):
    for again in (copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        assert again(annotation([1])) == annotation([1])


def test_indexing_unmapped_always_gives_the_value():
    value = object()
    assert unmapped(value)[0] is unmapped(value)[99] is unmapped(value)["any"] is value
    assert quote(value).unquote() is value


# ------------------------------------------------------------------------------------------------ replacing


@pytest.mark.parametrize(
    "build",
    [
        lambda x: x,
        lambda x: [1, x],
        lambda x: (1, x),
        lambda x: {1, x},
        lambda x: frozenset({1, x}),
        lambda x: {"key": x},
        lambda x: {x: "value"},
        lambda x: OrderedDict([("b", x), ("a", 1)]),
        lambda x: deque([1, x], maxlen=5),
        lambda x: Pair(1, x),
        lambda x: Pair({1, x}, {x}),
        lambda x: Typed(1, x),
        lambda x: OwnNew(1, x),
        lambda x: Plain(1, [x]),
        lambda x: Frozen((x,)),
        lambda x: Counter({"a": x, x: 2}),
        allow_failure,
        lambda x: [{"a": (Plain({1, x}),)}, deque([frozenset([x])])],
    ],
)
@pins("futures_runners", 32, 33, 41)
def test_a_future_is_replaced_in_any_container_and_the_type_is_kept(build):
    """Also where the reference fails (defaultdict, Counter, frozenset, deque, tuples of one's own)."""
    before, after = build(Future("done")), build("done")
    assert resolved(before) == after
    assert type(resolved(before)) is type(after)
    assert resolved(after) is after
    assert find(before, Future)
    assert find(after, Future) == []


def test_what_a_constructor_would_lose_is_kept():
    factory = defaultdict(list, a=[Future()])
    assert resolved(factory).default_factory is list
    assert resolved(deque([Future()], maxlen=3)).maxlen == 3

    class Tagged(list):
        def __init__(self, tag):
            super().__init__()
            self.tag = tag

    tagged = Tagged("x")
    tagged.append(Future())
    assert resolved(tagged) == ["done"]
    assert (type(resolved(tagged)), resolved(tagged).tag) == (Tagged, "x")
    assert tagged[0] is not "done"  # noqa: F632  # the original is untouched

    class TaggedTuple(OwnNew):
        pass

    point = TaggedTuple(1, Future())
    point.tag = "y"
    assert (resolved(point), resolved(point).tag) == ((1, "done"), "y")


def test_a_structure_sequence_of_c_is_rebuilt_too():
    moment = time.gmtime(0)
    assert visit_collection(moment, lambda node: 1999 if node == 1970 else node, return_data=True)[0] == 1999


def test_a_container_that_cannot_be_made_again_is_named():
    class Stubborn(dict):
        def __copy__(self):
            raise ValueError("I am one of a kind")

    with pytest.raises(MicroflowException, match=r"Stubborn cannot be made again.*one of a kind.*Wrap it in quote"):
        resolved(Stubborn(a=Future()))
    untouched = Stubborn(a=1)
    assert resolved([untouched])[0] is untouched
    with pytest.raises(MicroflowException, match=r"builtins\.set cannot be made again.*unhashable"):
        resolved({Future([1])})


@pins("futures_runners", 40)
def test_nothing_changed_means_the_very_same_object_at_every_level():
    kept = [3, Pair(4, {"a": {5}})]
    mixed = [[1, Future(2)], kept]
    after = resolved(mixed)
    assert after == [[1, 2], kept]
    assert after[1] is kept
    assert after is not mixed
    assert visit_collection(mixed, lambda node: node, return_data=True) is mixed
    assert visit_collection(mixed, lambda node: 7) is None


@pins("futures_runners", 37)
def test_the_visit_goes_on_inside_the_replacement():
    assert resolved(Future([Future({"a": Future(3)})])) == [{"a": 3}]

    def drop(node):
        return (
            {key: value for key, value in node.items() if key != "secret"} if isinstance(node, dict) else resolve(node)
        )

    nested = {"secret": 1, "inner": {"secret": 2, "kept": Future()}}
    assert visit_collection(nested, drop, return_data=True) == {"inner": {"kept": "done"}}


@pins("futures_runners", 38)
def test_shared_members_stay_shared():
    for shared in ([Future()], {"deep": {"deeper": [Future()]}}, Future([1])):
        after = resolved({"a": shared, "b": shared, "c": [[shared]]})
        assert after["a"] is after["b"] is after["c"][0][0]
        assert after["a"] is not shared


def test_results_of_temporary_objects_are_never_mixed_up():
    """The reference keys its memo by ids that are used again: here six items came back as two."""

    def fresh(node):
        gc.collect(0)
        return [Future(node)] if isinstance(node, int) else resolve(node)

    items = [[0], [1], [2], [3]]
    assert visit_collection(items, fresh, return_data=True) == [[[0]], [[1]], [[2]], [[3]]]
    assert resolved([Future([i]) for i in range(200)]) == [[i] for i in range(200)]


@pytest.mark.parametrize("make", [lambda node: [1], lambda node: [[1]] if node == 1 else node])
def test_a_visitor_that_makes_something_new_for_ever_is_stopped(make):
    with pytest.raises(MicroflowException, match="replacing int objects never ends"):
        visit_collection(1, make, return_data=True)


@pins("futures_runners", 39)
def test_cycles_end_and_close_again():
    """Better than the reference: the inner reference is the new object."""
    unchanged: dict[str, Any] = {"a": 1}
    unchanged["self"] = unchanged
    assert resolved(unchanged) is unchanged
    assert visited(unchanged) == [unchanged, "a", 1, "self"]

    changed: dict[str, Any] = {"a": Future()}
    changed["self"] = changed
    after = resolved(changed)
    assert after["a"] == "done"
    assert after["self"] is after is not changed

    left: list[Any] = [Future(1)]
    right = (left, Future(2))
    left.append(right)
    new = resolved([left, right])
    assert new[0][0] == 1
    assert new[0][1] is new[1]
    assert new[1][0] is new[0]
    assert new[1][1] == 2


def test_a_change_behind_a_cycle_reaches_everything_that_refers_to_it():
    head: list[Any] = []
    middle = [head]
    tail = {"middle": middle}
    head.extend([tail, Future()])  # met last: after `middle` and `tail` were seen unchanged
    after = resolved(head)
    assert after[1] == "done"
    assert after[0]["middle"][0] is after


def test_a_future_whose_result_holds_itself_ends():
    future = Future()
    future.result = [future]
    after = resolved(future)
    assert after[0] is after


def test_any_depth_is_visited():
    """The reference ends at about 1,000 levels."""
    deep: Any = Future("bottom")
    for level in range(20_000):
        deep = [deep] if level % 2 else {"a": deep}
    after = resolved(deep)
    levels = 0
    while not isinstance(after, str):
        after = after[0] if isinstance(after, list) else after["a"]
        levels += 1
    assert (levels, after) == (20_000, "bottom")
    assert len(find(deep, Future)) == 1
    while isinstance(deep, (list, dict)):  # taken apart by hand: freeing it at once recurses in C
        deep = deep.pop() if isinstance(deep, list) else deep.pop("a")


nested = st.recursive(
    st.integers() | st.builds(Future, st.integers()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.builds(quote, inner)
    ),
    max_leaves=15,
)


def by_recursion(value):
    """The plain recursive definition of what resolving means."""
    if isinstance(value, Future):
        return value.result
    if isinstance(value, quote):
        return quote(by_recursion(value.value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(by_recursion, value))
    if isinstance(value, dict):
        return {key: by_recursion(member) for key, member in value.items()}
    return value


@given(nested)
def test_the_loops_do_what_the_plain_recursion_says(value):
    after = resolved(value)
    assert after == by_recursion(value)
    assert find(after, Future) == []
    if not visit_has_future(value):
        assert after is value


def visit_has_future(value):
    return any(isinstance(node, Future) for node in visited(value))


# ------------------------------------------------------------------------------------------------ dataclasses, models


def test_post_init_runs_again_and_fields_that_init_does_not_take_are_kept():
    @dataclasses.dataclass
    class Derived:
        a: Any
        size: int = dataclasses.field(init=False, default=0)

        def __post_init__(self):
            self.size = len(self.a)

    assert resolved(Derived([Future(), 2])) == Derived(["done", 2])

    @dataclasses.dataclass
    class Late:
        a: Any
        b: Any = dataclasses.field(init=False)

    late = Late(Future())
    assert resolved(late).a == "done"  # b was never set
    late.b = Future("b")
    assert (resolved(late).a, resolved(late).b) == ("done", "b")


def test_dataclasses_with_init_only_variables_slots_or_their_own_init_are_rebuilt():
    @dataclasses.dataclass
    class Once:
        a: Any
        only: dataclasses.InitVar[int] = 5

    @dataclasses.dataclass(frozen=True)
    class Slotted:
        __slots__ = ("a",)
        a: Any

        def __getstate__(self):
            return [self.a]

        def __setstate__(self, state):
            object.__setattr__(self, "a", state[0])

    @dataclasses.dataclass(init=False)
    class Own:
        a: Any

        def __init__(self):
            self.a = Future()

    for before in (Once(Future(), 6), Slotted(Future()), Own()):
        after = resolved(before)
        assert (type(after), after.a) == (type(before), "done")
    assert resolved(Plain) is Plain  # the class itself is no container


class Model:
    """Looks like a pydantic model, without validation and without lazy attributes being read."""

    model_fields = {"a": None, "lazy": None}
    __slots__ = ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__", "__pydantic_private__")

    def __init__(self, **values):
        object.__setattr__(self, "__dict__", values)
        object.__setattr__(self, "__pydantic_extra__", {"more": values.pop("more", None)})
        object.__setattr__(self, "__pydantic_fields_set__", {"a"})
        object.__setattr__(self, "__pydantic_private__", {"_secret": 1})

    def __setattr__(self, name, value):
        raise TypeError("frozen")

    def __getattribute__(self, name):
        if name == "lazy":
            raise AssertionError("a lazy attribute was read")
        return object.__getattribute__(self, name)

    def __copy__(self):
        new = object.__new__(type(self))
        object.__setattr__(new, "__dict__", dict(object.__getattribute__(self, "__dict__")))
        for name in ("__pydantic_extra__", "__pydantic_fields_set__", "__pydantic_private__"):
            object.__setattr__(new, name, copy.copy(object.__getattribute__(self, name)))
        return new


@pins("futures_runners", 47)
def test_models_keep_private_attributes_set_fields_and_extras_and_read_nothing_lazy():
    model = Model(a=[Future()], lazy=1, more=Future("more"))
    after = resolved(model)
    assert (after.a, after.__pydantic_extra__) == (["done"], {"more": "more"})
    assert (after.__pydantic_fields_set__, after.__pydantic_private__) == ({"a"}, {"_secret": 1})
    assert isinstance(model.a[0], Future)
    assert len(find(model, Future)) == 2
    whole = Model(a=1, lazy=2)
    assert resolved([whole])[0] is whole


# ------------------------------------------------------------------------------------------------ what is not entered


@pytest.mark.parametrize(
    "leaf",
    [
        "text",
        b"bytes",
        io.StringIO("x"),
        io.BytesIO(b"x"),
        iter([Future()]),
        {"a": Future()}.values(),
        MappingProxyType({"a": Future()}),
        SimpleNamespace(a=Future()),
        Mock(spec=list),
        MagicMock(),
        list,
    ],
    ids=lambda leaf: type(leaf).__name__,
)
@pins("futures_runners", 35, 36)
def test_what_is_no_container_is_handed_back_untouched(leaf):
    holder = [leaf]
    assert resolved(holder) is holder
    assert visited(holder) == [holder, leaf]
    assert find(holder, Future) == []


@pins("futures_runners", 35)
def test_generators_are_not_consumed():
    generator = (number for number in [1, 2])
    holder = [generator]
    assert resolved(holder) is holder
    assert list(generator) == [1, 2]


# ------------------------------------------------------------------------------------------------ order, depth, context


@pins("futures_runners", 42)
def test_containers_are_visited_before_their_members_and_equal_leaves_each_time():
    assert visited([1, (2, {"a": 3}), 1]) == [[1, (2, {"a": 3}), 1], 1, (2, {"a": 3}), 2, {"a": 3}, "a", 3, 1]
    assert visited([7, 7, 7]) == [[7, 7, 7], 7, 7, 7]


@pins("futures_runners", 42)
def test_max_depth_counts_levels_and_an_annotation_is_one():
    value = [1, [2, [3]]]
    assert visited(value, max_depth=0) == [value]
    assert visited(value, max_depth=1) == [value, 1, [2, [3]]]
    assert visited(value, max_depth=2) == [value, 1, [2, [3]], 2, [3]]
    assert visited(quote([1]), max_depth=1) == [quote([1]), [1]]
    assert resolved([Future(1), [Future(2)]], max_depth=1)[0] == 1
    assert isinstance(resolved([Future(1), [Future(2)]], max_depth=1)[1][0], Future)


def test_a_container_met_at_the_limit_is_still_entered_nearer_to_the_root():
    shared = [Future()]
    after = resolved([[shared], shared], max_depth=2)
    assert after[1] == ["done"]
    assert after[0][0] is shared


@pins("futures_runners", 43)
def test_context_changes_are_seen_by_members_and_by_nobody_else():

    def visit(node, context):
        if isinstance(node, list):
            context["depth"] += 1
            return node
        return f"{node} at {context['depth']}"

    seed = {"depth": 0}
    assert visit_collection([1, [2, [3], 4], 5], visit, return_data=True, context=seed) == [
        "1 at 1",
        ["2 at 2", ["3 at 3"], "4 at 2"],
        "5 at 1",
    ]
    assert seed == {"depth": 0}


@pins("futures_runners", 44)
def test_inside_an_annotation_the_context_holds_it_innermost_only():
    seen = []

    def visit(node, context):
        seen.append((node, context.get("annotation")))
        return node

    inner = allow_failure(2)
    outer = quote([1, inner])
    visit_collection([0, outer, 3], visit, context={})
    assert seen == [
        ([0, outer, 3], None),
        (0, None),
        (outer, None),
        ([1, inner], outer),
        (1, outer),
        (inner, outer),
        (2, inner),
        (3, None),
    ]


def test_one_container_inside_and_outside_of_an_annotation_is_resolved_for_each():
    """The reference resolves both as it resolved the first."""

    def visit(node, context):
        if isinstance(node, Future):
            return "lenient" if isinstance(context.get("annotation"), allow_failure) else "strict"
        return node

    shared = [Future()]
    for value, after in (
        ([allow_failure(shared), shared], [["lenient"], ["strict"]]),
        ([shared, allow_failure(shared)], [["strict"], ["lenient"]]),
    ):
        assert visit_collection(value, visit, return_data=True, context={}, remove_annotations=True) == after


@pins("futures_runners", 44)
def test_annotations_are_rewrapped_or_removed_at_every_level():
    value = [quote([allow_failure(Future(1))]), unmapped(2)]
    assert resolved(value) == [quote([allow_failure(1)]), unmapped(2)]
    assert resolved(value, remove_annotations=True) == [[1], 2]
    assert resolved(quote(unmapped(opaque(Future(3)))), remove_annotations=True) == 3
    assert all(not isinstance(node, BaseAnnotation) for node in visited(resolved(value, remove_annotations=True)))


def test_a_cycle_through_an_annotation_closes_when_annotations_are_removed():
    ring: list[Any] = [Future()]
    ring.append(unmapped(ring))
    after = resolved(ring, remove_annotations=True)
    assert after[0] == "done"
    assert after[1] is after


@pins("futures_runners", 45)
def test_stop_visiting_keeps_the_node_and_what_is_in_it_and_neighbours_go_on():

    def visit(node, context):
        if isinstance(context.get("annotation"), quote):
            raise StopVisiting
        return resolve(node)

    kept = [Future()]
    after = visit_collection([Future(1), quote(kept), Future(2)], visit, return_data=True, context={})
    assert after == [1, quote(kept), 2]
    assert after[1].value is kept
    assert not issubclass(StopVisiting, Exception)


@pins("futures_runners", 46)
def test_opaque_shows_its_content_once_and_nothing_below():
    content = [1, [2, 3]]
    assert visited(opaque(content)) == [opaque(content), content]
    assert resolved(opaque(Future([Future()]))).value[0].result == "done"
    unseen = [Future()]
    assert resolved([opaque(unseen), unseen])[1] == ["done"]
    assert resolved([opaque(unseen), unseen])[0].value is unseen


# ------------------------------------------------------------------------------------------------ finding


def test_find_gives_each_object_once_in_order():
    a, b, c = Future(), Future(), Future()
    assert find({"x": [a, (b, a)], c: "y"}, Future) == [a, b, c]
    assert find(a, (Future, State)) == [a]
    assert find({"x": 1, "y": "text", "z": None}, Future) == []
    assert find("text", Future) == []
    assert find([1, a], lambda value: value is a) == [a]


class State:
    pass


def test_find_looks_into_no_quote_and_only_at_the_content_of_opaque():
    a, b = Future(), Future()
    assert find([quote(a), quote([a])], Future) == []
    assert find([opaque(a), opaque([b])], Future) == [a]
    assert find([opaque([b]), allow_failure([b]), unmapped(a)], Future) == [b, a]
    content = [b]
    assert find([opaque(content), content], Future) == [b]


def test_find_does_not_search_what_it_found():
    class FutureList(list):
        pass

    inner = FutureList([Future()])
    assert find([inner], (FutureList, Future)) == [inner]


def test_contains_special_is_false_only_for_plain_scalars():
    assert not contains_special([1, 1.5, "a", b"b", None, True, 1j, int])
    assert contains_special([1, [2]])
    assert contains_special([Future()])


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ([], True),
        ({}, True),
        (range(2), True),
        (bytearray(), True),
        (quote(1), True),
        ((x for x in ()), True),
        ("text", False),
        (b"bytes", False),
        (io.StringIO(), False),
        (5, False),
        (None, False),
        (Future(), False),
        (list, False),
    ],
)
def test_what_map_maps_over(value, answer):
    assert is_iterable(value) is answer
