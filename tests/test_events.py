# SPDX-License-Identifier: Apache-2.0
"""Records and the bus: who is called, when, in which order, and what a broken subscriber can do (nothing)."""

from __future__ import annotations

import logging
import threading

import pytest

from microflow.events import Bus, Record


def record(run_id: str = "log", position: int = 0, **data) -> Record:
    return Record(run_id, position, 1, 1000, data.pop("k", "state"), data)


def test_a_record_is_about_its_task_run_or_else_about_the_flow_run_of_its_log():
    assert record(run="task").subject == "task"
    assert record().subject == "log"


def test_records_compare_by_value_and_cannot_be_hashed():
    assert record(type="RUNNING") == record(type="RUNNING")
    assert record(type="RUNNING") != record(type="RUNNING", position=1)
    assert record() != "log"
    with pytest.raises(TypeError, match="unhashable"):
        hash(record())


def test_a_record_shows_where_it_stands_and_what_happened():
    assert repr(record(position=3, type="RUNNING")) == "Record(log#3 state {'type': 'RUNNING'})"


def test_a_subject_subscriber_gets_the_records_about_its_run_and_no_others():
    bus, got = Bus(), []
    bus.subscribe("a", got.append)
    bus.publish([record(run="a"), record(run="b"), record()])
    assert got == [record(run="a")]


def test_a_log_subscriber_gets_every_record_of_its_log_in_order():
    bus, got = Bus(), []
    bus.subscribe_log("log", got.append)
    published = [record(run="a"), record("other", run="a"), record(position=1, run="b"), record(position=2)]
    bus.publish(published)
    assert got == [each for each in published if each.run_id == "log"]


def test_subscribers_are_called_in_the_order_in_which_they_subscribed():
    bus, calls = Bus(), []
    for number in range(5):
        bus.subscribe("log", lambda _, number=number: calls.append(number))
    bus.publish([record()])
    assert calls == [0, 1, 2, 3, 4]


def test_an_ended_subscription_gets_nothing_more_and_leaves_nothing_behind():
    bus, got = Bus(), []
    end = bus.subscribe("log", got.append)
    assert bus.has_subscribers("log")
    end()
    bus.publish([record()])
    assert got == []
    assert not bus.has_subscribers("log")
    assert bus._by_subject == {}


def test_ending_a_subscription_twice_does_not_end_another_one_of_the_same_subscriber():
    bus, got = Bus(), []
    first = bus.subscribe("log", got.append)
    bus.subscribe("log", got.append)
    first()
    first()
    bus.publish([record()])
    assert len(got) == 1


def test_somebody_who_follows_another_log_does_not_make_this_one_be_published():
    """Publishing is skipped when nobody may want the records; a subject may live in any log."""
    bus = Bus()
    bus.subscribe_log("other", print)
    assert not bus.has_subscribers("log")
    assert bus.has_subscribers("other")
    bus.subscribe("some task run", print)
    assert bus.has_subscribers("log")


def test_what_a_subscriber_raises_is_logged_and_the_next_one_is_called(caplog):
    bus, got = Bus(), []

    def broken(_: Record) -> None:
        raise ValueError("broken subscriber")

    bus.subscribe("log", broken)
    bus.subscribe("log", got.append)
    with caplog.at_level(logging.ERROR):
        bus.publish([record(), record(position=1)])
    assert [each.position for each in got] == [0, 1]
    assert caplog.text.count("ValueError: broken subscriber") == 2


def test_an_interrupt_in_a_subscriber_reaches_the_publisher():
    """I7 is about Exceptions: Ctrl-C must end the program wherever it arrives."""
    bus = Bus()

    def interrupted(_: Record) -> None:
        raise KeyboardInterrupt

    bus.subscribe("log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bus.publish([record()])


def test_a_subscriber_may_subscribe_end_and_publish_while_it_is_called():
    """No lock of the bus is held meanwhile; otherwise this would never return."""
    bus, got = Bus(), []

    def subscriber(_: Record) -> None:
        end()
        bus.subscribe("log", got.append)
        bus.publish([record(position=7)])

    end = bus.subscribe("log", subscriber)
    bus.publish([record()])
    assert [each.position for each in got] == [7]


def test_a_subscriber_is_called_in_the_thread_that_publishes():
    bus, threads = Bus(), []
    bus.subscribe("log", lambda _: threads.append(threading.current_thread()))
    publisher = threading.Thread(target=bus.publish, args=([record()],))
    publisher.start()
    publisher.join()
    assert threads == [publisher]


def test_threads_that_subscribe_and_end_at_the_same_time_lose_no_subscription():
    bus, got = Bus(), []

    def work() -> None:
        for _ in range(200):
            bus.subscribe("log", print)()
        bus.subscribe("log", got.append)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bus.publish([record()])
    assert len(got) == 8
