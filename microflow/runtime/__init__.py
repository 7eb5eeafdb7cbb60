# SPDX-License-Identifier: Apache-2.0
"""What is running now, as attributes: ``from microflow.runtime import flow_run, task_run``.

An attribute is looked up when it is read, in the context of whoever reads it; outside of runs it is empty."""
from __future__ import annotations

from . import flow_run as flow_run
from . import task_run as task_run

__all__ = ["flow_run", "task_run"]
