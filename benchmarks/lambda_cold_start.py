# SPDX-License-Identifier: Apache-2.0
"""From the start of an AWS Lambda process to the answer to its first event, beside the same handler without microflow.

The real runtime client runs both, against the fake Runtime API of the tests. All modules are compiled, as they are in a
package that was made as the README says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.lambda_support import Invocation, RuntimeApi

from . import ROOT, compare

FUNCTIONS = """
def price(item):
    return item * 2

def bill(order: str, items: list[int]) -> int:
    return sum(price(item) for item in items)
"""
PLAIN = f"""
{FUNCTIONS}
def handler(event, context):
    return {{"status": "completed", "result": bill(**event)}}
"""
OURS = f"""
from microflow import flow, task
from microflow.ext.aws_lambda import lambda_handler
{FUNCTIONS}
price, bill = task(retries=2)(price), flow(bill)
handler = lambda_handler(bill, key=lambda event, context: event["order"])
"""


def cold_start(handler: str) -> float:
    """Milliseconds from the start of the process that runs the handler to its first answer."""
    api = RuntimeApi()
    invocation = Invocation({"order": "A-1", "items": [1, 2, 3]}, seconds=30)
    api.events.put(invocation)
    with tempfile.TemporaryDirectory(prefix="microflow-benchmark-") as home:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": os.path.join(os.path.dirname(handler), "compiled"),
            "MICROFLOW_HOME": home,
            "AWS_LAMBDA_RUNTIME_API": api.address,
        }
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", "app.handler"],
            cwd=handler, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            answer = invocation.wait()
            ended = time.perf_counter()
        finally:
            process.kill()
            process.communicate()
            api.close()
    assert answer["result"] == 12, answer
    return (ended - began) * 1e3


def measure(smoke: bool) -> dict[str, Any]:
    """Milliseconds until the first answer of a new process."""
    with tempfile.TemporaryDirectory(prefix="microflow-benchmark-") as folder:
        handlers = {}
        for name, code in (("ours", OURS), ("plain", PLAIN)):
            handlers[name] = os.path.join(folder, name)
            os.mkdir(handlers[name])
            Path(handlers[name], "app.py").write_text(code, encoding="utf-8")
            cold_start(handlers[name])  # compiles
        return compare(
            lambda: cold_start(handlers["ours"]),
            lambda: cold_start(handlers["plain"]),
            what="cold start in AWS Lambda: import and first flow run",
            beside="the handler without microflow",
            unit="ms",
            smoke=smoke,
        )
