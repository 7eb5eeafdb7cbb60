# SPDX-License-Identifier: Apache-2.0
"""Assets of runs: what flows from run to run, and the events that a materialization leaves in the log."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from microflow.assets import Asset, AssetContext, MaterializingTask, add_asset_metadata
from microflow.assets import materialize as made_by_assets
from microflow.client.orchestration import current_client, get_client
from microflow.exceptions import ObjectNotFound
from microflow.flow_runs import rerun
from microflow.flows import Flow
from microflow.states import AwaitingRetry, Cancelled, Completed, Crashed, Failed, Retrying
from tests.behaviour_support import pins
from tests.support import Colour, both, count_appends, death_after, flow_run_ids, memory_home, run

if TYPE_CHECKING:
    from microflow.client.asset_events import AssetEvent

RAW, TABLE, REPORT = "s3://raw/data", "postgres://db/table", "https://reports/daily"
SUCCEEDED, FAILED, REFERENCED = "asset.materialization.succeeded", "asset.materialization.failed", "asset.referenced"


def materialize(colour: Colour, *keys: str, **options: Any) -> Any:
    """Like ``@materialize``."""
    return lambda body: made_by_assets(*keys, **options)(colour.function(body))


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_home(monkeypatch)


def events(**where: Any) -> list[tuple[Any, ...]]:
    """The asset events of the only flow run, or of `where`: what happened to what, and what it was made from."""
    if not where:
        (run_id,) = flow_run_ids()
        where = {"flow_run_id": run_id}
    found = current_client().read_asset_events(**where)
    return [(each.event, each.asset_key, *([each.related] if each.related else [])) for each in found]


# ------------------------------------------------------------------------------------- events


def test_options_of_the_asset_tasks_are_kept_and_replaced():
    @made_by_assets(RAW, by="dbt", retries=2, asset_deps=[TABLE])
    def made():
        return 1

    same, other = made.with_options(name="same"), made.with_options(assets=[Asset(REPORT)], materialized_by=None)
    assert isinstance(same, MaterializingTask)
    assert (same.assets, same.materialized_by, same.name, same.retries) == ([Asset(RAW)], "dbt", "same", 2)
    assert (other.assets, other.materialized_by, other.asset_deps) == ([Asset(REPORT)], None, [Asset(TABLE)])
    assert other.with_options(retries=0).assets == [Asset(REPORT)]
    assert made.assets == [Asset(RAW)]
    with pytest.raises(TypeError, match="at least one asset"):
        made_by_assets()


@both
def test_a_materialization_is_recorded_with_what_flowed_into_it(colour):
    @materialize(colour, RAW)
    def extract():
        return 1

    @materialize(colour, TABLE, asset_deps=["file://config"], by="dbt")
    def load(rows):
        add_asset_metadata(TABLE, {"rows": rows})
        Asset(TABLE).add_metadata({"day": 1, "rows": 2})
        return rows

    @colour.flow
    def pipeline():
        yield load(extract.submit())

    colour.run(pipeline)
    assert events() == [
        (SUCCEEDED, RAW),
        (REFERENCED, RAW),
        (REFERENCED, "file://config"),
        (SUCCEEDED, TABLE, [RAW, "file://config"]),
    ]
    (made,) = current_client().read_asset_events(flow_run_id=flow_run_ids()[0], asset_key=TABLE)
    assert (made.metadata, made.materialized_by) == ({"rows": 2, "day": 1}, "dbt")
    first = current_client().read_asset_events(flow_run_id=flow_run_ids()[0])[0]
    assert (first.metadata, first.materialized_by, first.related, str(first.flow_run_id)) == (
        {},
        None,
        [],
        flow_run_ids()[0],
    )


@pins("task_engine", 158)
@both
def test_an_asset_that_flows_in_twice_is_one_event(colour):
    @materialize(colour, RAW)
    def extract():
        return 1

    @materialize(colour, TABLE, TABLE, asset_deps=[RAW, RAW])
    def load(one, two):
        return one

    @colour.flow
    def pipeline():
        future = extract.submit()
        yield load(future, [future])

    colour.run(pipeline)
    assert events() == [(SUCCEEDED, RAW), (REFERENCED, RAW), (SUCCEEDED, TABLE, [RAW])]


@pins("task_engine", 159)
@both
def test_assets_flow_through_plain_tasks_which_record_nothing_themselves(colour):
    @colour.task(asset_deps=[RAW])
    def read():
        return 1

    @colour.task
    def clean(rows):
        return rows

    @materialize(colour, TABLE)
    def load(rows):
        return rows

    @colour.flow
    def reads_only():
        yield read.submit()

    @colour.flow
    def pipeline():
        yield load(clean.submit(read.submit()))

    colour.run(reads_only)
    assert events() == []
    colour.run(pipeline)
    assert events(flow_run_id=flow_run_ids("pipeline")[0]) == [(REFERENCED, RAW), (SUCCEEDED, TABLE, [RAW])]


@pins("task_engine", 160)
@both
def test_a_failed_materialization_is_recorded_as_failed_with_its_metadata_so_far(colour):
    @materialize(colour, TABLE, retries=1)
    def load():
        add_asset_metadata(TABLE, {"rows": 3})
        raise RuntimeError("no")

    @colour.flow
    def pipeline():
        yield load(return_state=True)
        return 1

    colour.run(pipeline)
    (event,) = current_client().read_asset_events(flow_run_id=flow_run_ids()[0])
    assert (event.event, event.asset_key, event.metadata) == (FAILED, TABLE, {"rows": 3})


@pins("task_engine", 160)
def test_only_what_ran_to_its_end_has_made_something():
    made = AssetContext(downstream_assets=[Asset(TABLE)])
    for state in (Completed(name="Cached"), Cancelled(), Crashed(), Retrying(), AwaitingRetry()):
        assert made.events(state) == []
    for state, event in ((Completed(), SUCCEEDED), (Failed(), FAILED), (Failed(name="TimedOut"), FAILED)):
        assert made.events(state) == [{"event": event, "asset": TABLE}]
    assert AssetContext([Asset(RAW)], (), [Asset(TABLE)]).events(Completed()) == []


@pins("task_engine", 160)
@both
def test_a_cached_materialization_records_nothing(colour):
    @materialize(colour, TABLE, cache_key_fn=lambda *_: "key")
    def load():
        return 1

    @colour.flow
    def pipeline():
        first = yield load(return_state=True)
        second = yield load(return_state=True)
        return [first.name, second.name]

    assert colour.run(pipeline) == ["Completed", "Cached"]
    assert events() == [(SUCCEEDED, TABLE)]


@pins("task_engine", 161)
@both
def test_nested_materializations_are_unrelated(colour):
    @materialize(colour, RAW)
    def inner():
        return 1

    @materialize(colour, TABLE)
    def outer():
        value = yield inner()
        return value

    @colour.flow
    def pipeline():
        yield outer()

    colour.run(pipeline)
    assert events() == [(SUCCEEDED, RAW), (SUCCEEDED, TABLE)]


@pins("task_engine", 161)
@both
def test_siblings_of_a_fan_out_do_not_reference_each_other(colour):
    @materialize(colour, RAW)
    def extract():
        return 1

    @materialize(colour, TABLE)
    def one(rows):
        return rows

    @materialize(colour, REPORT)
    def other(rows):
        return rows

    @colour.flow
    def pipeline():
        future = extract.submit()
        yield one(future)
        yield other(future)

    colour.run(pipeline)
    assert [event for event in events() if event[0] == SUCCEEDED] == [
        (SUCCEEDED, RAW),
        (SUCCEEDED, TABLE, [RAW]),
        (SUCCEEDED, REPORT, [RAW]),
    ]


@both
def test_events_outside_of_flows_are_read_as_well(colour):
    @materialize(colour, TABLE)
    def load():
        return 1

    state = colour.run(lambda: load(return_state=True))
    run_id = state.state_details.task_run_id
    assert events(task_run_id=run_id) == [(SUCCEEDED, TABLE)]
    assert events(asset_key=TABLE) == [(SUCCEEDED, TABLE)]
    assert events(asset_key=RAW) == []


@both
def test_metadata_of_any_kind_and_size_never_fails_a_task(colour):
    deep: list[Any] = []
    for _ in range(95):
        deep = [deep]

    @materialize(colour, RAW, TABLE, REPORT)
    def load():
        add_asset_metadata(RAW, {"object": object(), 3: {1, 2}})
        add_asset_metadata(TABLE, {"long": "x" * 100_000})
        add_asset_metadata(REPORT, {"deep": deep})

    @colour.flow
    def pipeline():
        yield load()

    colour.run(pipeline)
    found = {
        each.asset_key: each.metadata for each in current_client().read_asset_events(flow_run_id=flow_run_ids()[0])
    }
    assert found[RAW]["3"] == [1, 2]
    assert "characters of JSON" in found[TABLE]["not_kept"]
    assert "cannot be written" in found[REPORT]["not_kept"]


@both
def test_any_number_of_assets_fits_into_lines_of_the_log(colour):
    deps = [f"file://{number}/{'x' * 490}" for number in range(1200)]

    @materialize(colour, "s3://a", "s3://b", "s3://c", asset_deps=deps)
    def load():
        return 1

    @colour.flow
    def pipeline():
        yield load()

    colour.run(pipeline)
    kinds = Counter(event[0] for event in events())
    assert kinds == {REFERENCED: 1000, SUCCEEDED: 3}
    (event,) = current_client().read_asset_events(asset_key="s3://c")
    assert event.related == deps[:1000]


# ------------------------------------------------------------------------------------- reading


@both
def test_events_are_listed_by_run_and_asset(colour):
    @materialize(colour, RAW)
    def extract():
        return 1

    @materialize(colour, TABLE)
    def load(rows):
        return rows

    @colour.flow
    def pipeline():
        yield load(extract.submit())

    colour.run(pipeline)
    colour.run(pipeline)
    client = current_client()
    first, second = flow_run_ids()
    assert len(client.read_asset_events()) == 6
    assert len(client.read_asset_events(flow_run_id=first)) == 3
    of_runs = {each.task_run_id for each in client.read_asset_events(flow_run_id=second)}
    assert len(of_runs) == 2
    for run_id in of_runs:
        found = client.read_asset_events(task_run_id=run_id)
        assert {each.task_run_id for each in found} == {run_id}
        assert found == client.read_asset_events(task_run_id=run_id, flow_run_id=second)
    assert [each.event for each in client.read_asset_events(asset_key=RAW)] == [SUCCEEDED, REFERENCED] * 2
    with pytest.raises(ObjectNotFound):
        client.read_asset_events(flow_run_id=uuid4())
    moments = [each.occurred for each in client.read_asset_events(flow_run_id=first)]
    assert moments == sorted(moments)


def test_the_async_client_reads_the_same_events():
    async def read() -> list[AssetEvent]:
        async with get_client() as client:
            found: list[AssetEvent] = await client.read_asset_events()
            return found

    @materialize(Colour(False), RAW)
    def extract():
        return 1

    extract()
    assert run(read()) == current_client().read_asset_events() != []


@both
def test_assets_flow_on_from_a_run_that_is_handed_back(colour):
    """And its events are not recorded a second time."""

    @materialize(colour, RAW)
    def extract():
        return 1

    @materialize(colour, TABLE)
    def load(rows):
        return rows

    @colour.flow
    def pipeline():
        yield load(extract.submit())

    appends = count_appends(lambda: colour.run(pipeline))
    complete = [(SUCCEEDED, RAW), (REFERENCED, RAW), (SUCCEEDED, TABLE, [RAW])]
    assert events(flow_run_id=flow_run_ids()[0]) == complete
    with death_after(appends - 3) as death, suppress(Exception):  # before load ends
        colour.run(pipeline)
    assert death.came
    killed = flow_run_ids()[1]
    assert events(flow_run_id=killed) == [(SUCCEEDED, RAW)]
    run(rerun(pipeline, killed))
    assert events(flow_run_id=killed) == complete


@both
def test_a_generator_task_makes_assets_when_it_has_ended(colour):
    def numbers():
        yield 1
        assert events() == []
        yield 2

    async def anumbers():
        yield 1
        assert events() == []
        yield 2

    making = MaterializingTask(anumbers if colour.isasync else numbers, assets=[TABLE])

    def main() -> int:
        return sum(making())

    async def amain() -> int:
        return sum([number async for number in making()])

    assert run(Flow(amain if colour.isasync else main)()) == 3
    assert events() == [(SUCCEEDED, TABLE)]
