# SPDX-License-Identifier: Apache-2.0
"""JSON that people write: what is taken, and what is refused because readers differ in it."""

from __future__ import annotations

import pytest

from microflow._strict_json import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), (' {"a" :\n[1, "\u00e4", 1.5e3, null]}\t', {"a": [1, "\u00e4", 1500.0, None]}),
        ('"\\u00e4"', "\u00e4"),
        ("9" * 4300, 10**4300 - 1), ("-" + "9" * 1000, -(10**1000 - 1)), ("[" * 100 + "]" * 100, None),
    ],
    ids=["int", "spread", "escape", "long", "negative", "deep"],
)  # fmt: skip
def test_what_everybody_understands_is_taken(text, value):
    taken = parse(text)
    assert taken == value if value is not None else str(taken) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "one", "1 2", "[1", "NaN", "Infinity", "1e999", "-1e999", '{"a": 1, "a": 1}', "9" * 4301, "9" * 5_000_000,
        "[" * 101 + "]" * 101, "[" * 1_000_000, "{\'a\': 1}", "01", "\ufeff1",
    ],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_what_readers_understand_in_different_ways_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse(text)
