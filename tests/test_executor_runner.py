# SPDX-License-Identifier: Apache-2.0
"""ExecutorTaskRunner: whose executor it is, what is not believed of it, and what its workers need not have.

What holds on every executor as on every other runner stands in ``test_runners_alike``."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import sys
import threading
import uuid
from typing import Any

import pytest

from microflow import flow
from microflow._executors import ExecutorCarrier, size_of
from microflow._processes import AttemptTimedOut
from microflow.exceptions import CrashedRun, NotTransferable, WorkerLost
from microflow.futures import wait
from microflow.task_runners import ExecutorTaskRunner, ThreadPoolTaskRunner
from tests import remote_tasks as remote
from tests.executors_support import (
    EXECUTORS,
    dask_cluster,
    each,
    forking_executor,
    process_pool_executor,
    thread_pool_executor,
)
from tests.support import PATIENCE, Gauge, task_ids, task_states


def in_flow(body: Any, runner: Any) -> Any:
    return flow(task_runner=runner, name="outer")(body)()


class Made:
    """A factory that remembers what it made."""

    def __init__(self, factory: Any) -> None:
        self.factory = factory
        self.made: list[Any] = []

    def __call__(self) -> Any:
        self.made.append(self.factory())
        return self.made[-1]


# ------------------------------------------------------------------------------------------------ configuration


class TestConfiguration:
    def test_equal_iff_executor_and_limit_are(self):
        with thread_pool_executor() as executor:
            runner = ExecutorTaskRunner(executor)
            assert runner.duplicate() == runner
            assert hash(runner.duplicate()) == hash(runner)
            assert runner != ExecutorTaskRunner(executor, 1)
            assert runner != ExecutorTaskRunner(thread_pool_executor)
            assert runner != ThreadPoolTaskRunner(2)
            assert runner.name == "executor"

    def test_the_limit_is_what_the_executor_tells(self):
        with concurrent.futures.ThreadPoolExecutor(3) as executor:
            assert ExecutorTaskRunner(executor)._max_workers == size_of(executor) == 3
        assert size_of(object()) is None

    @pytest.mark.parametrize("what", [3, None, "executor"])
    def test_what_is_no_executor_is_refused_when_made(self, what):
        with pytest.raises(TypeError, match="must be an Executor or a function that makes one"):
            ExecutorTaskRunner(what)

    def test_lambdas_are_refused_on_threads_too(self):
        """The same program runs on every executor."""
        from microflow import task

        with thread_pool_executor() as executor, ExecutorTaskRunner(executor) as runner:
            with pytest.raises(NotTransferable, match="it is a lambda"):
                runner.submit(task(name="short")(lambda: 1), {})


# ------------------------------------------------------------------------------------------------ whose it is


class TestWhoseItIs:
    def test_an_executor_that_is_given_stays_open(self):
        with thread_pool_executor() as executor:
            for _ in range(2):
                assert in_flow(lambda: remote.add.submit(1).result(), ExecutorTaskRunner(executor)) == 2
            assert executor.submit(int).result() == 0

    def test_one_that_a_factory_makes_is_made_when_needed_and_shut_down(self):
        factory = Made(thread_pool_executor)
        runner = ExecutorTaskRunner(factory, 2)
        assert in_flow(lambda: 1, runner) == 1
        assert factory.made == []
        assert in_flow(lambda: remote.add.map([1, 2, 3, 4]).result(), runner) == [2, 3, 4, 5]
        (executor,) = factory.made
        with pytest.raises(RuntimeError):
            executor.submit(int)

    def test_a_class_of_executors_is_a_factory(self):
        runner = ExecutorTaskRunner(concurrent.futures.ThreadPoolExecutor, 2)
        assert in_flow(lambda: remote.add.map([1, 2]).result(), runner) == [2, 3]

    def test_many_threads_at_once_make_one(self):
        making = Gauge()

        def slow() -> Any:
            with making:
                threading.Event().wait(0.1)
            return thread_pool_executor()

        factory = Made(slow)
        carrier = ExecutorCarrier(None, factory)
        threads = [threading.Thread(target=carrier._current) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        carrier.close()
        assert (len(factory.made), making.most) == (1, 1)

    def test_a_factory_that_raises_fails_the_run_with_its_error(self):
        def factory() -> Any:
            raise OSError("no cluster")

        def body():
            future = remote.add.submit(1)
            with pytest.raises(OSError, match="no cluster"):
                future.result()

        in_flow(body, ExecutorTaskRunner(factory, 1))
        assert task_states("add") == [["Pending", "Running", "Failed"]]

    def test_a_broken_one_is_made_anew(self):
        factory = Made(process_pool_executor)

        def body():
            for _ in range(2):
                with pytest.raises(CrashedRun, match="the executor lost the attempt"):
                    remote.exit_by_os.submit().result()
            return remote.add.submit(1).result()

        assert in_flow(body, ExecutorTaskRunner(factory, 2)) == 2
        assert len(factory.made) == 3

    def test_a_broken_one_that_was_given_crashes_what_follows_and_says_why(self):
        def body():
            futures = [remote.exit_by_os.submit()]
            futures[0].wait()
            futures.append(remote.add.submit(1))
            wait(futures)
            return [(future.state.type.value, future.state.message) for future in futures]

        with process_pool_executor() as executor:
            first, second = in_flow(body, ExecutorTaskRunner(executor))
        assert first[0] == second[0] == "CRASHED"
        assert "the executor takes no attempt: BrokenProcessPool" in second[1]

    @pytest.mark.parametrize("factory", [forking_executor, process_pool_executor])
    def test_a_worker_whose_attempt_was_given_up_is_killed_with_the_runner(self, factory, tmp_path):
        made, pid = Made(factory), tmp_path / "pid"

        def body():
            future = remote.endless.submit(str(pid))
            future.wait()
            return future.state.name, remote.add.submit(1).result()

        assert in_flow(body, ExecutorTaskRunner(made, 2)) == ("TimedOut", 2)
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)

    def test_a_closed_one_crashes_what_is_submitted(self):
        executor = thread_pool_executor()
        executor.shutdown()
        with pytest.raises(CrashedRun, match="takes no attempt: RuntimeError: cannot schedule new futures"):
            in_flow(lambda: remote.add.submit(1).result(), ExecutorTaskRunner(executor))


# ------------------------------------------------------------------------------------------ what is not believed


class Strange(concurrent.futures.ThreadPoolExecutor):
    """Runs each call twice, keeps its futures out of the way of ``cancel``, and takes only ``wait``."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        assert len(args) == 1
        assert not kwargs
        assert type(args[0]) is bytes
        super().submit(fn, *args).result()
        future = super().submit(fn, *args)

        def cancel() -> bool:
            raise NotImplementedError

        future.cancel = cancel  # type: ignore[method-assign]
        return future

    def shutdown(self, wait: bool = True) -> None:  # type: ignore[override]
        super().shutdown(wait=wait)


class TestWhatIsNotBelieved:
    def test_an_attempt_that_is_executed_twice_has_one_outcome(self, tmp_path):
        runner = ExecutorTaskRunner(lambda: Strange(2), 2)
        assert in_flow(lambda: remote.parent_of.submit(1).result(), runner) == [4, 11]
        assert len(task_ids("add")) == 4

    def test_a_late_outcome_of_an_attempt_that_was_given_up_is_dropped(self):
        def body():
            future = remote.slow_for_a_second.submit()
            future.wait()
            return future.state.name

        assert in_flow(body, ExecutorTaskRunner(lambda: Strange(1), 1)) == "TimedOut"
        assert task_states("slow_for_a_second") == [["Pending", "Running", "TimedOut"]]

    def test_at_most_so_many_attempts_are_with_the_executor(self):
        gauge = Gauge()

        class Counting(concurrent.futures.ThreadPoolExecutor):
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
                gauge.__enter__()
                future = super().submit(fn, *args, **kwargs)
                future.add_done_callback(lambda _: gauge.__exit__())
                return future

        in_flow(lambda: remote.sleep.map([0.01] * 12).wait(), ExecutorTaskRunner(lambda: Counting(8), 3))
        assert gauge.most <= 3
        gauge.most = 0
        in_flow(lambda: remote.sleep.map([0.01] * 12).wait(), ExecutorTaskRunner(lambda: Counting(2), 12))
        assert gauge.most <= 2, "what a factory made tells how many workers it has"


# ------------------------------------------------------------------------------------------ what fills the workers


class ByHand(concurrent.futures.Executor):
    """Tells that it has one worker, or more; the test ends each of its calls."""

    def __init__(self, size: int = 1) -> None:
        self._max_workers = size
        self.begun: queue.Queue[concurrent.futures.Future[Any]] = queue.Queue()
        self.shutdowns: list[bool] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future = concurrent.futures.Future[Any]()
        assert future.set_running_or_notify_cancel()
        self.begun.put(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.shutdowns.append(wait)


class Attempt:
    """A thread that carries an attempt, and what came of it."""

    def __init__(self, carrier: ExecutorCarrier, timeout: float | None = None) -> None:
        self.outcome: Any = None
        self._thread = threading.Thread(target=self._carry, args=(carrier, timeout), daemon=True)
        self._thread.start()

    def _carry(self, carrier: ExecutorCarrier, timeout: float | None) -> None:
        try:
            self.outcome = carrier.carry(uuid.uuid4(), b"", timeout, lambda record: None)
        except (AttemptTimedOut, WorkerLost) as error:
            self.outcome = error

    def ended(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.outcome


def give_up(carrier: ExecutorCarrier, executor: ByHand) -> concurrent.futures.Future[Any]:
    """An attempt that is given up and goes on."""
    assert isinstance(Attempt(carrier, 0.01).ended(), AttemptTimedOut)
    return executor.begun.get(timeout=PATIENCE)


#: how long is waited for what must not happen
A_WHILE = 0.1


class TestWhatFillsTheWorkers:
    @pytest.mark.parametrize("is_given", [True, False])
    def test_an_attempt_waits_without_its_time_counting_until_what_was_given_up_is_over(self, is_given):
        executor = ByHand(1 if is_given else 2)
        carrier = ExecutorCarrier(executor, None) if is_given else ExecutorCarrier(None, lambda: executor)
        others = [] if is_given else [Attempt(carrier)]  # as long as one of its workers is of use, it is not replaced
        handles = [executor.begun.get(timeout=PATIENCE) for _ in others]
        overrun = give_up(carrier, executor)
        late = Attempt(carrier, PATIENCE)
        with pytest.raises(queue.Empty):
            executor.begun.get(timeout=A_WHILE)
        overrun.set_result(b"too late")
        executor.begun.get(timeout=PATIENCE).set_result(b"done")
        assert late.ended() == b"done"
        assert executor.shutdowns == []
        for handle, other in zip(handles, others, strict=True):
            handle.set_result(b"other")
            assert other.ended() == b"other"

    def test_an_interrupt_ends_the_wait_for_a_worker(self):
        executor = ByHand()
        carrier = ExecutorCarrier(executor, None)
        give_up(carrier, executor)
        late = Attempt(carrier)
        with pytest.raises(queue.Empty):
            executor.begun.get(timeout=A_WHILE)
        carrier.interrupt()
        error = late.ended()
        assert isinstance(error, WorkerLost)
        assert "its flow run was interrupted" in str(error)
        assert executor.begun.empty()

    def test_one_that_a_factory_made_is_replaced_when_nothing_else_is_left_of_it(self):
        factory = Made(lambda: ByHand(2))
        carrier = ExecutorCarrier(None, factory)
        carrier._current()
        give_up(carrier, factory.made[0])
        give_up(carrier, factory.made[0])
        assert factory.made[0].shutdowns == [False]
        late = Attempt(carrier, PATIENCE)
        while len(factory.made) == 1:
            threading.Event().wait(0.001)
        factory.made[1].begun.get(timeout=PATIENCE).set_result(b"done")
        assert late.ended() == b"done"
        carrier.close()
        assert factory.made[0].shutdowns == [False, True], "what cannot be stopped is waited for in the end"
        assert factory.made[1].shutdowns == [True]

    @pytest.mark.parametrize("start_method", ["fork", "forkserver"])
    def test_a_pool_whose_attempts_were_all_given_up_is_killed_and_the_next_one_has_its_time(
        self, start_method, tmp_path
    ):
        pool, path = concurrent.futures.ProcessPoolExecutor, tmp_path / "pid"
        factory = Made(lambda: pool(1, mp_context=multiprocessing.get_context(start_method)))

        def body():
            remote.add.submit(1).result()
            remote.endless.submit(str(path)).wait()
            with pytest.raises(ProcessLookupError):
                os.kill(int(path.read_text()), 0)
            return remote.add.with_options(timeout_seconds=PATIENCE).submit(1).result()

        assert in_flow(body, ExecutorTaskRunner(factory, 1)) == 2
        assert task_states("endless") == [["Pending", "Running", "TimedOut"]]
        assert len(factory.made) == 2

    @pytest.mark.parametrize(("end", "why"), [("interrupt", "was interrupted"), ("close", "task runner has ended")])
    def test_an_executor_that_is_made_after_the_end_is_shut_down_and_given_nothing(self, end, why):
        asked, release, executor = threading.Event(), threading.Event(), ByHand()

        def factory() -> Any:
            asked.set()
            assert release.wait(PATIENCE)
            return executor

        carrier = ExecutorCarrier(None, factory)
        first = Attempt(carrier)
        assert asked.wait(PATIENCE)
        second = Attempt(carrier)  # waits for what the first one makes
        getattr(carrier, end)()
        assert why in str(second.ended())
        release.set()
        error = first.ended()
        assert isinstance(error, WorkerLost)
        assert why in str(error)
        assert executor.shutdowns == [False]
        assert executor.begun.empty()


# ------------------------------------------------------------------------------------------ what workers need not have


def forbid(home: str) -> None:
    """Let no file below `home` be opened in this worker process any more."""

    def watch(event: str, arguments: Any) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(home):
            os._exit(77)

    sys.addaudithook(watch)
    os.environ["MICROFLOW_HOME"] = "/nowhere/that/could/be/made"


def test_a_worker_that_shares_no_disk_reports_its_outcome_states_and_logs(private_home, caplog):
    """The worker dies if it opens anything in the caller's home."""

    def factory() -> Any:
        return concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("forkserver"), initializer=forbid, initargs=(str(private_home),)
        )

    def body():
        remote.log_lines.submit("far away").result()
        return remote.parent_of.submit(1).result(), remote.fail.submit().result(raise_on_failure=False)

    with caplog.at_level("INFO", logger="microflow"):
        values, error = in_flow(body, ExecutorTaskRunner(factory, 1))
    assert values == [4, 11]
    assert type(error) is ValueError
    assert task_states("add") == [["Pending", "Running", "Completed"]] * 4
    assert task_states("fail") == [["Pending", "Running", "Failed"]]
    assert "far away from here" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("dask_client")  # so that the threads that Dask keeps for good are there before this test
@pytest.mark.parametrize(("allowed", "times"), [(None, 4), (0, 1)])
def test_a_dask_worker_that_dies_crashes_its_run(tmp_path, allowed, times):
    """Dask starts a lost call again on other workers, four times in all, unless its scheduler is told not to."""
    import dask

    def body():
        future = remote.count_and_die.submit(str(tmp_path / "deaths"))
        with pytest.raises(CrashedRun, match="KilledWorker"):
            future.result()
        return remote.add.submit(1).result()

    told = {} if allowed is None else {"distributed.scheduler.allowed-failures": allowed}
    with dask.config.set(told), contextlib.contextmanager(dask_cluster)() as client:
        assert in_flow(body, ExecutorTaskRunner(client.get_executor, 2)) == 2
    assert (tmp_path / "deaths").read_text() == "x" * times


@each(EXECUTORS)
def test_thirty_at_once(runner_kind, request):
    assert in_flow(lambda: remote.add.map(range(30), 1).result(), runner_kind.runner(request)) == list(range(1, 31))
