# SPDX-License-Identifier: Apache-2.0
"""The runners that common tests are run on, each by a name that its parameter bears."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from microflow.task_runners import ExecutorTaskRunner, ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

if TYPE_CHECKING:
    from collections.abc import Iterator


def process_pool_executor() -> concurrent.futures.Executor:
    """The standard library's pool, whose workers are forked from a server: this process has threads."""
    return concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver"))


def forking_executor() -> concurrent.futures.Executor:
    """The standard library's pool whose workers are forked from this process: its default before Python 3.14."""
    return concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


def thread_pool_executor() -> concurrent.futures.Executor:
    """The standard library's pool of threads: workers in the owner's own process."""
    return concurrent.futures.ThreadPoolExecutor(2)


def loky_executor() -> concurrent.futures.Executor:
    """loky's pool."""
    import loky

    executor: concurrent.futures.Executor = loky.ProcessPoolExecutor(2)
    return executor


class Kind:
    """One way to run tasks."""

    def __init__(
        self,
        name: str,
        make: Any,
        *,
        isolated: bool = True,
        kills: bool = False,
        marks: Any = (),
        fixture: str | None = None,
    ) -> None:
        self.name = name
        self.make = make
        #: whether a task runs in another process
        self.isolated = isolated
        #: whether a task can be stopped
        self.kills = kills
        self.marks = marks
        #: what must be there before the test begins, so that its threads are not taken for the test's
        self.fixture = fixture

    def runner(self, request: pytest.FixtureRequest, max_workers: int = 2) -> TaskRunner[Any]:
        """A runner of this kind."""
        runner: TaskRunner[Any] = self.make(request, max_workers)
        return runner


#: what Python 3.12 and later say of it: that it may hang, which is what the tests are about
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def _over(factory: Any) -> Any:
    return lambda request, number: ExecutorTaskRunner(factory, number)


def _dask(request: pytest.FixtureRequest, number: int) -> TaskRunner[Any]:
    return ExecutorTaskRunner(request.getfixturevalue("dask_client").get_executor, number)


KINDS = [
    Kind("threads", lambda request, number: ThreadPoolTaskRunner(number), isolated=False),
    Kind("processes", lambda request, number: ProcessPoolTaskRunner(number), kills=True),
    Kind("executor of threads", _over(thread_pool_executor), isolated=False),
    Kind("executor of processes", _over(process_pool_executor)),
    Kind("executor of forks", _over(forking_executor), marks=FORKS),
    Kind("loky", _over(loky_executor), marks=pytest.mark.slow),
    Kind("dask", _dask, marks=pytest.mark.slow, fixture="dask_client"),
]
EXECUTORS = [kind for kind in KINDS if kind.name not in ("threads", "processes")]


def each(kinds: list[Kind]) -> pytest.MarkDecorator:
    """Runs a test once for each kind."""
    parameters = [pytest.param(kind, marks=kind.marks, id=kind.name) for kind in kinds]
    return pytest.mark.parametrize("runner_kind", parameters, indirect=True)


def dask_cluster() -> Iterator[Any]:
    """A client of a cluster of two worker processes on this machine, for a fixture."""
    import distributed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties: ports that are taken, memory that is not what it says
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        )
        client = distributed.Client(cluster)
        client.submit(int).result()  # so that the threads it will have are there
    try:
        yield client
    finally:
        client.close()
        cluster.close()
