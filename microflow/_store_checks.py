# SPDX-License-Identifier: Apache-2.0
"""What a store really does, asked row by row.

Each row asks one thing of fresh, empty storage, through one handle or several, and says what was seen that should not
be. What several processes would do is asked with several handles in threads: a handle knows nothing of the others.
"""

from __future__ import annotations

import threading
import time
from hashlib import sha256
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ._chain import FORMAT, FORMAT_VERSION
from .exceptions import (
    Conflict,
    Fenced,
    MissingResult,
    ObjectNotFound,
    RecordTooLarge,
    SerializationError,
    describe,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stores import Store

    Open = Callable[[], Store]

RUN, OTHER = "0198f0e2-0001-7000-8000-00000000000a", "0198f0e2-0002-7000-8000-00000000000b"
TIME = 1_763_690_000_000_000
#: how many handles race for one position, and how often
RACERS, ROUNDS = 4, 8
#: seconds after which news will not come
PATIENCE = 20.0


def _header(run_id: str = RUN, nonce: str = "0" * 32) -> dict[str, Any]:
    versions = {"version": FORMAT_VERSION, "reader": FORMAT_VERSION, "writer": FORMAT_VERSION}
    return {"k": "run", "format": FORMAT, **versions, "id": run_id, "nonce": nonce}


def _claim(owner: str = "a") -> dict[str, Any]:
    return {"k": "claim", "owner": owner * 32, "pid": 1, "host": "here"}


def _state(**members: Any) -> dict[str, Any]:
    return {"k": "state", "to": "RUNNING", **members}


def _expect(seen: object, wanted: object, what: str) -> None:
    if seen != wanted:
        raise AssertionError(f"{what}: {seen!r}, not {wanted!r}")


def _refuses(kind: type[Exception], what: str, call: Callable[[], object]) -> None:
    try:
        answer = call()
    except kind:
        return
    except Exception as error:  # whatever it is, the row says it
        raise AssertionError(f"{what}: {describe(error)}, not {kind.__name__}") from error
    raise AssertionError(f"{what}: {answer!r}, not {kind.__name__}")


def _said(store: Store, position: int = 0) -> list[tuple[Any, ...]]:
    return [(each.position, each.epoch, each.time, each.data) for each in store.read(RUN, position).records]


# ---------------------------------------------------------------------------------------------------- one handle


def _reads_what_was_appended(open_: Open) -> None:
    store = open_()
    text = '\n","c":"01234567"}\x7f\ud800 käse'
    _expect(store.append(RUN, [_header(), _claim()], expect=0, epoch=1, time_us=TIME), 1, "the next position")
    bodies = [_state(a=text), _state(b=1e300)]
    _expect(store.append(RUN, bodies, expect=1, epoch=1, time_us=TIME), 2, "the next position")
    first = [(0, 1, TIME, _header()), (0, 1, TIME, _claim())]
    rest = [(1, 1, TIME, _state(a=text)), (1, 1, TIME, _state(b=1e300))]
    for after in ("", " after close"):
        _expect(_said(store), first + rest, f"the records{after}")
        _expect(_said(store, 1), rest, f"the records from position 1{after}")
        _expect(_said(store, 2), [], f"the records from the end{after}")
        reading = store.read(RUN)
        _expect((reading.position, reading.epoch, reading.owner), (2, 1, "a" * 32), f"position, epoch, owner{after}")
        store.sync(RUN, 2)
        store.close(RUN)


def _many_lines(open_: Open) -> None:
    store = open_()
    store.append(RUN, [_header()], expect=0)
    for position in range(1, 120):
        store.append(RUN, [_state(n=position)], expect=position)
    for after in ("", " after close"):
        _expect([each[0] for each in _said(store)], list(range(120)), f"the positions{after}")
        _expect([each[3]["n"] for each in _said(store, 99)], list(range(99, 120)), f"the records from 99{after}")
        store.close(RUN)


def _second_to_a_position(open_: Open) -> None:
    store = open_()
    store.append(RUN, [_header()], expect=0)
    _refuses(Conflict, "the run is made again", lambda: store.append(RUN, [_header(nonce="1" * 32)], expect=0))
    store.append(RUN, [_state()], expect=1)
    _refuses(Conflict, "a position is taken again", lambda: store.append(RUN, [_state()], expect=1))
    _refuses(Conflict, "a position is left out", lambda: store.append(RUN, [_state()], expect=3))
    _expect(store.read(RUN).position, 2, "the position after that")


def _lost_claim(open_: Open) -> None:
    store = open_()
    store.append(RUN, [_header(), _claim()], expect=0, epoch=1)
    store.append(RUN, [_claim("b")], expect=1, epoch=2)
    _refuses(Fenced, "its old owner appends", lambda: store.append(RUN, [_state()], expect=2, epoch=1))
    _refuses(Conflict, "a second claim", lambda: store.append(RUN, [_claim("c")], expect=1, epoch=2))
    _expect(store.append(RUN, [_state()], expect=2), 3, "a request, which owns nothing")
    _expect(store.append(RUN, [{"k": "release"}], expect=3, epoch=2), 4, "the new owner lets go")
    _expect(store.read(RUN).owner, None, "the owner then")


def _unwritable(open_: Open) -> None:
    store = open_()
    store.append(RUN, [_header()], expect=0)
    _refuses(SerializationError, "NaN", lambda: store.append(RUN, [_state(x=float("nan"))], expect=1))
    _refuses(RecordTooLarge, "2 MiB", lambda: store.append(RUN, [_state(x="x" * (1 << 21))], expect=1))
    _refuses(ValueError, "a kind that is none", lambda: store.append(RUN, [{"k": "unknown"}], expect=1))
    _expect(store.read(RUN).position, 1, "the position after that")
    _expect(store.append(RUN, [_state(x="x" * 1_000_000)], expect=1), 2, "a line of a million bytes")
    _expect(_said(store, 1)[0][3]["x"], "x" * 1_000_000, "what was read of it")


def _unknown_run(open_: Open) -> None:
    store = open_()
    _refuses(ObjectNotFound, "read", lambda: store.read(RUN))
    _refuses(ObjectNotFound, "append", lambda: store.append(RUN, [_state()], expect=1))
    _refuses(ObjectNotFound, "delete", lambda: store.delete(RUN))
    _refuses(ValueError, "an id that is a path", lambda: store.read("../../../../../../../../../etc/passwd"))
    _expect(store.list(), [], "the list")


def _lists(open_: Open) -> None:
    store = open_()
    for run_id in (OTHER, RUN):
        store.append(run_id, [_header(run_id)], expect=0)
    _expect(store.list(), [RUN, OTHER], "the list, the oldest first")
    _expect(store.find(OTHER[:13]), [OTHER], "what begins with 13 characters")
    _expect(store.find("x"), [], "what begins with x")


def _deletes(open_: Open) -> None:
    store = open_()
    for run_id in (RUN, OTHER):
        store.append(run_id, [_header(run_id)], expect=0)
        store.append(run_id, [_state()], expect=1)
        store.put_result(run_id, b"value")
    name = sha256(b"value").hexdigest()
    store.delete(RUN)
    _expect(store.list(), [OTHER], "the list")
    _refuses(ObjectNotFound, "read", lambda: store.read(RUN))
    _refuses(MissingResult, "its result", lambda: store.get_result(RUN, name, 5))
    _expect(store.get_result(OTHER, name, 5), b"value", "the result of another run")
    _expect(store.read(OTHER).position, 2, "the position of another run")
    _expect(store.append(RUN, [_header(nonce="2" * 32)], expect=0), 1, "the run is made again")
    _expect([each[3]["k"] for each in _said(store)], ["run"], "what it holds then")


def _results(open_: Open) -> None:
    store = open_()
    for data in (b"value", b"", bytes(range(256)) * 20_000):
        name = store.put_result(RUN, data)
        _expect(name, sha256(data).hexdigest(), "the name")
        _expect(store.put_result(RUN, data), name, "the name of the same data")
        if store.get_result(RUN, name, len(data)) != data:
            raise AssertionError(f"a result of {len(data)} bytes is not what was put there")
    name = sha256(b"value").hexdigest()
    for wrong in ((name, 4), (sha256(b"other").hexdigest(), 5), ("../" + name, 5), ("", 0)):
        _refuses(MissingResult, f"the result {wrong}", lambda wrong=wrong: store.get_result(RUN, *wrong))  # type: ignore[misc]


def _owns(open_: Open) -> None:
    store = open_()
    token = store.own()
    try:
        _expect(store.own(), token, "the token of the second run")
    finally:
        store.disown(token)
        alive = store.is_alive(token)
        store.disown(token)
    _expect((alive, store.is_alive(token)), (True, False), "alive while it owns one of two, and none")
    second = store.own()
    store.disown("f" * 32)
    store.disown(second)
    _expect(second == token, False, "the old token is drawn again")
    _expect((store.is_alive("f" * 32), store.is_alive("../runs")), (False, False), "unknown tokens are alive")


def _queues(open_: Open) -> None:
    store = open_()
    for run_id in (OTHER, RUN, OTHER):
        store.queue.put(run_id)
        time.sleep(0.02)  # file systems note times in steps of some milliseconds
    _expect(store.queue.list(), [OTHER, RUN], "the entries, the longest waiting first")
    _expect((store.queue.take(OTHER), store.queue.take(OTHER)), (True, False), "taken twice")
    _expect(store.queue.names(), {RUN}, "what is left")


def _documents(open_: Open) -> None:
    documents = open_().deployments
    documents.put(RUN, b"old")
    documents.put(RUN, b"new")
    _expect((documents.get(RUN), documents.get(OTHER)), (b"new", None), "a document that was replaced, and none")
    _expect(documents.list(), [RUN], "the list")
    _expect((documents.remove(RUN), documents.remove(RUN), documents.get(RUN)), (True, False, None), "removed twice")


# ---------------------------------------------------------------------------------------------------- several


def _another_reads(open_: Open) -> None:
    one, other = open_(), open_()
    for position in range(4):
        one.append(RUN, [_state(n=position)] if position else [_header()], expect=position, time_us=TIME)
        _expect(_said(other), _said(one), f"what the other reads of {position + 1} lines")
    other.append(RUN, [_state(n=4)], expect=4)
    _refuses(Conflict, "the first, at a place that the other took", lambda: one.append(RUN, [_state()], expect=4))
    _expect(_said(one, 4)[0][3]["n"], 4, "what the first reads of the other's line")
    other.put_result(RUN, b"value")
    _expect(one.get_result(RUN, sha256(b"value").hexdigest(), 5), b"value", "the other's result")
    other.delete(RUN)
    _refuses(ObjectNotFound, "the first reads what the other deleted", lambda: one.read(RUN))


def _another_takes_over(open_: Open) -> None:
    one, other = open_(), open_()
    one.append(RUN, [_header(), _claim()], expect=0, epoch=1)
    other.append(RUN, [_claim("b")], expect=1, epoch=2)
    try:
        one.append(RUN, [_state()], expect=1, epoch=1)
    except (Conflict, Fenced):
        _refuses(Fenced, "the old owner, after it read", lambda: one.append(RUN, [_state()], expect=2, epoch=1))
    else:
        raise AssertionError("an owner that lost its claim could append")


def _others_tokens(open_: Open) -> None:
    one, other = open_(), open_()
    token, second = one.own(), other.own()
    try:
        _expect(token == second, False, "two handles have one token")
        _expect((other.is_alive(token), one.is_alive(second)), (True, True), "the other's owner is alive")
        other.disown(token)
        _expect(other.is_alive(token), True, "alive, when another handle disowned its token")
    finally:
        one.disown(token)
        other.disown(second)
    _expect(other.is_alive(token), False, "alive, when it owns nothing any more")


def _race(open_: Open) -> None:
    stores = [open_() for _ in range(RACERS)]
    stores[0].append(RUN, [_header()], expect=0)
    for position in range(1, ROUNDS + 1):
        won: list[int] = []
        wrong: list[BaseException] = []
        start = threading.Barrier(RACERS)

        def run(number: int, position: int = position, won: Any = won, wrong: Any = wrong, start: Any = start) -> None:
            start.wait(PATIENCE)
            try:
                stores[number].append(RUN, [_state(by=number)], expect=position)
            except Conflict:
                return
            except BaseException as error:  # said in the row
                wrong.append(error)
            else:
                won.append(number)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(RACERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise AssertionError(f"who loses a race gets {describe(wrong[0])}, not Conflict") from wrong[0]
        _expect(len(won), 1, f"winners of position {position}, of {RACERS}")
        for store in stores:
            _expect([each[3]["by"] for each in _said(store, position)], won, "the line that is read, and who won")


def _follows(open_: Open) -> None:
    one, other = open_(), open_()
    seen: list[int] = []
    arrived = threading.Event()

    def hear(record: Any) -> None:
        seen.append(record.position)
        if record.position == 2:
            arrived.set()

    end = one.bus.subscribe_log(RUN, hear)
    with one.follow(RUN, 0):
        for position in range(3):
            other.append(RUN, [_state()] if position else [_header()], expect=position)
        _expect(arrived.wait(PATIENCE), True, f"the other's lines arrive within {PATIENCE:g} s")
    end()
    _expect(seen, [0, 1, 2], "the positions that arrived")


ROWS: list[tuple[str, Callable[[Open], None]]] = [
    ("what was appended is read", _reads_what_was_appended),
    ("many lines", _many_lines),
    ("who comes second to a position", _second_to_a_position),
    ("who lost its claim", _lost_claim),
    ("what cannot be written", _unwritable),
    ("a run that does not exist", _unknown_run),
    ("runs are listed", _lists),
    ("a run is deleted", _deletes),
    ("results", _results),
    ("owners", _owns),
    ("the queue", _queues),
    ("documents", _documents),
]
SHARED: list[tuple[str, Callable[[Open], None]]] = [
    ("another handle reads and writes", _another_reads),
    ("another handle takes a run over", _another_takes_over),
    ("the owners of other handles", _others_tokens),
    (f"{RACERS} handles race", _race),
    ("another handle's lines are heard of", _follows),
]
"""Questions to storage that several processes share."""


def check(factory: Callable[[str], Store], *, shared: bool) -> dict[str, str]:
    """The answers by row: "ok", or what differs."""
    answers: dict[str, str] = {}
    for name, ask in [*ROWS, *(SHARED if shared else [])]:
        with TemporaryDirectory(prefix="microflow-check-", ignore_cleanup_errors=True) as folder:
            opened: list[Store] = []

            def open_(folder: str = folder, opened: list[Store] = opened) -> Store:
                opened.append(factory(folder))
                return opened[-1]

            try:
                ask(open_)
            except Exception as error:  # a store may fail in every way there is; that is what is asked
                answers[name] = str(error) if isinstance(error, AssertionError) else f"FAILED: {describe(error)}"
            else:
                answers[name] = "ok"
            for store in opened:
                for run_id in (RUN, OTHER):
                    store.close(run_id)
    return answers
