# SPDX-License-Identifier: Apache-2.0
"""The transition table of flow runs as a state diagram, for the README: ``python -m tests.diagram`` prints it.

Drawn is every cell that leads somewhere. A final state that every unfinished one may enter is drawn once, from the
box around them: some fifty arrows become as many as can be read. Not drawn are the rows that depend on the clock
(``-LATER``, ``-EXPIRED``), which are variants of the row that they are named after.
"""

from __future__ import annotations

from microflow.transitions import FLOW_TRANSITIONS

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
#: the states in the box; CANCELLING is unfinished too, but leads to one place only
UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "SUSPENDED")
COLUMNS = tuple(dict.fromkeys(column for _, column in FLOW_TRANSITIONS))
ACCEPTED = ("A", "F", "O")


def arrows() -> dict[tuple[str, str], str]:
    """From where to where, with what is written at the arrow."""
    drawn: dict[tuple[str, str], str] = {}
    for (row, column), cell in FLOW_TRANSITIONS.items():
        if "-" in row:
            continue
        if cell in ACCEPTED:
            drawn.setdefault((row, column), "its owner goes on" if cell == "O" else "")
        if cell == "F":
            drawn[row, "SCHEDULED"] = "failed, a retry is left"
        if cell.startswith("R:"):
            drawn[row, cell[2:]] = f"{column} was asked for"
    return drawn


def mermaid() -> str:
    """The diagram in the language of Mermaid."""
    drawn = arrows()
    common = [column for column in FINAL if all((row, column) in drawn for row in UNFINISHED)]
    plain = {(row, column) for row in UNFINISHED for column in common if not drawn[row, column]}

    def text(source: str, target: str) -> str:
        label = drawn[source, target]
        return f"{source} --> {target}" + (f": {label}" if label else "")

    def leading(to: tuple[str, ...]) -> list[str]:
        every = [(row, column) for row in UNFINISHED for column in to if (row, column) in drawn]
        return [text(*arrow) for arrow in every if arrow not in plain]

    first = [column for column in COLUMNS if ("NONE", column) in drawn and column not in FINAL]
    lines = ["stateDiagram-v2", "    state unfinished {"]
    lines += [f"        {line}" for line in leading(UNFINISHED)]
    lines += ["    }"]
    lines += [f"    [*] --> {column}" for column in first]
    lines += [f"    {line}" for line in leading(("CANCELLING", *FINAL))]
    lines += [f"    {text('CANCELLING', column)}" for column in COLUMNS if ("CANCELLING", column) in drawn]
    lines += [f"    unfinished --> {column}" for column in common]
    lines += [f"    {column} --> [*]" for column in FINAL]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(mermaid(), end="")
