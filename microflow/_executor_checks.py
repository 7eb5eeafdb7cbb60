# SPDX-License-Identifier: Apache-2.0
"""What an executor really does, asked row by row.

Each row is one question to the bare executor; it is answered by what was seen, never by what the documentation says.
The questions are those that make executors differ: see ``_executors`` for what microflow does about each. The functions
that are sent stand at the top level here, so that every executor can find them.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ._attempt import run_envelope
from ._envelope import split
from .exceptions import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    Factory = Callable[[], Executor]
    Check = Callable[[Executor, str], str]

#: keyword arguments that one engine or another takes for its own
WORDS = ("key", "workers", "resources", "retries", "priority", "pure", "allow_other_workers", "inputs", "walltime")
#: seconds after which an answer will not come
PATIENCE = 30.0
_NAP = 0.6


# ------------------------------------------------------------------------------------------- what is sent there


class BadInit(Exception):
    """Cannot be rebuilt from its ``args``."""

    def __init__(self, what: str, *, code: int) -> None:
        super().__init__(f"{what} {code}")


class HoldsALock(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raise_value_error() -> None:
    """Raises what every executor can carry."""
    raise ValueError("plain")


def raise_bad_init() -> None:
    """Raises what pickle writes and cannot read."""
    raise BadInit("bad", code=7)


def raise_holding_a_lock() -> None:
    """Raises what pickle cannot write."""
    raise HoldsALock


def token() -> str:
    """Another text for each execution."""
    return os.urandom(8).hex()


def given_names(**kwargs: object) -> list[str]:
    """The names of the keyword arguments that arrived."""
    return sorted(kwargs)


def nap(begun: str, ended: str, seconds: float) -> None:
    """Says in files that it began and that it came to its end."""
    _touch(begun)
    time.sleep(seconds)
    _touch(ended)


def die(begun: str) -> None:
    """Says that it began, and ends its process."""
    with open(begun, "a", encoding="ascii") as file:
        file.write("x")
    os._exit(3)


def _touch(path: str) -> None:
    with open(path, "w", encoding="ascii"):
        pass


# ---------------------------------------------------------------------------------------------------- the rows


def _outcome(executor: Executor, fn: Any, *args: Any, **kwargs: Any) -> str:
    """What a call came to, in a few words."""
    try:
        future = executor.submit(fn, *args, **kwargs)
        error = future.exception(timeout=PATIENCE)
    except BaseException as problem:  # executors fail in every way there is; that is what is asked
        error = problem
    if error is None:
        return "ok"
    return f"{type(error).__module__}.{describe(error)}"[:100].removeprefix("builtins.").splitlines()[0]


def _usable(executor: Executor) -> str:
    return "usable after it" if _outcome(executor, token) == "ok" else "UNUSABLE after it"


def _where(executor: Executor, folder: str) -> str:
    pid = executor.submit(os.getpid).result(PATIENCE)
    return "threads of this process" if pid == os.getpid() else "other processes"


def _sends_lambdas(executor: Executor, folder: str) -> str:
    return _outcome(executor, lambda: 1)


def _normal_error(executor: Executor, folder: str) -> str:
    return _outcome(executor, raise_value_error)


def _bad_error(executor: Executor, folder: str) -> str:
    return f"{_outcome(executor, raise_bad_init)}; {_usable(executor)}"


def _locked_error(executor: Executor, folder: str) -> str:
    return f"{_outcome(executor, raise_holding_a_lock)}; {_usable(executor)}"


def _equal_calls(executor: Executor, folder: str) -> str:
    one, two = executor.submit(token), executor.submit(token)
    return "made ONCE" if one.result(PATIENCE) == two.result(PATIENCE) else "made twice"


def _keywords(executor: Executor, folder: str) -> str:
    swallowed = []
    for word in WORDS:
        try:
            arrived = executor.submit(given_names, **{word: 1}).result(3)
        except BaseException:  # refused, or waits for a worker of that name: it did not arrive either
            arrived = []
        if word not in arrived:
            swallowed.append(word)
    return f"SWALLOWS {', '.join(swallowed)}" if swallowed else "all arrive"


def _seen(path: str, seconds: float = PATIENCE) -> bool:
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _cancels_running(executor: Executor, folder: str) -> str:
    begun, ended = os.path.join(folder, "begun"), os.path.join(folder, "ended")
    future = executor.submit(nap, begun, ended, _NAP)
    if not _seen(begun):
        return "cannot be told: its workers share no disk with this process"
    state = "RUNNING" if future.running() else "not running"
    try:
        answer = str(future.cancel())
    except Exception as problem:  # Parsl's raises NotImplementedError
        answer = describe(problem)
    went_on = _seen(ended, _NAP * 4)
    lies = " (a LIE)" if answer == "True" and went_on else ""
    return f"{answer}{lies}, and it {'goes on' if went_on else 'is stopped'}; shown as {state} before"


def _cancels_queued(executor: Executor, folder: str) -> str:
    futures = [executor.submit(time.sleep, 0.2) for _ in range(8)]
    time.sleep(0.1)
    answers = [_cancelled(future) for future in futures]
    for future in futures:
        try:
            future.exception(PATIENCE)
        except BaseException:  # cancelled: nothing to wait for
            continue
    return f"{sum(answers)} of 8 cancelled"


def _cancelled(future: Any) -> bool:
    try:
        return bool(future.cancel())
    except Exception:  # an executor without cancellation says so by raising
        return False


def _callback_thread(executor: Executor, folder: str) -> str:
    names: list[str] = []
    done = threading.Event()

    def note(_: Any) -> None:
        names.append(threading.current_thread().name)
        done.set()

    executor.submit(time.sleep, 0.2).add_done_callback(note)
    return names[0] if done.wait(PATIENCE) else "never called"


def _shutdown(executor: Executor, folder: str) -> str:
    return ", ".join(inspect.signature(executor.shutdown).parameters)


def _overhead(executor: Executor, folder: str) -> str:
    began = time.perf_counter()
    for _ in range(20):
        executor.submit(int).result(PATIENCE)
    return f"{(time.perf_counter() - began) / 20 * 1000:.2f} ms a call, one by one"


def _envelope(executor: Executor, folder: str) -> str:
    """No envelope at all: the function that crosses answers that, as it answers everything."""
    header, _ = split(executor.submit(run_envelope, b"no envelope").result(PATIENCE))
    return "comes back" if header["kind"] == "error" else f"came back as {header['kind']}"


def _dies(executor: Executor, folder: str) -> str:
    if _where(executor, folder).startswith("threads"):
        return "not asked: it would be this process"
    begun = os.path.join(folder, "deaths")
    told = _outcome(executor, die, begun)
    times = os.path.getsize(begun) if os.path.exists(begun) else "?"
    return f"{told}; executed {times} times; {_usable(executor)}"


ROWS: list[tuple[str, Check]] = [
    ("workers are", _where),
    ("a lambda", _sends_lambdas),
    ("an exception", _normal_error),
    ("two equal calls", _equal_calls),
    ("keyword arguments", _keywords),
    ("a call under way is cancelled", _cancels_running),
    ("queued calls are cancelled", _cancels_queued),
    ("callbacks run in thread", _callback_thread),
    ("shutdown takes", _shutdown),
    ("overhead", _overhead),
    ("microflow's envelope", _envelope),
]
#: each has an executor of its own, which may be of no use after it
DANGEROUS: list[tuple[str, Check]] = [
    ("an exception with its own __init__", _bad_error),
    ("an exception that holds a lock", _locked_error),
    ("a worker dies", _dies),
]


@contextmanager
def _made(factory: Factory) -> Iterator[Executor]:
    executor = factory()
    try:
        yield executor
    finally:
        executor.shutdown()


def check(factory: Factory) -> dict[str, str]:
    """The answer to each row. `factory` is called several times; what it makes is shut down."""
    answers = {}
    with TemporaryDirectory() as folder:
        with _made(factory) as executor:
            for name, ask in ROWS:
                answers[name] = _asked(ask, executor, folder)
        for name, ask in DANGEROUS:
            with _made(factory) as executor:
                answers[name] = _asked(ask, executor, folder)
    return answers


def _asked(ask: Check, executor: Executor, folder: str) -> str:
    try:
        return ask(executor, folder)
    except BaseException as problem:  # an executor that cannot even be asked: that is the answer
        if isinstance(problem, KeyboardInterrupt):
            raise
        return f"FAILED: {describe(problem)}"
