# SPDX-License-Identifier: Apache-2.0
"""How a run waits: blocking or on an event loop, with one text for both.

Goal: the life of a run is written once. An append is a fast synchronous call, so a transition never
waits; only three things do: calling user code, sleeping, waiting for something.

What does not work: two hand-kept engines drift apart; a generated twin leaves vendored copies without
its generator; handing the coroutine to a loop of our own runs user code on another thread and costs
100 µs a call.

The rule: a lifecycle is an ``async def`` over an object with the coroutines ``call``, ``sleep`` and
``wait``. :class:`BlockingWaits` never suspends, so :func:`finish` can step the coroutine once and has
its result; no event loop is needed and asyncio is not imported. :class:`AsyncioWaits` suspends like
any coroutine, and the asyncio engine simply awaits the same lifecycle.

Known hole: that blocking code never suspends holds at run time, not by types; ``finish`` says so when
it is broken.

Three more things live here because they are about waiting and belong below everything: the *slot* that
a worker thread gives back while it blocks, the colour of the current run (async or not), by which
functions that exist in both forms choose one, and the clock.
"""

from __future__ import annotations

import sys
import threading
import time
from contextvars import ContextVar, copy_context
from datetime import datetime, timedelta, timezone
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from ._typing_only import Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to its end a coroutine that never suspends, and return its value (about 1 µs)."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waited for an event loop inside a blocking run")


class Scope(Generic[T]):
    """A public step that surrounds others: ``with`` in a blocking run, ``async with`` on a loop.

    Made by :func:`scope` from an async generator that yields once. User code's StopIteration survives it."""

    __slots__ = ("_body",)

    def __init__(self, body: AsyncGenerator[T, None]) -> None:
        self._body = body

    def __aenter__(self) -> Coroutine[Any, Any, T]:
        return first_step(self._body)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            try:
                await self._body.__anext__()
            except StopAsyncIteration:
                return False
            raise RuntimeError(f"{self._body!r} yielded twice")
        try:
            await self._body.athrow(error)
        except StopAsyncIteration as end:
            return end is not error
        except BaseException as other:
            # an exception that only passes through is raised by the with statement itself, with its own traceback;
            # Python wraps a StopIteration that leaves a generator (PEP 479)
            if other is error or (isinstance(other, RuntimeError) and other.__cause__ is error):
                return False
            raise
        raise RuntimeError(f"{self._body!r} yielded twice")

    def __enter__(self) -> T:
        return finish(self.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return finish(self.__aexit__(kind, error, trace))


def first_step(body: AsyncGenerator[T, Any]) -> Coroutine[Any, Any, T]:
    """The first step of an async generator of ours, which no event loop is to know of: a loop that ends closes every
    one that it knows, in any order, and ours are ended by what entered them."""
    hooks = sys.get_asyncgen_hooks()
    if hooks.firstiter is None:
        return body.__anext__()
    sys.set_asyncgen_hooks(None, None)
    try:
        return body.__anext__()
    finally:
        sys.set_asyncgen_hooks(*hooks)


def scope(body: Callable[P, AsyncGenerator[T, None]]) -> Callable[P, Scope[T]]:
    """Make a context manager for both colours of an async generator function that yields once."""

    @wraps(body)
    def made(*args: P.args, **kwargs: P.kwargs) -> Scope[T]:
        return Scope(body(*args, **kwargs))

    return made


class _Plain(Generic[T]):
    """A user's plain context manager where a scope is expected."""

    __slots__ = ("_manager",)

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return self._manager.__enter__()

    async def __aexit__(self, *exc_info: object) -> Any:
        return self._manager.__exit__(*exc_info)


def entered(manager: Any) -> Any:
    """What shared code enters with ``async with``: a public scope, or what a user's override gave in its place."""
    return manager if hasattr(manager, "__aenter__") else _Plain(manager)


class Outcome(Generic[T]):
    """What a call of user code came to: ``value``, or ``error`` when it raised an Exception.

    Failure travels as a value so that a user's StopIteration survives the coroutine around the call
    (PEP 479). Interrupts (KeyboardInterrupt, CancelledError, SystemExit, Pause) stay exceptions.
    """

    __slots__ = ("error", "value")

    def __init__(self, value: T | None = None, error: Exception | None = None) -> None:
        self.value = value
        self.error = error

    def unwrap(self) -> T:
        """The value; raises the error, the very object, if there was one."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None is a value of T when no error was set


class Waitable(Protocol):
    """What can be waited for in both ways: futures of runs."""

    def wait(self, timeout: float | None = None) -> object:
        """Block until it is complete or `timeout` seconds have passed."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> object:
        """Call `fn` once when it is complete, in any thread."""


class Waits(Protocol):
    """The three things that wait, as coroutines; an engine awaits nothing else."""

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Outcome[Any]:
        """Call user code."""

    async def sleep(self, seconds: float, cancelled: StopSignal | None = None) -> None:
        """Let `seconds` pass, or less when it is `cancelled`."""

    async def wait(self, thing: Waitable) -> None:
        """Wait until `thing` is complete."""

    async def block(self, fn: Callable[..., T], *args: Any) -> T:
        """Call a function of ours that blocks on the disk."""


class BlockingWaits:
    """Waits that block the calling thread. Their coroutines never suspend."""

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Outcome[Any]:
        """Call `fn` in this thread; a coroutine that it returns is run to its end."""
        try:
            value = fn(*args, **kwargs)
            if hasattr(value, "cr_await"):
                value = run_coroutine(value)
        except Exception as error:  # user code: whatever it raises is its outcome
            return Outcome(error=error)
        return Outcome(value)

    async def sleep(self, seconds: float, cancelled: StopSignal | None = None) -> None:
        """Block this thread for `seconds`; its slot goes to another run meanwhile."""
        if seconds > 0:
            with slot_given_back():
                if cancelled is None:
                    time.sleep(seconds)
                elif cancelled.wait(seconds) and isinstance(cancelled, StopSignal):
                    cancelled.woke()

    async def wait(self, thing: Waitable) -> None:
        """Block this thread until `thing` is complete."""
        thing.wait()

    async def block(self, fn: Callable[..., T], *args: Any) -> T:
        """Call `fn` in this thread."""
        return fn(*args)


class AsyncioWaits:
    """Waits for coroutines on an asyncio loop."""

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Outcome[Any]:
        """Call `fn` on the loop and await what it returns if that can be awaited."""
        try:
            value = fn(*args, **kwargs)
            if hasattr(value, "__await__"):
                value = await value
        except Exception as error:  # user code: whatever it raises is its outcome
            return Outcome(error=error)
        return Outcome(value)

    async def sleep(self, seconds: float, cancelled: StopSignal | None = None) -> None:
        """Sleep on the loop for `seconds`."""
        import asyncio  # loaded only by runs that already use it

        if seconds <= 0:
            return
        if not isinstance(cancelled, StopSignal):
            await asyncio.sleep(seconds)
            return
        awake = asyncio.Event()
        wake = on_loop(awake.set)
        cancelled.add_done_callback(wake)
        try:
            await asyncio.wait_for(awake.wait(), seconds)
        except asyncio.TimeoutError:
            return
        except asyncio.CancelledError:
            if not cancelled.is_set():  # else who told us to stop says it in two ways
                raise
        finally:
            cancelled.forget(wake)
        cancelled.woke()

    async def wait(self, thing: Waitable) -> None:
        """Wait on the loop until `thing` is complete; the callback arrives from any thread."""
        await completion_of(thing)

    async def block(self, fn: Callable[..., T], *args: Any) -> T:
        """Call `fn` in a thread of the loop's pool, so that it does not stall the loop. A cancellation is
        passed on when `fn` has returned: nothing of ours goes on behind the caller's back (I10)."""
        import asyncio  # loaded only by runs that already use it

        # to_thread takes this run's context along: its slot is given back there
        call = asyncio.ensure_future(asyncio.to_thread(fn, *args))
        cancelled: asyncio.CancelledError | None = None
        while not call.done():
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError as signal:
                cancelled = signal
        value = call.result()
        if cancelled is not None:
            raise cancelled
        return value


def on_loop(fn: Callable[[], object]) -> Callable[[object], None]:
    """A callback for any thread that calls `fn` on the loop which runs here, as long as there is one."""
    import asyncio  # only coroutines on a loop come here

    loop = asyncio.get_running_loop()

    def call(_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(fn)

    return call


async def completion_of(thing: Waitable) -> None:
    """Wait on the running loop until `thing` calls back, giving this run's slot back meanwhile."""
    import asyncio  # only coroutines on a loop come here

    done = asyncio.get_running_loop().create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    getattr(thing, "_when_done", thing.add_done_callback)(on_loop(settle))
    slot = SLOT.get()
    if slot is not None:
        slot.give_back(blocking=False)
    try:
        await done
    finally:
        if slot is not None:  # on a loop nothing may block: the slot is taken again even when none is free
            slot.take_again(at_once=True)
    if getattr(thing, "_is_unsynced", False):
        await AsyncioWaits().block(thing.wait)  # for the disk, which would stall the loop


async def settle(step: Any) -> Any:
    """The value of a public step: a blocking engine's step already gave it, an async one's is awaited.

    Only a coroutine is a step to be awaited: a future that a blocking function returned is a value."""
    return await step if hasattr(step, "cr_await") else step


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from blocking code: here, or on a loop in a helper thread
    when a loop already runs in this thread (it would refuse a second one)."""
    import asyncio  # blocking code comes here only when it was handed a coroutine

    if not loop_is_running():
        return asyncio.run(coroutine)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(coroutine))
        except BaseException as error:  # carried to the caller's thread, whatever it is
            failure.append(error)

    helper = threading.Thread(target=copy_context().run, args=(run,), name="microflow coroutine")
    helper.start()
    with slot_given_back():
        helper.join()
    if failure:
        raise failure[0]
    return outcome[0]


#: whether there never is another thread: WebAssembly without pthreads, which is where Pyodide runs
IS_ALONE: bool = sys.platform in ("emscripten", "wasi") and not getattr(
    getattr(sys, "_emscripten_info", None), "pthreads", False
)


def check_not_alone() -> None:
    """Called before this thread blocks until somebody does something. RuntimeError when nobody else can be there: it
    would block for ever, and a browser's page with it."""
    if IS_ALONE:
        raise RuntimeError(
            "this wait would never end: no other thread can be started here, so nothing can happen while this one "
            "blocks; make it a coroutine and await instead"
        )


# ------------------------------------------------------------------------------------------------- slots


class StopSignal(threading.Event):
    """Set when a runner is left: what has not begun is not to begin, what sleeps wakes. A :class:`Waitable`."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: dict[Callable[[Any], object], None] = {}  # its operations are atomic
        #: whether it was set, also where ``is_set`` means something else
        self.told = False

    def set(self) -> None:
        """Tell everybody."""
        self.told = True
        super().set()
        while self._callbacks:
            self._callbacks.popitem()[0](self)

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call `fn` when it is set, in the thread that sets it; here when it is set already."""
        self._callbacks[fn] = None
        if self.told:
            self.set()

    def forget(self, fn: Callable[[Any], object]) -> None:
        """Call `fn` no more."""
        self._callbacks.pop(fn, None)

    def woke(self) -> None:
        """Called by who slept, when his sleep was cut short."""


class Slot(Protocol):
    """The right of a submitted run to be one of the ``max_workers`` that are active."""

    def give_back(self, *, blocking: bool = True) -> None:
        """Let another run have the slot; counted, so that nested waits give back once. `blocking` says that
        the calling thread is about to block, which matters when it is an event loop's."""

    def take_again(self, *, at_once: bool = False) -> None:
        """Have a slot again; blocks until one is free unless `at_once`."""


SLOT: ContextVar[Slot | None] = ContextVar("microflow_slot", default=None)


class slot_given_back:
    """Gives the slot of the current run back while the block waits. Used around every wait of ours,
    so that a run which waits for its children never keeps them from starting."""

    __slots__ = ("_slot",)

    def __enter__(self) -> None:
        self._slot = SLOT.get()
        if self._slot is not None:
            self._slot.give_back()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._slot is not None:
            # a loop that has blocked long enough is not to block for the slot as well
            self._slot.take_again(at_once=loop_is_running())


# ------------------------------------------------------------------------------------------------ colour

RUN_IS_ASYNC: ContextVar[bool | None] = ContextVar("microflow_run_is_async", default=None)


def loop_is_running() -> bool:
    """Whether an asyncio loop runs in this thread; never imports asyncio to find out."""
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None


def current_asyncio_task() -> Any:
    """The asyncio task that runs in this thread now."""
    import asyncio  # only coroutines on a loop come here

    return asyncio.current_task()


def call_later(seconds: float, fn: Callable[..., object], *args: Any) -> Any:
    """Call `fn` on the running loop in so many seconds; gives what has a ``cancel()``."""
    import asyncio  # only coroutines on a loop come here

    return asyncio.get_running_loop().call_later(seconds, fn, *args)


def choose_async(sync: bool | None = None) -> bool:
    """Whether a function that exists in both forms should act as its async one.

    `sync` decides when given; else the current run's own colour, else whether a loop is running."""
    if sync is not None:
        return not sync
    colour = RUN_IS_ASYNC.get()
    return loop_is_running() if colour is None else colour


def dual(blocking: Callable[[], T], sync: bool | None = None) -> T | Awaitable[T]:
    """Call `blocking` now, or hand out a coroutine that calls it, as :func:`choose_async` says."""

    async def later() -> T:
        return blocking()

    return later() if choose_async(sync) else blocking()


# ------------------------------------------------------------------------------------------------- clock

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def now_us() -> int:
    """The wall clock in microseconds. For people and deadlines; order is the log's sequence number."""
    return time.time_ns() // 1000


def to_datetime(us: int | None) -> datetime | None:
    """The moment of a microsecond count, in UTC."""
    return None if us is None else _EPOCH + timedelta(microseconds=us)


def to_us(moment: datetime | None) -> int | None:
    """The microsecond count of a moment; a naive one is taken as UTC."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - _EPOCH) // timedelta(microseconds=1)
