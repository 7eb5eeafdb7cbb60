# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: a home of its own, no thread left behind, and ``--trials``."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 5.0  # seconds for a thread that was told to end to do so; a machine under load needs more than one


# Processes that tests start by the hundred are to compile the package once, not each anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--trials",
        type=int,
        default=None,
        metavar="N",
        help="do N rounds in each test that kills processes, races claims or feeds random input (default: its own few)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with Dask and loky come last: what those leave in a process (threads, ways to pickle exceptions) is not to
    be found by others."""
    items.sort(key=lambda item: any(word in item.name or f"{word}_client" in getattr(item, "fixturenames", ())
                                    for word in ("dask", "loky")))  # fmt: skip


@pytest.fixture(scope="session")
def trials(pytestconfig: pytest.Config) -> Callable[[int], int]:
    """How many rounds a test does: ``trials(200)`` is 200, or what ``--trials`` says."""
    wanted: int | None = pytestconfig.getoption("--trials")
    return lambda default: default if wanted is None else wanted


@pytest.fixture(scope="session")
def dask_client() -> Iterator[object]:
    """A Dask cluster of two worker processes, started by the first test that asks for it."""
    from tests.executors_support import dask_cluster  # few tests want it, and it takes seconds to import

    yield from dask_cluster()


@pytest.fixture(scope="session")
def runner_kind(request: pytest.FixtureRequest) -> object:
    """The kind of runner that a common test runs on (``executors_support.each``), with what it needs."""
    if request.param.fixture is not None:
        request.getfixturevalue(request.param.fixture)
    return request.param


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test its own empty ``MICROFLOW_HOME``, and no other setting from outside."""
    for name in [name for name in os.environ if name.startswith("MICROFLOW_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("MICROFLOW_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def no_log_left_open(private_home: Path) -> Iterator[None]:
    """Forget the clients that the test made, each home has one for the life of a process with its open logs; and the
    results that it persisted in memory. Whatever a test leaves in its home is listed as it is read."""
    yield
    orchestration = sys.modules.get("microflow.client.orchestration")
    clients = orchestration._clients if orchestration is not None else {}
    try:
        for client in clients.values():
            for run_id in client.store.list():
                client.store.close(run_id)
            from tests.ends_support import listings_tell_the_same  # for tests that use the package, not all do

            listings_tell_the_same(client)
    finally:
        clients.clear()
    storage = sys.modules.get("microflow._storage")
    if storage is not None:
        storage._in_memory.clear()


@pytest.fixture(autouse=True)
def no_thread_left_behind(private_home: Path) -> Iterator[None]:
    """Fail the test that leaves a thread alive, and name the thread.

    It takes the home only for the order: a late thread must not see the real home come back.
    """
    yield from threads_left_by()


def threads_left_by() -> Iterator[None]:
    """The rule itself: begun before a test and continued after it, it fails when there is a new thread."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + PATIENCE
    while (alive := [thread for thread in threading.enumerate() if thread not in before]) and (
        left := deadline - time.monotonic()
    ) > 0:
        alive[0].join(left)
    if alive:
        names = ", ".join(f"{thread.name} ({type(thread).__name__})" for thread in alive)
        pytest.fail(f"the test left threads running: {names}", pytrace=False)
