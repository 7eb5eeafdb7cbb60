# SPDX-License-Identifier: Apache-2.0
"""Tasks on 8 threads with durability ``disk``, beside the same with a sync of its own for each record.

One sync serves all threads that wait for one, so the slower the disk, the better the ratio. ``TMPDIR`` says which disk:
in memory (``tmpfs``) there is nothing to wait for, and nothing to be seen.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from microflow import flow
from microflow.stores import FileStore
from microflow.task_runners import ThreadPoolTaskRunner

from . import compare, home_on_disk
from .task_call import increment

if TYPE_CHECKING:
    from collections.abc import Iterator


@flow(task_runner=ThreadPoolTaskRunner(max_workers=8))
def submit_all(count: int) -> float:
    """Microseconds that one of `count` submitted tasks takes, all at once on 8 threads."""
    start = time.perf_counter()
    futures = [increment.submit(x) for x in range(count)]
    for future in futures:
        future.result()
    return (time.perf_counter() - start) / count * 1e6


@contextmanager
def sync_for_each_record() -> Iterator[None]:
    """Have each append wait for the disk before the next one begins."""
    append = FileStore.append

    def append_and_sync(self: FileStore, run_id: str, *args: Any, **kwargs: Any) -> int:
        position = append(self, run_id, *args, **kwargs)
        self.sync(run_id, position)
        return position

    FileStore.append = append_and_sync  # type: ignore[method-assign]  # put back below
    try:
        yield
    finally:
        FileStore.append = append  # type: ignore[method-assign]


def submit_with_a_sync_each(count: int) -> float:
    """The same, with a sync for each record."""
    with sync_for_each_record():
        return submit_all(count)


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds a task."""
    count = 20 if smoke else 2_000
    os.environ["MICROFLOW_DURABILITY"] = "disk"
    try:
        with home_on_disk():
            return compare(
                lambda: submit_all(count),
                lambda: submit_with_a_sync_each(count),
                what="a task submitted to 8 threads, durable on disk",
                beside="the same with one sync per record",
                unit="us",
                smoke=smoke,
            )
    finally:
        del os.environ["MICROFLOW_DURABILITY"]
