# SPDX-License-Identifier: Apache-2.0
"""The grammar of a line, and the reader's rule case by case (L1 to L6, L11, L15, L17, L18)."""

from __future__ import annotations

import json
import sys
import types
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microflow import _strict_json
from microflow._chain import encode_bodies
from microflow.exceptions import (
    RecordTooLarge,
    SerializationError,
)
from microflow.log import (
    CLEAN,
    CORRUPT,
    MAXIMUM_LINE,
    SUSPECT,
    TORN,
    Chain,
    encode_line,
    parse_line,
)

from .log_support import (
    OTHER,
    RUN,
    TIME,
    Fold,
    chained,
    check_chain,
    checksum_of,
    claim,
    header,
    line,
    sealed,
    state,
)

# ------------------------------------------------------------------------------------------------ a line


def test_a_line_is_what_the_grammar_says_byte_by_byte():
    encoded = encode_line(12, "89abcdef", 1, TIME, [state("RUNNING")])
    start = b'{"q":12,"p":"89abcdef","e":1,"t":%d,"b":[{"k":"state","to":"RUNNING"}]' % TIME
    assert encoded == start + b',"c":"%08x"}\n' % zlib.crc32(start)
    assert b'"e"' not in encode_line(12, "89abcdef", None, TIME, [state()])


def test_a_line_is_read_back_as_it_was_written():
    bodies = [
        state("A", text='käse \n\t"\\ \u2028 \x7f \ud800', number=10**30, more=[1.5, None, True, {"c": "deadbeef"}])
    ]
    encoded = encode_line(0, "00000000", None, TIME, bodies)
    checksum, members = parse_line(encoded[:-1]) or (0, {})
    assert members["b"] == bodies
    assert f"{checksum:08x}" == checksum_of(encoded) == members["c"]
    assert all(0x20 <= byte < 0x7F for byte in encoded[:-1])


def test_only_the_end_of_a_line_looks_like_the_end_of_a_line():
    """L1: so no cut-off line is taken for a whole one that rotted."""
    bodies = [{"k": "note", "a": 1, "c": "deadbeef"}, state("X", text=',"c":"deadbeef"}')]
    encoded = encode_line(0, "00000000", None, TIME, bodies)
    assert encoded.count(b',"c":"') == 1
    assert (parse_line(encoded[:-1]) or (0, {}))[1]["b"] == bodies


def test_a_line_of_more_than_one_mebibyte_is_refused_and_one_of_exactly_that_is_not():
    room = MAXIMUM_LINE - len(encode_line(0, "00000000", None, TIME, [state(text="")]))
    encoded = encode_line(0, "00000000", None, TIME, [state(text="x" * room)])
    assert len(encoded) == MAXIMUM_LINE
    assert parse_line(encoded[:-1]) is not None
    with pytest.raises(RecordTooLarge, match=f"take {MAXIMUM_LINE + 1} bytes"):
        encode_line(0, "00000000", None, TIME, [state(text="x" * (room + 1))])
    start = encoded[:-17] + b" "
    assert parse_line(start + b',"c":"%08x"}' % zlib.crc32(start)) is None, "a reader refuses it as well"


def circle() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("-inf"),
        {1: "a", "1": "b"},
        {"deep": [({2: 1},)]},
        object(),
        {"set": {1}},
        circle(),
        nested(98),
    ],
    ids=["nan", "infinity", "names", "inner names", "object", "set", "circle", "nesting"],
)
def test_what_a_reader_could_not_accept_is_refused_by_the_kind_of_its_record(value):
    with pytest.raises(SerializationError, match=r"\(state, task\) cannot be written as JSON"):
        encode_bodies([state(value=value), {"k": "task"}])


def test_nesting_is_limited_to_one_hundred_levels_for_writers_and_readers_alike():
    """L15: whether a deep line counts must not depend on the stack of the reader."""
    encoded = encode_line(0, "00000000", None, TIME, [state(value=nested(97), brackets="[[{" * 90)])
    assert parse_line(encoded[:-1]) is not None
    start = encoded[:-17].replace(b"[1]", b"[[1]]")
    assert parse_line(start + b',"c":"%08x"}' % zlib.crc32(start)) is None


def test_a_reader_with_little_stack_left_raises_and_takes_no_line_for_dead():
    """L15: the same bytes, the same history, however deep the caller stands."""
    deep = encode_line(0, "00000000", None, TIME, [state(value=nested(90))])[:-1]

    def stand(depth: int) -> object:
        return stand(depth - 1) if depth else parse_line(deep)

    assert parse_line(deep) is not None
    for depth in range(10, sys.getrecursionlimit() + 10, 20):
        try:
            assert stand(depth) is not None
        except RecursionError:
            break


@pytest.mark.parametrize("present", ["missing", "other arguments", "other answers"])
def test_lines_are_the_same_where_python_has_no_encoder_in_the_form_that_we_know(monkeypatch, present):
    """L15: also on another implementation of Python, and on a later one."""
    module = types.SimpleNamespace(encode_basestring_ascii=json.encoder.encode_basestring_ascii)
    if present != "missing":
        makers = {"other arguments": lambda: None, "other answers": lambda *_: lambda value, level: ["{}"]}
        module.c_make_encoder = makers[present]
    monkeypatch.setattr(_strict_json, "json_encoder", module)
    bodies = [state(text="käse \x7f", more={"a": [1, 2.5, None, True]})]
    expected = encode_bodies(bodies)
    plain = _strict_json.make_encoder(json.JSONEncoder(check_circular=False, separators=(",", ":")))
    assert plain is not _strict_json._to_text
    monkeypatch.setattr(_strict_json, "_to_text", plain)
    assert encode_bodies(bodies) == expected


@pytest.mark.parametrize("bodies", [[], [{}], [{"k": "unknown"}], [{"k": 5, "o": 1}], [state(), {"k": None}]])
def test_a_line_without_records_or_with_an_unknown_kind_is_refused(bodies):
    with pytest.raises(ValueError):
        encode_bodies(bodies)


def test_an_unknown_kind_may_be_written_when_readers_may_skip_it():
    assert encode_bodies([{"k": "metric", "o": 1}]) == '[{"k":"metric","o":1}]'


GOOD = b'{"q":0,"p":"00000000","t":1,"b":[{"k":"state"}]'


@pytest.mark.parametrize(
    "text",
    [
        b"",
        GOOD.replace(b"}]", b'},"x"]'),
        GOOD.replace(b'"q":0', b'"q":true'),
        GOOD.replace(b'"q":0', b'"q":0.0'),
        GOOD.replace(b'"p":"00000000"', b'"p":0'),
        GOOD.replace(b'"t":1', b'"t":null'),
        GOOD.replace(b'"t":1', b'"t":1,"e":"1"'),
        GOOD.replace(b'[{"k":"state"}]', b"[]"),
        GOOD.replace(b'[{"k":"state"}]', b'{"k":"state"}'),
        GOOD.replace(b'"state"', b"1"),
        GOOD.replace(b'"state"', b'"state","x":NaN'),
        GOOD.replace(b'"state"', b'"state","x":-Infinity'),
        GOOD.replace(b'"state"', b'"state","k":"state"'),
        GOOD.replace(b'"t":1', b'"t":1,"t":1'),
        GOOD.replace(b"state", "käse".encode()),
        GOOD.replace(b"state", b"st\x7fte"),
        GOOD.replace(b'"t":1,', b'"t":1,\t'),
        GOOD.replace(b'"t":1,', b'"t":1,,'),
        GOOD.replace(b"}]", b"}}"),
        b"[1]",
        b" " + GOOD,
    ],
)
def test_a_line_with_a_right_checksum_that_is_no_record_line_is_none(text):
    """L1: strict JSON: numbers, names, bytes and structure."""
    assert parse_line(sealed(text)) is None


def test_a_line_is_read_whatever_else_it_says_but_not_with_another_checksum():
    """A reader ignores members that it does not know."""
    assert parse_line(sealed(GOOD)) is not None
    assert parse_line(sealed(GOOD.replace(b'"t":1', b'"t":1,"new":{}'))) is not None
    assert parse_line(sealed(GOOD)[:-2] + b"x}") is None
    assert parse_line(sealed(GOOD).replace(b'"c":"', b'"c":"A')) is None
    assert parse_line(sealed(GOOD) + b"x") is None


def test_no_control_character_is_taken_anywhere():
    """L15: 0x20 to 0x7E, in strings, in names and between values."""
    for code in [*range(0x20), *range(0x7F, 0x100)]:
        for text in (f'["{chr(code)}"]', f'{{"{chr(code)}":1}}', f"[1,{chr(code)}2]"):
            with pytest.raises(ValueError):
                _strict_json.decode(text)


def test_what_follows_the_value_makes_no_json():
    with pytest.raises(ValueError, match="follows"):
        _strict_json.decode("[1] 2")


@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_of_any_length_is_read_whatever_the_process_allows(sign):
    """L15: the limit on digits is a setting of the process."""
    digits = sign + "123456789" * 600
    limit = getattr(sys, "set_int_max_str_digits", lambda _: None)
    before = getattr(sys, "get_int_max_str_digits", lambda: 0)()
    limit(640)
    try:
        value = _strict_json.decode(f'[{digits},7,-1,"{digits}"]')
    finally:
        limit(before)
    expected = 0
    for digit in digits.lstrip("-"):
        expected = expected * 10 + int(digit)
    assert value == [-expected if sign else expected, 7, -1, digits]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=3), min_size=1, max_size=3), st.integers(0, 5))
def test_whatever_is_encoded_every_reader_accepts_with_the_same_meaning(members, epoch):
    """L13: an acknowledged line can never turn out to be no line."""
    bodies = [{**each, "k": "note"} for each in members]
    encoded = encode_line(3, "0123abcd", epoch, TIME, bodies)
    parsed = parse_line(encoded[:-1])
    assert parsed is not None
    assert json.dumps(parsed[1]["b"], sort_keys=True) == json.dumps(bodies, sort_keys=True)
    assert (parsed[1]["q"], parsed[1]["p"], parsed[1]["e"]) == (3, "0123abcd", epoch)


# ------------------------------------------------------------------------------------------------ the reader's rule


def fold_of(*lines: bytes) -> Fold:
    return Fold(b"".join(lines))


def test_a_log_in_order_is_accepted_line_by_line():
    lines = chained([header(), claim()], [state("A")], [state("B"), state("C")], epochs=[1, 1])
    fold = fold_of(*lines)
    assert [(at, epoch, body.get("to")) for at, epoch, body in fold.applied] == [
        (0, 1, None),
        (0, 1, None),
        (1, 1, "A"),
        (2, None, "B"),
        (2, None, "C"),
    ]
    assert (fold.status, fold.chain.owner, fold.chain.epoch, fold.chain.owner_pid) == (CLEAN, "a" * 32, 1, 4711)
    assert list(fold.chain.offsets) == [0, len(lines[0]), len(lines[0]) + len(lines[1])]


def test_rule_1_dead_lines_are_ignored_and_suspect_only_at_the_end():
    first, second = chained([header()], [state("A")])
    assert fold_of(first, b"\0\0\0\n", b"\n", second).status == CLEAN
    fold = fold_of(first, b'{"q":1,\n')
    assert (fold.status, fold.chain.dead, fold.chain.next_position) == (SUSPECT, 1, 1)


@pytest.mark.parametrize(
    "record",
    [
        {"k": "state"},
        header(OTHER),
        header(format="other"),
        header(reader="1"),
        header(writer=None),
        {**header(), "k": "note"},
    ],
)
def test_rule_1_a_log_that_does_not_begin_with_its_header_has_no_line(record):
    """L4: and says that it is damaged, for its first line is whole."""
    fold = fold_of(*chained([record], [state()]))
    assert (fold.chain.next_position, fold.status) == (0, CORRUPT)


def test_rule_1_a_header_with_an_epoch_but_no_claim_is_no_header():
    """L4, L6."""
    assert fold_of(*chained([header()], epochs=[3])).chain.next_position == 0
    assert fold_of(*chained([header(), claim()], epochs=[2])).chain.next_position == 0
    assert fold_of(*chained([header(), claim()])).chain.next_position == 0


def test_rule_2_a_branch_that_lost_stays_lost():
    """L3: two writers without a lock: the second line for a place loses, and all that was built on it."""
    first, winner = chained([header()], [state("WINNER")])
    loser = line(1, checksum_of(first), [state("LOSER")])
    on_loser = line(2, checksum_of(loser), [state("LOST")])
    on_that = line(3, checksum_of(on_loser), [state("LOST")])
    on_winner = line(2, checksum_of(winner), [state("KEPT")])
    fold = fold_of(first, winner, loser, on_loser, on_winner, on_that)
    assert [body.get("to") for _, _, body in fold.applied] == [None, "WINNER", "KEPT"]
    assert (fold.chain.orphans, fold.status) == (3, CLEAN)


def test_rule_3_the_lines_of_a_fenced_owner_are_void_but_have_a_place():
    """L6: readers need no help of the writer to see it."""
    lines = chained(
        [header(), claim()], [claim("b" * 32)], [state("ZOMBIE")], [state("REQUEST")], [state("OWNER")],
        [claim("c" * 32), state("LATE")], [state("FUTURE")], [claim("c" * 32)], epochs=[1, 2, 1, None, 2, 2, 7, None],
    )  # fmt: skip
    fold = check_chain(b"".join(lines))
    assert [body["to"] for _, _, body in fold.applied if "to" in body] == ["REQUEST", "OWNER"]
    assert (fold.chain.voids, fold.chain.epoch, fold.chain.owner) == (4, 2, "b" * 32)
    assert fold.chain.next_position == 8


def test_rule_3_a_claim_counts_only_as_the_first_record_of_its_line():
    """L5: as the second on line 0. Elsewhere the line has a wrong epoch."""
    lines = chained([header()], [state(), claim()], epochs=[None, 1])
    assert (fold_of(*lines).chain.epoch, fold_of(*lines).chain.voids) == (0, 1)


def test_a_release_by_the_owner_leaves_no_owner_and_the_epoch():
    lines = chained(
        [header(), claim()], [{"k": "release"}], [state(), {"k": "release"}], [claim("b" * 32)], epochs=[1, None, 1, 2]
    )
    assert fold_of(*lines[:2]).chain.owner == "a" * 32, "a request releases nothing"
    after = fold_of(*lines[:3]).chain
    assert (after.owner, after.owner_pid, after.owner_host, after.epoch) == (None, None, None, 1)
    assert fold_of(*lines).chain.owner == "b" * 32


def test_rule_4_an_accepted_line_said_again_is_a_duplicate_and_another_of_its_number_an_orphan():
    first, second = chained([header()], [state("A")])
    other = line(1, checksum_of(first), [state("B")])
    negative = line(-1, "00000000", [state("B")])
    fold = fold_of(first, second, second, first, other, negative)
    assert (fold.chain.duplicates, fold.chain.orphans, fold.chain.next_position, fold.status) == (2, 2, 2, CLEAN)
    # a duplicate is no orphan: what stands on it counts
    assert fold_of(first, second, second, line(2, checksum_of(second), [state()])).chain.next_position == 3


def test_rule_5_a_line_that_points_elsewhere_is_an_orphan():
    """L20: a line of another run has its number right and its past wrong."""
    first = chained([header()])[0]
    foreign = chained([header(OTHER)], [state("FOREIGN")], run_id=OTHER)[1]
    fold = fold_of(first, foreign)
    assert (fold.chain.orphans, fold.chain.next_position, fold.status) == (1, 1, CLEAN)


def test_rule_6_a_gap_is_damage_until_the_chain_reaches_it_after_all():
    lines = chained([header()], [state("1")], [state("2")], [state("3")], [state("4")])
    gap = fold_of(lines[0], lines[2], lines[4])
    assert (gap.status, gap.chain.next_position) == (CORRUPT, 1)
    assert gap.chain.damage == (2, len(lines[0]), "position 2 stands where 1 should")
    assert fold_of(lines[0], lines[2], lines[1], lines[2]).status == CLEAN
    assert fold_of(lines[0], lines[4], lines[1], lines[2], lines[3]).status == CORRUPT, "4 was there once"
    assert fold_of(lines[0], lines[4], lines[1], lines[2], lines[3], lines[4]).status == CLEAN


def test_rule_6_a_gap_is_reported_at_the_dead_line_that_made_it():
    lines = chained([header()], [state("1")], [state("2")])
    rotten = lines[1].replace(b'"1"', b'"7"')
    assert fold_of(lines[0], rotten, lines[2]).chain.damage == (2, len(lines[0]), "this is no valid line")
    assert fold_of(lines[0], b"x\n", lines[2]).chain.damage == (2, len(lines[0]), "this is no valid line")


def test_a_dead_last_line_that_ends_like_a_whole_one_is_damage():
    """L18: no torn tail ends so; an acknowledged record rotted."""
    first, second = chained([header()], [state("A")])
    rotten = second.replace(b'"A"', b'"B"')
    fold = fold_of(first, b"x\n", rotten, b"y\n", rotten)
    assert (fold.status, fold.chain.damage) == (CORRUPT, (3, len(first) + 2, "this is no valid line"))
    # the chain goes on with it after all: nothing was lost
    assert fold_of(first, rotten, second).status == CLEAN


def test_a_line_that_never_ends_is_not_kept_in_memory():
    """L1: a tail of more than 1 MiB is no line of ours, whatever comes."""
    first, second = chained([header()], [state("A")])
    chain = Chain(RUN)
    chain.feed(first)
    for _ in range(3):
        assert chain.feed(b"\0" * MAXIMUM_LINE) == []
        assert chain.is_torn
    assert chain.offset == len(first) + 3 * MAXIMUM_LINE
    assert chain.status == TORN
    assert chain.feed(b'","c":"01234567"}\n') == []
    assert (chain.status, chain.dead) == (SUSPECT, 1), "its end looks whole, but it was never one of our lines"
    assert len(chain.feed(second)) == 1


def test_an_unknown_kind_that_may_be_skipped_is_kept_and_one_that_may_not_ends_what_can_be_read():
    """L17: neither is rewritten."""
    lines = chained([header()], [state("A")], [{"k": "metric", "o": 1}], [state("B")])
    assert fold_of(*lines).chain.too_new is None
    raw = b'{"q":2,"p":"%b","t":1,"b":[{"k":"state"},{"k":"future"}]' % checksum_of(lines[1]).encode()
    future = sealed(raw) + b"\n"
    fold = fold_of(lines[0], lines[1], future, line(3, checksum_of(future), [state("C")]), b"x\n")
    assert (fold.chain.next_position, fold.chain.too_new) == (2, "line 3 holds a record of the kind 'future'")
    void = sealed(raw.replace(b'"t":1', b'"e":9,"t":1')) + b"\n"
    assert fold_of(lines[0], lines[1], void).chain.next_position == 3, "what changes nothing needs no understanding"
