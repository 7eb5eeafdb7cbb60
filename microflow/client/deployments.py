# SPDX-License-Identifier: Apache-2.0
"""Deployments: what another process needs to make runs of a flow without having its code.

A deployment is a small JSON document in the home, whose id follows from the names of flow and deployment, so that
deploying again replaces it, in whatever process, and that no name from outside is part of a path. It says where the
flow is, what it takes, and which parameters its runs have unless they are given others. A run that is made from
it is an ordinary scheduled run: whoever serves the flow runs it.

Parameters of deployments are JSON, with tags for a few more types, and never a pickle: the document may have been
written by another program. What the flow takes is checked by name when a run is made, and by type when it
runs, by its own annotations.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .._documents import LARGEST
from .._strict_json import encode
from .._waits import now_us, to_datetime
from ..entrypoints import entrypoint_of, load_entrypoint
from ..exceptions import (
    AmbiguousRunId,
    InvalidNameError,
    MicroflowException,
    MissingFlowError,
    ObjectNotFound,
    ParameterBindError,
    SerializationError,
    StorageError,
)
from ..serializers import from_json, to_json
from .objects import id_of_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from .._documents import Documents
    from ..flows import Flow

_FORMAT = "microflow deployment 1"
_FORBIDDEN = "/%&><"


class Deployment:
    """A deployment as it was when it was read. Compares by value."""

    __slots__ = ("_fields", "parameters")

    def __init__(self, fields: dict[str, Any], parameters: dict[str, Any]) -> None:
        self._fields = fields
        #: what its runs are given unless they are given something else
        self.parameters = parameters

    id = property(lambda self: UUID(self._fields["id"]), doc="Follows from the names of flow and deployment.")
    name = property(lambda self: str(self._fields["name"]), doc="Its name, unique among those of its flow.")
    flow_name = property(lambda self: str(self._fields["flow"]), doc="The name of its flow.")
    entrypoint = property(lambda self: self._fields["entrypoint"], doc="Where the flow is; None when it is no file.")
    version = property(lambda self: self._fields["version"], doc="The version that was given, else the flow's.")
    description = property(lambda self: self._fields["description"], doc="What was given, else the flow's.")
    tags = property(lambda self: set(self._fields["tags"]), doc="Tags that each of its runs has.")
    retries = property(lambda self: self._fields["retries"], doc="The retry policy of its runs.")
    parameter_schema = property(lambda self: self._fields["schema"], doc="The JSON schema of the parameters.")

    @property
    def created(self) -> datetime | None:
        """When it was created, or last replaced."""
        return to_datetime(self._fields["at"])

    @property
    def full_name(self) -> str:
        """``"flow name/name"``, unique in the home."""
        return f"{self.flow_name}/{self.name}"

    def bound(self, given: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a run, as a call would bind them; defaults are left to the process that runs it.
        ParameterBindError when the flow does not take what is given, or is not given what it needs."""
        takes, keywords = self._fields["takes"], self._fields["keywords"]
        parameters, extra = dict(self.parameters), {}
        for name, value in given.items():
            if name in takes:
                parameters[name] = value
            elif keywords is not None:
                extra[name] = value
            else:
                known = ", ".join(takes) or "none"
                raise ParameterBindError(
                    f"deployment {self.full_name!r}: the flow has no parameter {name!r}; its parameters are: {known}"
                )
        if extra:
            parameters[keywords] = {**parameters.get(keywords, {}), **extra}
        missing = [name for name in self._fields["needs"] if name not in parameters]
        if missing:
            raise ParameterBindError(
                f"deployment {self.full_name!r}: nothing was given for {', '.join(map(repr, missing))}; "
                f"give it to the run, or to the deployment"
            )
        return parameters

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Deployment) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields["id"])

    def __repr__(self) -> str:
        return f"<Deployment {self.full_name!r}>"


def put_deployment(
    documents: Documents,
    flow: Flow[Any, Any] | str,
    name: str,
    parameters: dict[str, Any] | None,
    tags: Iterable[str],
    description: str | None,
    version: str | None,
) -> UUID:
    """Write a deployment, in place of one of the same names; its id. Nothing is written when something is wrong."""
    entrypoint = flow if isinstance(flow, str) else entrypoint_of(flow.fn)
    made = _loaded(flow) if isinstance(flow, str) else flow
    given: object = name
    if not isinstance(given, str) or not name or any(character in name for character in _FORBIDDEN):
        raise InvalidNameError(
            f"the name of a deployment must be a text without any of {_FORBIDDEN}, and not empty; got {name!r}"
        )
    signature, bound = made.parameters, set(made.bound_names)
    variable = {signature.var_positional, signature.var_keyword}
    takes = [each for each in signature.names if each not in bound and each != signature.var_keyword]
    fields: dict[str, Any] = {
        "format": _FORMAT,
        "id": str(id_of_key(made.name, name)),
        "name": name,
        "flow": made.name,
        "entrypoint": _found_from_anywhere(entrypoint),
        "version": version or made.call_version or None,
        "description": description or made.description,
        "tags": sorted(tags),
        "retries": {"retries": made.retries, "retry_delay": made.retry_delay_seconds} if made.retries else {},
        "takes": takes,
        "needs": [each for each in takes if each not in signature.defaults and each not in variable],
        "keywords": signature.var_keyword,
        "schema": made.parameter_schema(),
        "at": now_us(),
        "parameters": {},
    }
    # needed parameters may come with each run; those that are given are checked now
    bound_now = Deployment({**fields, "needs": []}, {}).bound(parameters or {})
    try:
        fields["parameters"] = {key: to_json(value) for key, value in bound_now.items()}
        data = encode(fields).encode("ascii")
        if len(data) > LARGEST:
            raise ValueError(f"they make it {len(data):,} bytes long, more than the {LARGEST:,} that it may have")
    except (SerializationError, ValueError, TypeError) as problem:
        raise SerializationError(
            f"the parameters of deployment {name!r} of flow {made.name!r} must be JSON of some length: {problem}"
        ) from problem
    documents.put(fields["id"], data)
    return UUID(fields["id"])


def _loaded(entrypoint: str) -> Flow[Any, Any]:
    found = load_entrypoint(entrypoint)
    if not hasattr(found, "parameter_schema"):
        raise MissingFlowError(f"{entrypoint!r} is a {type(found).__name__}, not a flow")
    flow: Flow[Any, Any] = found
    return flow


def _found_from_anywhere(entrypoint: str | None) -> str | None:
    """A script by its absolute path: it is read in another working directory."""
    place, colon, name = (entrypoint or "").rpartition(":")
    return f"{os.path.abspath(place)}:{name}" if colon and place.endswith(".py") else entrypoint


def read_deployment(documents: Documents, given: UUID | str) -> Deployment:
    """The deployment of an id, a ``"flow name/name"``, or a name that only one deployment has."""
    text = str(given)
    try:
        key = str(UUID(text))
    except ValueError:
        flow_name, slash, name = text.rpartition("/")
        if not slash:
            return _by_name(documents, text)
        key = str(id_of_key(flow_name, name))
    data = documents.get(key)
    if data is None:
        raise ObjectNotFound(f"there is no deployment {text!r}; {_known(documents)}")
    return _opened(key, data)


def _by_name(documents: Documents, name: str) -> Deployment:
    found = [each for each in list_deployments(documents) if each.name == name]
    if not found:
        raise ObjectNotFound(f"there is no deployment {name!r}; {_known(documents)}")
    if len(found) > 1:
        names = ", ".join(each.full_name for each in found[:5])
        raise AmbiguousRunId(f"{len(found)} deployments are called {name!r}: {names}; say which flow's")
    return found[0]


def _known(documents: Documents) -> str:
    names = [each.full_name for each in list_deployments(documents)[:10]]
    return f"there are: {', '.join(names)}" if names else "none was created in this home yet"


def list_deployments(documents: Documents) -> list[Deployment]:
    """All deployments, by their names. One that cannot be read is left out; asked for by its id, it says why."""
    found = []
    for key in documents.list():
        data = documents.get(key)
        try:
            found += [] if data is None else [_opened(key, data)]
        except MicroflowException:
            continue
    return sorted(found, key=lambda each: each.full_name)


_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "flow": (str,),
    "entrypoint": (str, type(None)),
    "version": (str, type(None)),
    "description": (str, type(None)),
    "tags": (list,),
    "retries": (dict,),
    "takes": (list,),
    "needs": (list,),
    "keywords": (str, type(None)),
    "schema": (dict,),
    "at": (int,),
    "parameters": (dict,),
}


def _opened(key: str, data: bytes) -> Deployment:
    """A document as a deployment: data from outside, so everything is looked at."""
    try:
        fields = json.loads(data)
        if fields["format"] != _FORMAT or fields["id"] != key:
            raise ValueError(f"its format is {fields['format']!r} and its id {fields['id']!r}")
        wrong = [name for name, kinds in _KINDS.items() if not isinstance(fields[name], kinds)]
        texts = [each for name in ("tags", "takes", "needs") for each in fields[name]]
        if wrong or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"wrong in it: {', '.join(wrong) or 'a name that is no text'}")
        parameters = {name: from_json(value) for name, value in fields["parameters"].items()}
    except (ValueError, KeyError, TypeError, RecursionError, SerializationError) as problem:
        raise StorageError(
            f"deployment {key} cannot be read ({type(problem).__name__}: {problem}); create it again"
        ) from problem
    return Deployment(fields, parameters)
