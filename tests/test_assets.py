# SPDX-License-Identifier: Apache-2.0
"""Assets: keys and properties, and where metadata can be added. See ``test_assets_runs`` for what runs record."""

from __future__ import annotations

import copy
import pickle

import pytest

from microflow.assets import Asset, AssetContext, AssetProperties, add_asset_metadata
from tests.behaviour_support import pins

RAW, TABLE = "s3://raw/data", "postgres://db/table"


@pins("task_engine", 157)
@pytest.mark.parametrize(
    "key",
    [
        "no-scheme",
        "UPPER://x",
        "://x",
        "",
        "s3:/a",
        " s3://a",
        7,
        *(f"s3://a{c}" for c in " \t\n\x00#?&%\"'<>[]{}|\\^`"),
    ],
)
def test_a_key_that_is_no_plain_uri_is_refused(key):
    with pytest.raises(ValueError, match="key of an asset"):
        Asset(key)


@pins("task_engine", 157)
def test_a_key_has_at_most_512_characters():
    assert Asset("s3://a").key == "s3://a"
    assert len(Asset("s3://" + "a" * 507).key) == 512
    with pytest.raises(ValueError, match="512 characters, this one has 513"):
        Asset("s3://" + "a" * 508)


def test_an_asset_is_a_frozen_value_hashed_by_its_key():
    plain, known = Asset(RAW), Asset(RAW, AssetProperties(name="raw", owners=["me"]))
    assert plain == Asset(RAW)
    assert plain != known
    assert plain != RAW
    assert hash(plain) == hash(known)
    assert copy.deepcopy(known) == pickle.loads(pickle.dumps(known)) == known
    for change in (lambda: setattr(known, "key", TABLE), lambda: delattr(known, "key")):
        with pytest.raises(AttributeError, match="frozen"):
            change()
    assert repr(plain) == f"Asset({RAW!r})"
    assert "name='raw'" in repr(known)


def test_a_description_has_at_most_2500_characters():
    assert AssetProperties(description="a" * 2500).description == "a" * 2500
    with pytest.raises(ValueError, match="2500 characters, this one has 2501"):
        AssetProperties(description="a" * 2501)


def test_metadata_is_added_only_where_the_asset_is_made():
    with pytest.raises(RuntimeError, match="not called from a task"):
        add_asset_metadata(RAW, {})
    with AssetContext(downstream_assets=[Asset(TABLE)]) as context:
        with pytest.raises(ValueError, match=f"arguments to @materialize; '{RAW}'"):
            add_asset_metadata(RAW, {})
        add_asset_metadata(Asset(TABLE), {"a": 1})
        assert context.metadata == {TABLE: {"a": 1}}
