# SPDX-License-Identifier: Apache-2.0
"""From ``path.py:name`` or ``module:name`` to the object, and back.

An entrypoint is what another process needs to find a function again: a script by its absolute path, a
module by its name, and the qualified name of the function in it.

How a script is imported: under its stem, so that classes in it have the same module name each time; under
a name made from its path when that stem is taken. Never as ``__main__``, so that what stands below ``if
__name__ == "__main__"`` does not run. It is registered in ``sys.modules`` before it runs, as any import. The
script's folder and the working directory are put on ``sys.path``, as Python does for the script it is
started with. A script that *is* this process's ``__main__`` is not run a second time: without that guard it
would start its flows again.

Loading runs the user's code in the calling thread, with no lock held. A second thread that wants the same
script meanwhile waits until it is loaded, as it would for an import; a script that loads itself gets itself as
far as it has come.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from ._modules import module_name
from ._tagged_json import import_resolver
from .exceptions import MicroflowException, MissingFlowError, ScriptError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

MAIN = ("__main__", "__mp_main__")  # the second is the script's name in processes that multiprocessing spawned

_Stamp = tuple[int, int]  # when a file was changed, in ns, and its size
_scripts: dict[str, tuple[_Stamp, Any]] = {}  # absolute path -> the stamp at which it was loaded, the module
_path_of_module: dict[str, str] = {}  # the scripts' module names -> absolute path, while they run too


class _Loading:
    """A script that is running now: in which thread, as which module, and what ends the wait for it."""

    __slots__ = ("done", "module", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.module: ModuleType | None = None
        self.done = threading.Event()


_loading: dict[str, _Loading] = {}  # by absolute path


# ----------------------------------------------------------------------------------- from text to the object


def load_entrypoint(target: str) -> Any:
    """The object that an entrypoint names.

    `target` is ``path.py:name``, ``path.py:Class.method``, ``pkg.mod:name`` or ``pkg.mod.name``. A script is
    run once and again only when it was changed. MissingFlowError when there is no such file, module or name;
    ScriptError, with the exception in ``user_exc``, when the code raises while it is imported.
    """
    place, colon, qualname = target.rpartition(":")
    if colon and _is_path(place):
        return _attribute(_load_script(place, target), qualname, target)
    _extend_path(os.getcwd())
    if colon:
        module = _import(place, target)
        if module is None:
            raise MissingFlowError(f"{target!r}: there is no module {place!r}. {_where_modules_are()}")
        return _attribute(module, qualname, target)
    if _is_path(target):
        raise MissingFlowError(f"{target!r} names a file but no object in it: write {target}:name")
    place = target
    while "." in place:
        place = place.rpartition(".")[0]
        module = _import(place, target)
        if module is not None:
            return _attribute(module, target[len(place) + 1 :], target)
    raise MissingFlowError(
        f"{target!r} is no entrypoint: write path.py:name, or module:name for a module. {_where_modules_are()}"
    )


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place or os.path.isfile(place)


def _where_modules_are() -> str:
    return f"Modules are looked for in {os.getcwd()} and on sys.path; a script is given by its path, ending in .py."


def _extend_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _attribute(found: Any, qualname: str, target: str) -> Any:
    if "<" in qualname:
        raise MissingFlowError(f"{target!r} names something inside a function, which cannot be reached from outside")
    holder = getattr(found, "__file__", None) or getattr(found, "__name__", "it")
    for name in qualname.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise MissingFlowError(f"{target!r}: there is no {name!r} in {holder}. {_near(found, name)}") from None
        holder = name
    return found


def _near(holder: Any, name: str) -> str:
    """The public names that may have been meant; what a module only imported comes last."""
    import difflib  # costs 2 ms and is needed only for this error

    public = [each for each in dir(holder) if not each.startswith("_")]
    members, here = getattr(holder, "__dict__", {}), getattr(holder, "__name__", None)
    public.sort(key=lambda each: getattr(members.get(each), "__module__", None) != here)
    near = difflib.get_close_matches(name, public, n=5, cutoff=0.6)
    shown = near or public[:10]
    if not shown:
        return "It has no public names."
    return f"{'Did you mean' if near else 'It has'} {', '.join(shown)}{'?' if near else '.'}"


def _import(name: str, target: str) -> Any:
    """The module, or None when it does not exist."""
    import importlib  # costs 0.7 ms: only for loading

    if not all(name.split(".")):
        raise MissingFlowError(f"{target!r}: {name!r} is no module name. A script is given by its path, ending in .py.")
    main = sys.modules.get("__main__")
    if getattr(getattr(main, "__spec__", None), "name", None) == name:
        return main  # python -m: it is running already
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # of the module itself, or of a package above it; anything else is missing in the user's code
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise ScriptError(error, name) from error
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ScriptError(error, name) from error


def _load_script(place: str, target: str) -> Any:
    path = os.path.abspath(os.path.expanduser(place))
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise MissingFlowError(
            f"{target!r}: {path} cannot be read ({error}). Give the path of a script, relative to the working "
            f"directory or absolute."
        ) from error
    if not os.path.isfile(path):
        raise MissingFlowError(f"{target!r}: {path} is no file. Give the path of a script.")
    main = sys.modules.get("__main__")
    if main is not None and _is_file_of(main, path):
        return main
    stamp = (status.st_mtime_ns, status.st_size)
    while (known := _scripts.get(path)) is None or known[0] != stamp:
        mine = _Loading()
        other = _loading.setdefault(path, mine)
        if other is mine:
            try:
                _scripts[path] = (stamp, _run_script(path, mine, fresh=known is not None))
            finally:
                del _loading[path]
                mine.done.set()
        elif other.thread == mine.thread:
            return other.module
        else:
            other.done.wait()
    return known[1]


def _is_file_of(module: Any, path: str) -> bool:
    file = getattr(module, "__file__", None)
    try:
        return isinstance(file, str) and os.path.samefile(file, path)
    except OSError:
        return False


def _module_name(path: str) -> str:
    """The script's stem, or a name made from its path when the stem means another module."""
    stem = os.path.splitext(os.path.basename(path))[0]
    taken = sys.modules.get(stem)
    if stem in sys.stdlib_module_names or stem in MAIN or (taken is not None and not _is_file_of(taken, path)):
        import zlib  # rarely needed

        return f"{stem}_{zlib.crc32(os.fsencode(path)):08x}"
    return stem


def _run_script(path: str, loading: _Loading, *, fresh: bool) -> ModuleType:
    import importlib.machinery  # costs 2 ms: only for loading
    import importlib.util  # likewise

    name = _module_name(path)
    before = sys.modules.get(name)
    if before is not None and not fresh and _is_file_of(before, path):
        _path_of_module[name] = path
        return importlib.import_module(name)  # an ordinary import, which another thread may not have finished
    _extend_path(os.getcwd())
    _extend_path(os.path.dirname(path))
    loader = importlib.machinery.SourceFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # because a loader was given
    module = importlib.util.module_from_spec(spec)
    loading.module = module
    _path_of_module[name] = path
    sys.modules[name] = module
    try:
        # compiled from the source: the byte code cache cannot tell two edits in one second apart
        exec(loader.source_to_code(loader.get_data(path), path), module.__dict__)
    except BaseException as error:
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
        if isinstance(error, (Exception, SystemExit)):  # a script may raise anything; Ctrl-C is no error of its
            raise ScriptError(error, path) from error
        raise
    return module


# ----------------------------------------------------------------------------------- from the object to text


def entrypoint_of(fn: Any) -> str | None:
    """``"<absolute path of a script, or module>:<qualname>"`` by which another process finds `fn` again.

    A path when the module is a script (``__main__``, or loaded by :func:`load_entrypoint`), else the module's
    name. None when it cannot be found again; :func:`why_not_importable` says why.
    """
    if why_not_importable(fn) is not None:
        return None
    return f"{_place_of(fn.__module__)}:{fn.__qualname__}"


def why_not_importable(fn: Any) -> str | None:
    """Why no other process could find `fn` again, as a clause with "it"; None when it could."""
    qualname, module = getattr(fn, "__qualname__", None), getattr(fn, "__module__", None)
    if not isinstance(qualname, str) or not isinstance(module, str):
        return f"it is a {type(fn).__name__} object, which has no name of its own"
    if "<lambda>" in qualname:
        return "it is a lambda"
    if "<locals>" in qualname:
        return f"it is defined inside the function {qualname.partition('.<locals>')[0]}"
    instance = getattr(fn, "__self__", None)
    if instance is not None and not isinstance(instance, (type, type(sys))):
        return f"it is a method bound to a {type(instance).__name__} object"
    source = getattr(getattr(fn, "__code__", None), "co_filename", "")
    if module in MAIN and source.startswith("<"):
        return "it was typed into a session, a notebook or the command line"
    if _place_of(module) is None:
        if module in MAIN:
            return "the main program is no file (a session, a notebook, -c or standard input)"
        return f"its module {module} is not in sys.modules"
    return None


def main_place() -> str | None:
    """How another process finds this one's main program: its path or module name; None when it is no file."""
    return _place_of("__main__")


def _place_of(module: str) -> str | None:
    """The script's absolute path or the module's name; None when neither would find the module again."""
    if module in _path_of_module:
        return _path_of_module[module]
    found = sys.modules.get(module)
    if found is None:
        return None
    if module not in MAIN:
        return module
    spec = getattr(found, "__spec__", None)
    if spec is not None and spec.name not in MAIN:
        return str(spec.name)  # python -m: by its name, so that its relative imports work
    file = getattr(found, "__file__", None)
    if not isinstance(file, str) or not os.path.isfile(file):
        return None
    return os.path.abspath(file)


# ------------------------------------------------------------------------------------------ the main program's classes


def describe_main() -> dict[str, Any]:
    """What the main program is called in this process and where it is, for :func:`resolver_through`."""
    return {"names": sorted({*MAIN, module_name("__main__")}), "place": main_place()}


def resolver_through(main: dict[str, Any]) -> Callable[[str, str], Any]:
    """Finds classes by module and name; those of a main program of another process in the module that it is loaded as
    here. SerializationError when there is none."""

    def resolve(module: str, qualname: str) -> Any:
        if module not in main["names"] or main["place"] is None:
            return import_resolver(module, qualname)
        try:
            return load_entrypoint(f"{main['place']}:{qualname}")
        except MicroflowException as problem:
            raise SerializationError(f"{module}:{qualname} is not found here: {problem}") from problem

    return resolve
