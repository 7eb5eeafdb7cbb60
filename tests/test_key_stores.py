# SPDX-License-Identifier: Apache-2.0
"""Logs elsewhere: five methods make a store that runs survive on, and ``check_store`` finds those that do not do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from microflow.client.orchestration import current_client
from microflow.examples import sqlite_store
from microflow.examples.sqlite_store import SqliteStore
from microflow.exceptions import (
    ConfigurationError,
    DamagedLog,
    Fenced,
    IndeterminateAppend,
    ObjectNotFound,
    StorageError,
)
from microflow.key_stores import KeyStore
from microflow.settings import temporary_settings
from microflow.stores import FileStore, MemoryStore
from microflow.testing import check_store

from .kill_support import cli, environment
from .log_support import OTHER, RUN, TIME, claim, header, state

MAKER = "microflow.examples.sqlite_store:SqliteStore"


class DictStore(KeyStore):
    """What a user writes, on a dict that the handles of one place share."""

    places: dict[str, dict[str, bytes]] = {}
    mutex = threading.Lock()

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.entries = self.places.setdefault(place, {})

    def create(self, key: str, value: bytes) -> bool:
        with self.mutex:
            return self.entries.setdefault(key, value) is value

    def put(self, key: str, value: bytes) -> None:
        self.entries[key] = value

    def get(self, key: str) -> bytes | None:
        return self.entries.get(key)

    def scan(self, prefix: str, start: str = "") -> list[tuple[str, bytes]]:
        with self.mutex:
            return sorted(item for item in self.entries.items() if item[0].startswith(prefix) and item[0] >= start)

    def remove(self, key: str) -> bool:
        return self.entries.pop(key, None) is not None


# ------------------------------------------------------------------------------------------------ check_store


@pytest.mark.parametrize("factory", [FileStore, lambda home: FileStore(home, "disk"), SqliteStore, DictStore])
def test_our_stores_keep_all_that_is_asked(factory, capsys):
    answers = check_store(factory)
    assert set(answers.values()) == {"ok"}
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == list(answers)


def test_a_store_of_one_process_is_asked_what_one_handle_can_do(monkeypatch):
    monkeypatch.setattr("microflow._store_checks.PATIENCE", 0.3)
    answers = check_store(lambda _: MemoryStore(), shared=False, show=False)
    assert set(answers.values()) == {"ok"}
    with pytest.raises(AssertionError, match=r"another handle reads and writes: FAILED: ObjectNotFound"):
        check_store(lambda _: MemoryStore(), show=False)


class ForgetsConflict(DictStore):
    def create(self, key: str, value: bytes) -> bool:
        self.entries[key] = value
        return True


class ChecksBeforeItWrites(DictStore):
    """Asks, and then writes: two who ask at the same time are both told yes."""

    gate = threading.Barrier(2)

    def create(self, key: str, value: bytes) -> bool:
        if key in self.entries:
            return False
        try:
            self.gate.wait(0.05)
        except threading.BrokenBarrierError:
            self.gate.reset()
        self.entries[key] = value
        return True


class Unordered(DictStore):
    def scan(self, prefix: str, start: str = "") -> list[tuple[str, bytes]]:
        return super().scan(prefix, start)[::-1]


class KeepsDeleted(DictStore):
    def remove(self, key: str) -> bool:
        return key in self.entries


class CutsOff(DictStore):
    def put(self, key: str, value: bytes) -> None:
        super().put(key, value[:1000])


class NobodyLives(DictStore):
    lease_seconds = 0.0


class HearsNothing(DictStore):
    def follow(self, run_id: str, position: int = 0) -> Any:
        return nullcontext()


class OwnCopy(DictStore):
    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.entries = {}


class LosesFences(FileStore):
    def append(self, run_id: str, bodies: list[Any], **options: Any) -> int:
        try:
            return super().append(run_id, bodies, **options)
        except Fenced:
            return super().append(run_id, bodies, **{**options, "epoch": None})


@pytest.mark.parametrize(
    ("factory", "row"),
    [
        (ForgetsConflict, "another handle takes a run over"),
        (ChecksBeforeItWrites, "4 handles race"),
        (Unordered, "many lines"),
        (KeepsDeleted, "a run is deleted"),
        (CutsOff, "results"),
        (NobodyLives, "the owners of other handles"),
        (OwnCopy, "another handle reads and writes"),
        (LosesFences, "who lost its claim"),
    ],
)
def test_each_defect_is_found_in_its_row(factory, row, monkeypatch):
    monkeypatch.setattr("microflow._store_checks.PATIENCE", 1.0)  # of what will not come
    with pytest.raises(AssertionError) as caught:
        check_store(factory, show=False)
    assert f"\n  {row}: " in str(caught.value)


def test_news_that_never_come_are_missed(monkeypatch):
    monkeypatch.setattr("microflow._store_checks.PATIENCE", 0.3)
    with pytest.raises(AssertionError, match="another handle's lines are heard of: the other's lines arrive"):
        check_store(HearsNothing, show=False)


# ------------------------------------------------------------------------------------------------ key stores


@pytest.fixture
def store(tmp_path) -> DictStore:
    return DictStore(str(tmp_path))


def test_the_lines_of_a_run_are_the_file_that_a_file_store_writes(store, tmp_path):
    files = FileStore(tmp_path / "files")
    for each in (store, files):
        each.append(RUN, [header(), claim()], expect=0, epoch=1, time_us=TIME)
        each.append(RUN, [state("A"), state("B")], expect=1, epoch=1, time_us=TIME)
    lines = b"".join(value for _, value in store.scan("lines/"))
    assert lines == (tmp_path / "files" / "runs" / f"{RUN}.jsonl").read_bytes()
    files.close(RUN)


def test_an_append_whose_answer_was_lost_is_looked_up(store, monkeypatch):
    store.append(RUN, [header()], expect=0)
    create = store.create

    def lose(key: str, value: bytes) -> bool:
        create(key, value)
        raise StorageError("no answer")

    monkeypatch.setattr(store, "create", lose)
    assert store.append(RUN, [state("A")], expect=1) == 2
    monkeypatch.setattr(store, "create", lambda key, value: create(key, value) and create(key, value))
    assert store.append(RUN, [state("B")], expect=2) == 3, "the client of the database repeated the call"
    monkeypatch.setattr(store, "create", lose)
    monkeypatch.setattr(store, "get", lambda key: lose(key, b""))
    with pytest.raises(IndeterminateAppend, match="no answer"):
        store.append(RUN, [state("C")], expect=3)
    monkeypatch.undo()
    assert [record.data.get("to") for record in store.read(RUN).records] == [None, "A", "B", "C"]


def test_an_append_that_failed_changed_nothing(store, monkeypatch):
    store.append(RUN, [header()], expect=0)

    def fail(key: str, value: bytes) -> bool:
        raise StorageError("closed for today")

    monkeypatch.setattr(store, "create", fail)
    with pytest.raises(StorageError, match="closed for today"):
        store.append(RUN, [state()], expect=1)
    monkeypatch.undo()
    assert store.append(RUN, [state()], expect=1) == 2


def test_what_stands_at_a_place_and_is_no_line_is_damage_and_no_endless_conflict(store):
    store.append(RUN, [header()], expect=0)
    other = DictStore(store.location)
    other.read(RUN)
    store.create(other._log(RUN)._key(), b"rot")
    for each in (store, other):
        with pytest.raises(DamagedLog, match="is no line that follows"):
            each.append(RUN, [state()], expect=1)
        assert each.read(RUN).position == 1


def test_a_line_that_is_missing_in_the_middle_is_damage(store):
    for position in range(4):
        store.append(RUN, [state() if position else header()], expect=position)
    store.remove(store.scan("lines/")[2][0])
    store.close(RUN)
    reading = store.read(RUN)
    assert (reading.position, type(reading.problem)) == (2, DamagedLog)


@pytest.mark.parametrize("removals", range(6))
def test_a_deletion_that_was_killed_leaves_no_run_and_can_be_repeated(store, monkeypatch, removals):
    for position in range(3):
        store.append(RUN, [state() if position else header()], expect=position)
    store.append(OTHER, [header(OTHER)], expect=0)
    store.put_result(RUN, b"value")
    remove, left = store.remove, list(range(removals))

    def die(key: str) -> bool:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return remove(key)

    monkeypatch.setattr(store, "remove", die)
    if removals < 5:
        with pytest.raises(KeyboardInterrupt):
            store.delete(RUN)
    else:
        store.delete(RUN)
    monkeypatch.undo()
    fresh = DictStore(store.location)
    if removals:
        with pytest.raises(ObjectNotFound):
            fresh.read(RUN)
        assert fresh.append(RUN, [header(nonce="1" * 32)], expect=0) == 1, "what is left is in nobody's way"
        assert fresh.append(RUN, [state()], expect=1) == 2
        assert fresh.read(RUN).check().position == 2
    fresh.delete(RUN)
    assert fresh.list() == [OTHER]
    assert [key for key in fresh.entries if RUN in key] == []


def test_a_run_that_another_handle_made_anew_is_not_taken_for_the_old_one(store):
    for position in range(3):
        store.append(RUN, [state() if position else header()], expect=position)
    other = DictStore(store.location)
    other.delete(RUN)
    other.append(RUN, [header(nonce="1" * 32)], expect=0)
    assert store.read(RUN).position == 1
    assert store.read(RUN, 5).records == []


def test_an_owner_is_dead_when_its_lease_was_not_renewed(store):
    other = DictStore(store.location)
    token = other.own()
    assert store.is_alive(token)
    store.put(f"owners/{token}", b"%d" % (TIME * 1000))
    assert not store.is_alive(token)
    store.put(f"owners/{'e' * 32}", b"nonsense")
    second = store.own()
    assert {key for key, _ in store.scan("owners/")} == {f"owners/{second}"}, "the dead are swept away"
    store.disown(second)
    other.disown(token)
    assert store.scan("owners/") == []


def test_a_lease_is_renewed_while_a_run_is_owned(store, monkeypatch):
    renewed = threading.Event()
    put = store.put

    def note(key: str, value: bytes) -> None:
        put(key, value)
        if threading.current_thread().name == "microflow lease":
            renewed.set()
            raise StorageError("an answer that was lost hurts nobody")

    monkeypatch.setattr(store, "put", note)
    monkeypatch.setattr(store, "lease_seconds", 0.04)
    token = store.own()
    assert renewed.wait(20)
    store.disown(token)


def test_without_threads_appends_renew_the_lease(store, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    token = store.own()
    first = store.get(f"owners/{token}")
    store.append(RUN, [header()], expect=0)
    assert store.get(f"owners/{token}") == first, "it is fresh"
    monkeypatch.setattr(store, "lease_seconds", 0.0)
    store.append(RUN, [state("1")], expect=1)
    assert int(store.get(f"owners/{token}")) > int(first)
    store.disown(token)
    assert not store.scan("owners/")


# ------------------------------------------------------------------------------------------------ runs on them


SCRIPT = """
import os, signal, sys
from microflow import flow, task

@task
def step(n):
    with open("executed", "a") as file:
        file.write(f"{n}\\n")
    return n * "x" * 20_000

@flow
def steps():
    done = [step(n) for n in range(3)]
    if not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(map(len, done))
"""


def test_a_flow_on_sqlite_is_killed_and_resumed_by_another_process(tmp_path, private_home):
    (tmp_path / "steps.py").write_text(SCRIPT)
    setting = {"MICROFLOW_STORE": MAKER}
    done = cli("run", "steps.py:steps", cwd=tmp_path, **setting)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in private_home.iterdir()) == ["runs.sqlite"]
    with temporary_settings(store=MAKER):
        (run_id,) = current_client().store.list()
        listed = cli("ls", cwd=tmp_path, **setting)
        assert "Running" in listed.stdout, "its lease has not ended"
        assert cli("resume", run_id, cwd=tmp_path, **setting).returncode == 6, "so it may be alive"
        done = cli("resume", run_id, "--steal", "--code", "steps.py:steps", cwd=tmp_path, **setting)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "executed").read_text().split() == ["0", "1", "2"], "completed calls are handed back"
        state = current_client().read_flow_run(run_id).state
        assert state is not None
        assert state.result() == 60_000
        assert cli("gc", "--older-than", "0s", cwd=tmp_path, **setting).returncode == 0
        assert current_client().store.list() == []


SHORT = f"""
from {SqliteStore.__module__} import SqliteStore

class Short(SqliteStore):
    lease_seconds = 0.5
"""


def test_a_killed_run_has_crashed_when_its_lease_has_ended_and_is_resumed_like_any_other(tmp_path):
    """Whoever waits for its end hears of it; what was completed is handed back."""
    (tmp_path / "steps.py").write_text(SCRIPT)
    (tmp_path / "short.py").write_text(SHORT)
    setting = {"MICROFLOW_STORE": "short:Short"}
    assert cli("run", "steps.py:steps", cwd=tmp_path, **setting).returncode == -signal.SIGKILL
    wait = "import asyncio, sys; from microflow.flow_runs import wait_for_flow_run; "
    wait += "print(asyncio.run(wait_for_flow_run(sys.argv[1])).state.type.name)"
    (run_id,) = [run["id"] for run in json.loads(cli("ls", "--json", cwd=tmp_path, **setting).stdout)]
    waited = subprocess.run(
        [sys.executable, "-c", wait, run_id], cwd=tmp_path, env=environment(**setting), capture_output=True, text=True
    )
    assert waited.stdout == "CRASHED\n", waited.stderr
    assert "Crashed" in cli("ls", cwd=tmp_path, **setting).stdout
    done = cli("resume", run_id, "--code", "steps.py:steps", cwd=tmp_path, **setting)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "executed").read_text().split() == ["0", "1", "2"]


def test_what_the_setting_names_is_called_with_the_home(private_home):
    with temporary_settings(store=MAKER):
        store = current_client().store
        assert isinstance(store, SqliteStore)
        assert store.location == str(private_home)
        assert current_client().store is store
    assert isinstance(current_client().store, FileStore)


@pytest.mark.parametrize("maker", ["nowhere_at_all:Store", f"{sqlite_store.__name__}:Nothing", "os:fsencode"])
def test_a_setting_that_makes_no_store_is_an_error_that_names_it(maker):
    with temporary_settings(store=maker), pytest.raises(ConfigurationError) as caught:
        current_client()
    assert maker in str(caught.value)


@pytest.mark.parametrize("maker", ["module", "module:", ":name", "a:b:c", 7])
def test_a_setting_that_is_no_name_is_refused(maker):
    with pytest.raises(ConfigurationError, match="accepted is module:name of what makes a store"):
        temporary_settings(store=maker)


def test_the_example_has_sixty_lines_at_most():
    assert len(Path(sqlite_store.__file__).read_text().splitlines()) <= 60


def test_a_database_that_cannot_be_opened_is_a_storage_error(tmp_path):
    (tmp_path / "runs.sqlite").write_text("this is no database, " * 100)
    with pytest.raises(StorageError, match="not a database"):
        SqliteStore(str(tmp_path))


def test_a_store_for_keys_is_loaded_by_those_who_use_it(tmp_path):
    code = "import sys, microflow; microflow.flow; print([n for n in sys.modules if 'key_stores' in n or 'sql' in n])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"
