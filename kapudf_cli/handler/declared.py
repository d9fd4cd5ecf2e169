"""The options and the state that a handler's class declares by annotations."""

from __future__ import annotations

import inspect
import sys
import typing
from typing import Any

from kapudf_cli.errors import describe
from kapudf_cli.handler import state
from kapudf_cli.handler.errors import DefinitionError
from kapudf_cli.handler.options import Options


def options_class(handler: type[Any]) -> type[Options] | None:
    """Return the class of a handler's options, None if it declares none.

    Raises:
        DefinitionError: the annotation cannot be evaluated, or is not a subclass of Options.
    """
    annotation = annotation_of(handler, "options")
    if annotation is None:
        return None
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return annotation
    message = f"{handler.__name__}.options: {annotation!r} is not a subclass of kapudf_cli.Options"
    raise DefinitionError(message)


def fresh_state(handler: type[Any]) -> state.AnyState | None:
    """Return an empty state of a handler, None if it declares none.

    Raises:
        DefinitionError: the annotation cannot be evaluated.
        TypeError: the annotation is neither a subclass of State nor PerGroup of one.
    """
    annotation = annotation_of(handler, "state")
    if annotation is None:
        return None
    return state.create(annotation, limit=handler.state_limit, expiry=handler.state_expiry)


def annotation_of(handler: type[Any], attribute: str) -> object | None:
    """Return the annotation of an attribute of a handler's class, None if it has none.

    Other annotations are not evaluated: they may use names that are imported only for type
    checkers.

    Raises:
        DefinitionError: the annotation cannot be evaluated, for example because it uses a name
            that its module does not have.
    """
    for owner in handler.__mro__:
        annotation = inspect.get_annotations(owner).get(attribute)
        if annotation is None:
            continue
        holder = type("Holder", (), {"__annotations__": {attribute: annotation}})
        module = vars(sys.modules[owner.__module__])
        try:
            hints = typing.get_type_hints(holder, module, dict(vars(owner)), include_extras=True)
        except NameError as error:
            advice = (
                "define it at the top level of its module, not in a function, "
                "and import it outside of `if TYPE_CHECKING:`"
            )
            message = f"{owner.__name__}.{attribute}: {annotation}: {error}; {advice}"
            raise DefinitionError(message) from error
        except Exception as error:
            message = f"{owner.__name__}.{attribute}: {annotation}: {describe(error)}"
            raise DefinitionError(message) from error
        evaluated: object = hints[attribute]
        return evaluated
    return None
