# SPDX-License-Identifier: Apache-2.0
"""AWS Lambda on this machine: the Runtime API, faked, and execution environments, made of mount namespaces.

In an environment the real ``awslambdaric`` runs a handler as Lambda does: the root file system is read-only, only
``/tmp`` can be written, there is no ``/dev/shm``, and HOME names a folder that does not exist.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0

_NAMESPACE = """
set -e
mount --make-rprivate /
mount --bind / "$NEW_ROOT"
mount -o remount,bind,ro "$NEW_ROOT"
mount -t proc proc "$NEW_ROOT/proc"
mount -t tmpfs -o mode=755 tmpfs "$NEW_ROOT/dev"
for device in null zero random urandom; do
  touch "$NEW_ROOT/dev/$device"
  mount --bind "/dev/$device" "$NEW_ROOT/dev/$device"
done
mount --bind "$TASK" "$NEW_ROOT/mnt"
mount -o remount,bind,ro "$NEW_ROOT/mnt"
for place in $CODE; do  # code that stands below /tmp is about to be hidden
  case "$place" in /tmp/*) mkdir -p "$WRITABLE/${place#/tmp/}"; mount --bind "$place" "$WRITABLE/${place#/tmp/}" ;; esac
done
mount --rbind "$WRITABLE" "$NEW_ROOT/tmp"
exec chroot "$NEW_ROOT" "$@"
"""


class Context:
    """What a handler that is called by hand asks how much time remains."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - time.monotonic()) * 1000)


class Invocation:
    """One event on its way: how long it may take, and what came of it."""

    def __init__(self, event: Any, seconds: float) -> None:
        self.id = str(uuid4())
        self.event = event
        self.seconds = seconds
        self.answered = threading.Event()
        self.answer: Any = None
        self.error: Any = None

    def wait(self) -> Any:
        """The handler's answer; AssertionError when it raised, or never answered."""
        assert self.answered.wait(PATIENCE), "the handler never answered"
        assert self.error is None, self.error
        return self.answer


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Environments are killed while they wait for an event, which is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class RuntimeApi:
    """The part of the Runtime API that a runtime uses; each environment has one of its own."""

    def __init__(self) -> None:
        self.events: queue.Queue[Invocation | None] = queue.Queue()
        self.taken: dict[str, Invocation] = {}
        self.ready = threading.Event()
        self.init_error: Any = None
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                api.ready.set()
                invocation = api.events.get()
                if invocation is None:  # the end
                    return
                api.taken[invocation.id] = invocation
                body = json.dumps(invocation.event).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Lambda-Runtime-Aws-Request-Id", invocation.id)
                self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + invocation.seconds) * 1000)))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:xx:000000000000:function:test")
                self.send_header("Lambda-Runtime-Trace-Id", "none")
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()
                *_, run_id, kind = self.path.split("/")
                told = json.loads(body or b"null")
                if run_id == "init":
                    api.init_error = told
                    api.ready.set()
                    return
                invocation = api.taken[run_id]
                if kind == "error":
                    invocation.error = told
                else:
                    invocation.answer = told
                invocation.answered.set()

        self.server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        for _ in range(3):  # whoever waits for an event
            self.events.put(None)
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class Environment:
    """One execution environment: a process that runs the handler, and the Runtime API that feeds it."""

    def __init__(self, task: Path, writable: Path, **settings: str) -> None:
        self.api = RuntimeApi()
        new_root = writable.parent / f"root-{uuid4().hex[:8]}"
        new_root.mkdir()
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"/mnt:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/home/sbx_user1051",
            "AWS_LAMBDA_RUNTIME_API": self.api.address,
            "AWS_LAMBDA_FUNCTION_NAME": "test",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
            "NEW_ROOT": str(new_root),
            "TASK": str(task),
            "WRITABLE": str(writable),
            "CODE": " ".join(map(shlex.quote, {str(ROOT), sys.prefix})),
            **settings,
        }
        command = ["unshare", "-m", "sh", "-c", _NAMESPACE, "sh", sys.executable, "-m", "awslambdaric", "app.handler"]
        self.log = writable.parent / f"{new_root.name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd="/")

    def send(self, event: Any, seconds: float = 20.0) -> Invocation:
        """Deliver an event; the invocation's deadline is `seconds` after the handler takes it."""
        assert self.api.ready.wait(PATIENCE), self.log.read_text()
        assert self.api.init_error is None, self.api.init_error
        invocation = Invocation(event, seconds)
        self.api.events.put(invocation)
        return invocation

    def invoke(self, event: Any, seconds: float = 20.0) -> Any:
        """The handler's answer to an event."""
        try:
            return self.send(event, seconds).wait()
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{self.log.read_text()}") from None

    def kill(self) -> None:
        """What Lambda does to an invocation that takes too long."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.api.close()


def check_that_namespaces_work() -> None:
    """Fail, or skip on a machine of somebody who cannot change it, when no mount namespace can be made."""
    done = subprocess.run(["unshare", "-m", "mount", "--make-rprivate", "/"], capture_output=True, text=True)
    if done.returncode != 0:
        reason = f"this machine makes no mount namespace, so no Lambda environment can be tested: {done.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
