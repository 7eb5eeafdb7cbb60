# SPDX-License-Identifier: Apache-2.0
"""The edge cases that no test pins as the lists have them, and why. See ``behaviour_support``."""

from __future__ import annotations

#: area -> number -> how a row of the README's table of differences begins that says what microflow does instead
DIFFERENT: dict[str, dict[int, str]] = {
    "task_engine": {
        24: "`with_options` takes every option of the decorator",
        48: "`wait_for` is read when a task is submitted",
        56: "A container of any class",
        81: "A generator object that a plain task returns",
        88: "A run that ended before it began has an end time",
        95: "`retry_condition_fn` may be any callable",
        108: "A run that its runner cancels before an attempt",
        109: "A final state is never overwritten without force",
    },
    "futures_runners": {
        55: "`wait_for` is read when a task is submitted",
        74: "Waiting parks no worker",
    },
    "flows": {
        58: "A flow retry is a new attempt",
        59: "A flow retry is a new attempt",
        62: "The dynamic key of a run is its id",
        75: "A coroutine flow whose asyncio task is cancelled",
        77: "`sys.exit()` in a submitted task is a CRASHED task",
    },
}

#: area -> number -> what is left for later, in a few words
LATER: dict[str, dict[int, str]] = {
    "task_engine": {110: "limits by tag"},
    "futures_runners": {},
    "flows": {},
}
