# SPDX-License-Identifier: Apache-2.0
"""Dask's distributed scheduler with one worker process of eight threads."""

from __future__ import annotations

import json
import sys
import time

sys.path.pop(0)  # this file has the peer's name


def increment(x):
    return x + 1


def main():
    start = time.perf_counter()
    from distributed import Client, LocalCluster  # here, because its import is timed

    import_time = (time.perf_counter() - start) * 1e3
    with LocalCluster(n_workers=1, threads_per_worker=8, dashboard_address=None) as cluster, Client(cluster) as client:
        client.submit(increment, 0, pure=False).result()
        start = time.perf_counter()
        for x in range(300):
            client.submit(increment, x, pure=False).result()
        submit_wait = (time.perf_counter() - start) / 300 * 1e6
        start = time.perf_counter()
        client.gather(client.map(increment, range(5_000), pure=False))
        map_wait = (time.perf_counter() - start) / 5_000 * 1e6
    print(json.dumps({"import_time": import_time, "submit_wait": submit_wait, "map_wait": map_wait}))


if __name__ == "__main__":
    main()
