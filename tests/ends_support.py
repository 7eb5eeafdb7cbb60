# SPDX-License-Identifier: Apache-2.0
"""Whether a listing, which reads the ends of a log, tells what the fold of all its lines tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from microflow._ends import read_ends
from microflow.client.fold import Run

if TYPE_CHECKING:
    from microflow.client.orchestration import SyncClient


def told(run: Run) -> dict[str, Any]:
    """All that a listing may show of a run. A result as it is kept: two exceptions are never equal."""
    fields = run.flow_run._values()
    state = fields.pop("state")
    if state is not None:
        shown = {name: getattr(state, name) for name in ("type", "name", "message", "at", "id", "state_details")}
        fields["state"] = {**shown, "result": getattr(state.data, "entry", state.data)}
    return {**fields, "owner": run.owner, "epoch": run.epoch}


def listings_tell_the_same(client: SyncClient) -> None:
    """Of every log of this home that is in order and whose ends say enough."""
    for path in Path(client.store.location, "runs").glob("*.jsonl"):
        data = path.read_bytes()
        ends = read_ends(path.stem, data, data)
        if ends is None or client.store.read(path.stem).problem is not None:
            continue
        run = Run(path.stem, client.store)
        if run.fold_ends(ends.records):
            whole = client.fold(path.stem)
            assert told(run) == told(whole)
            assert ends.position == whole.position
