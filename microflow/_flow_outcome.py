# SPDX-License-Identifier: Apache-2.0
"""What the caller of a flow gets: a value, an exception, or the final state.

The recorded state decides. The value or exception of *this* attempt is handed over, the very object, only while the
state is the one that came of it; what others made of the run meanwhile (cancelled it, gave it another end) wins.
"""

from __future__ import annotations

from typing import Any

from .states import State, Value, get_state_exception, is_states


class FlowOutcome:
    """The outcome of one flow call, as the engine collects it."""

    state: Any

    def __init__(self) -> None:
        #: what the body of the present attempt returned or raised
        self._value: Value[Any] | None = None
        self._raised: BaseException | None = None
        #: the end of an earlier execution that is handed back instead of a call
        self._ended: State[Any] | None = None

    def _hand_back(self, ended: State[Any]) -> None:
        """Give what the subflow came to in an earlier execution, without running it."""
        self._ended = ended
        if ended.is_completed():
            self._value = ended.data if isinstance(ended.data, Value) else Value(ended.data)
        elif isinstance(ended.data, Value) and is_states(ended.data.load()):
            self._value = ended.data  # states that it returned, of which one had failed: as its caller got them then
        else:
            self._raised = get_state_exception(ended)

    def final_state(self) -> State[Any]:
        """The state that the call came to."""
        return self._ended if self._ended is not None else self.state

    def result(self) -> Any:
        """What the caller of the flow gets: the value, or the raised exception."""
        state = self.final_state()
        if self._raised is not None and not state.is_completed():
            raise self._raised
        if self._value is None or not (state.is_completed() or self._value_is_states()):
            return state.read_result()
        value = self._value.load()
        value = value.load() if isinstance(value, Value) else value
        if isinstance(value, State):
            if not value.state_details.task_run_id and (value is state or not value.state_details.flow_run_id):
                return value.read_result()
            if not value.is_completed():
                raise get_state_exception(value)
        return value

    def _value_is_states(self) -> bool:
        """A returned collection of states is given to the caller even when the flow FAILED for them."""
        return self._value is not None and is_states(self._value.load())
