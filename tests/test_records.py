# SPDX-License-Identifier: Apache-2.0
"""A persisted result as an object and as bytes: there and back, equality, and what is kept of it in memory."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from microflow._records import ResultCache
from microflow._state_parts import Value
from microflow.exceptions import DamagedResult, SerializationError
from microflow.results import ResultRecord, ResultRecordMetadata
from microflow.serializers import AutoSerializer, JSONSerializer, PickleSerializer, UnknownSerializer, get_serializer
from microflow.states import Completed, State

MOMENT = datetime(2100, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def record(value: Any = (1, "a"), **metadata: Any) -> ResultRecord[Any]:
    return ResultRecord(value, ResultRecordMetadata("key", **metadata))


@pytest.mark.parametrize("serializer", ["auto", "json", "pickle", "compressed", "compressed/json", "compressed/pickle"])
def test_a_record_comes_back_equal(serializer):
    written = record(expiration=MOMENT, serializer=serializer)
    again = ResultRecord.deserialize(written.serialize(), trusted=True)
    assert again == written
    assert (again.result, again.expiration, again.serializer) == ((1, "a"), MOMENT, get_serializer(serializer))
    assert (written.is_persisted, again.is_persisted) == (False, True)
    apart = ResultRecord.deserialize_from_result_and_metadata(
        written.serialize_result(), written.serialize_metadata(), trusted=True
    )
    assert apart == written


def test_a_record_begins_with_a_line_of_json():
    head, payload = record(expiration=MOMENT).serialize().split(b"\n")
    assert json.loads(head)["metadata"] == {
        "storage_key": "key",
        "expiration": "2100-01-02T03:04:05+00:00",
        "serializer": {"type": "auto"},
        "microflow_version": ResultRecordMetadata().prefect_version,
        "storage_block_id": None,
    }
    assert json.loads(payload) == {"$": "tuple", "v": [1, "a"]}


def test_records_are_equal_by_value_and_metadata():
    assert record(1) == record(1)
    assert record(1) != record(2)
    assert record(1) != record(1, expiration=MOMENT)
    assert record(1) != record(1, serializer="json")
    assert record(1) != ResultRecord(1, ResultRecordMetadata("other"))


def test_a_record_is_a_value_of_a_state():
    assert isinstance(record(5), Value)
    state: State[int] = Completed(data=record(None))
    assert state.result() is None


def test_bytes_without_metadata_are_read_by_the_serializer_that_is_given():
    assert ResultRecord.deserialize(b"[1]", JSONSerializer()).result == [1]
    with pytest.raises(DamagedResult):
        ResultRecord.deserialize(b"[1]")


def test_a_pickle_is_opened_only_for_who_says_that_nobody_else_wrote_it():
    data = record(serializer="pickle").serialize()
    with pytest.raises(SerializationError):
        ResultRecord.deserialize(data)
    with pytest.raises(SerializationError):
        ResultRecord.deserialize(PickleSerializer().dumps(1), AutoSerializer())
    assert ResultRecord.deserialize(data, trusted=True).result == (1, "a")


def test_a_serializer_that_is_not_known_stands_in_the_metadata_and_reads_nothing():
    data = record().serialize().replace(b'{"type": "auto"}', b'{"type": "cbor"}')
    assert ResultRecordMetadata.load_bytes(data.split(b"\n")[0]).serializer == UnknownSerializer("cbor")
    with pytest.raises(SerializationError, match="'cbor' is not known"):
        ResultRecord.deserialize(data, trusted=True)


@pytest.mark.parametrize(
    ("expiration", "over"),
    [(None, False), (timedelta(hours=1), False), (timedelta(0), True), (timedelta(hours=-1), True)],
)
def test_time_is_over_when_it_is_not_in_the_future(expiration, over):
    moment = None if expiration is None else datetime.now(timezone.utc) + expiration
    assert ResultRecordMetadata(expiration=moment).is_expired() is over


def test_a_moment_without_time_zone_is_taken_as_utc():
    written = ResultRecordMetadata(expiration=MOMENT.replace(tzinfo=None)).dump_bytes()
    assert ResultRecordMetadata.load_bytes(written).expiration == MOMENT


# ------------------------------------------------------------------------------------------------ in memory


def test_the_cache_knows_the_version_that_it_was_given():
    cache = ResultCache()
    cache.put("k", 1, b"head", b"payload")
    assert cache.get("k", 1) == (b"head", b"payload")
    assert cache.get("k", 2) is cache.get("other", 1) is None
    assert "k" in cache


def test_the_cache_forgets_what_was_not_asked_for_the_longest():
    cache = ResultCache(most_results=2)
    for key in "ab":
        cache.put(key, 1, b"", b"")
    cache.get("a", 1)
    cache.put("c", 1, b"", b"")
    assert ("a" in cache, "b" in cache, "c" in cache, len(cache)) == (True, False, True, 2)


def test_the_cache_holds_a_number_of_bytes():
    cache = ResultCache(most_bytes=10)
    cache.put("a", 1, b"", b"x" * 6)
    cache.put("a", 2, b"", b"x" * 6)
    assert "a" in cache
    cache.put("b", 1, b"", b"x" * 6)
    assert ("a" in cache, "b" in cache) == (False, True)
    cache.put("c", 1, b"", b"x" * 11)
    assert len(cache) == 0
    cache.put("d", 1, b"", b"x" * 10)
    assert "d" in cache
