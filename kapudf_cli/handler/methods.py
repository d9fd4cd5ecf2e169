"""Checks of the methods of a handler's class: their names and their arguments."""

from __future__ import annotations

import difflib
import inspect
import types
from typing import TYPE_CHECKING, Any, Final

from kapudf_cli.handler import deprecated
from kapudf_cli.handler.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

#: How similar two names are if one is a slip of the other: `restor` and `restore`.
_SLIP: Final = 0.9
#: Names that other libraries use, without what `_fold` removes.
_SYNONYMS: Final = {"begin": "begin_batch", "end": "end_batch"}


def check_methods(handler: type, base: type) -> None:
    """Check the methods that a class defines, which kapudf calls or seems to be meant to call.

    Args:
        handler: the class of an author.
        base: the class of kapudf that it extends.

    Raises:
        DefinitionError: a method has a wrong name, or arguments that kapudf does not pass.
    """
    called = _called_methods(base)
    for name, method in called.items():
        found = inspect.getattr_static(handler, name)
        if found is not method and not (
            _takes(found, method) or deprecated.is_old_method(name, found)
        ):
            place = _place(found)
            expected = f"`def {name}{_parameters(method)}`"
            message = f"{handler.__name__}.{name} must be {expected}{place}"
            raise DefinitionError(message)
    _check_names(handler, base, called)


def _called_methods(base: type) -> Mapping[str, types.FunctionType]:
    """Return the methods of a class of kapudf that kapudf calls, by name."""
    return {
        name: method
        for name, method in inspect.getmembers_static(base, inspect.isfunction)
        if name == "__init__" or not name.startswith("_")
    }


def _check_names(handler: type, base: type, called: Mapping[str, types.FunctionType]) -> None:
    """Raise DefinitionError for a method that is never called because of its name."""
    inherited = {name for parent in base.__mro__[1:] for name in vars(parent)}
    lacking = {
        name
        for name, method in called.items()
        if inspect.getattr_static(handler, name) is method
        and name != "stop"  # deprecated
        # A BatchHandler implements some methods of a Handler. They need no other definition.
        and not (name in vars(base) and name in inherited)
    }
    own = [
        method
        for owner in handler.__mro__
        if owner not in base.__mro__
        for method in vars(owner).values()
        if inspect.isfunction(method)
    ]
    used = {name for method in own for name in _names_in(method.__code__)}
    for method in own:
        name = method.__name__
        if name.startswith("_") or hasattr(base, name) or name in used:
            continue
        meant = _meant(name, lacking)
        if meant is not None and (_takes(method, called[meant]) or _is_abstract(called[meant])):
            problem = f"is never called; rename it to {meant}"
            message = f"{handler.__name__}.{name} {problem}{_place(method)}"
            raise DefinitionError(message)


def _meant(name: str, lacking: Collection[str]) -> str | None:
    """Return the method that a name is a slip of, None if it is another name."""
    folded = {_fold(each): each for each in lacking}
    found = _fold(name.removeprefix("on_"))
    if _SYNONYMS.get(found) in lacking:
        return _SYNONYMS[found]
    for singular in (found.removesuffix("es"), found.removesuffix("s")):
        if singular in folded:
            return folded[singular]
    close = difflib.get_close_matches(found, folded, n=1, cutoff=_SLIP)
    return folded[close[0]] if close else None


def _fold(name: str) -> str:
    return name.replace("_", "").casefold()


def _is_abstract(method: object) -> bool:
    return getattr(method, "__isabstractmethod__", False)


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names of attributes and globals that a function uses."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _takes(found: object, method: types.FunctionType) -> bool:
    """Return whether a class attribute can be called as `method` is."""
    count = len(inspect.signature(method).parameters)
    if isinstance(found, staticmethod):
        found, count = found.__func__, count - 1
    elif isinstance(found, classmethod):
        found = found.__func__
    elif not inspect.isfunction(found):
        # Other objects may bind themselves, such as a functools.partialmethod.
        return callable(found) or hasattr(type(found), "__get__")
    try:
        signature = inspect.signature(found, follow_wrapped=False)
    except (ValueError, TypeError):
        return True
    arguments: list[Any] = [None] * count
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _parameters(method: types.FunctionType) -> str:
    return f"({', '.join(inspect.signature(method).parameters)})"


def _place(found: object) -> str:
    """Return the file and the line of a function in parentheses, empty if it has none."""
    function = inspect.unwrap(getattr(found, "__func__", found))  # type: ignore[arg-type]
    code = getattr(function, "__code__", None)
    return "" if code is None else f" ({code.co_filename}, line {code.co_firstlineno})"


def forgotten_init(handler: type, base: type) -> str:
    """Return an error message for a class whose `__init__` does not call that of its base."""
    inits = [
        vars(owner)["__init__"]
        for owner in handler.__mro__
        if owner not in base.__mro__ and inspect.isfunction(vars(owner).get("__init__"))
    ]
    culprit = next((i for i in inits if "__init__" not in _names_in(i.__code__)), None)
    name = handler.__name__ if culprit is None else culprit.__qualname__.rpartition(".")[0]
    place = "" if culprit is None else _place(culprit)
    return f"{name}.__init__ must call `super().__init__(agent)` first{place}"
