"""The options and the state that a handler's class declares by annotations."""

from __future__ import annotations

import copy
import inspect
import sys
import typing
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class StateDeclaration:
    """What a handler's class declares about its state.

    Attributes:
        template: an empty state, which no handler uses itself.
        version: the version of its snapshots.
    """

    template: state.AnyState
    version: int

    def fresh(self) -> state.AnyState:
        """Return an empty state for a handler."""
        if isinstance(self.template, state.PerGroup):
            return self.template.fresh()
        return copy.deepcopy(self.template)


def state_declaration(handler: type[Any]) -> StateDeclaration | None:
    """Return what a handler declares about its state, None if it declares none.

    The nearest class counts that assigns a state to `state`, or annotates it.

    Raises:
        DefinitionError: the annotation cannot be evaluated, or the class itself is assigned.
        TypeError: the annotation is neither a subclass of State nor PerGroup of one.
    """
    template = _state_template(handler)
    if template is None:
        return None
    version = getattr(handler, "state_version", None)
    if version is None:
        version = state.version_of(template)
    return StateDeclaration(template, version)


def _state_template(handler: type[Any]) -> state.AnyState | None:
    for owner in handler.__mro__:
        value = vars(owner).get("state")
        if isinstance(value, state.State | state.PerGroup):
            return value
        if typing.get_origin(value) is state.PerGroup:
            name = f"PerGroup({typing.get_args(value)[0].__name__})"
            raise DefinitionError(f"{owner.__name__}.state is a type; write `state = {name}`")
        if isinstance(value, type) and issubclass(value, state.State):
            call = f"{value.__name__}()"
            problem = "is the class itself"
            raise DefinitionError(f"{owner.__name__}.state {problem}; write `state = {call}`")
        annotation = _annotation_in(owner, "state")
        if annotation is not None:
            limit = getattr(handler, "state_limit", None)
            expiry = getattr(handler, "state_expiry", None)
            return state.create(annotation, limit=limit, expiry=expiry)
    return None


def annotation_of(handler: type[Any], attribute: str) -> object | None:
    """Return the annotation of an attribute of a handler's class, None if it has none.

    Other annotations are not evaluated: they may use names that are imported only for type
    checkers.

    Raises:
        DefinitionError: the annotation cannot be evaluated, for example because it uses a name
            that its module does not have.
    """
    for owner in handler.__mro__:
        annotation = _annotation_in(owner, attribute)
        if annotation is not None:
            return annotation
    return None


def _annotation_in(owner: type, attribute: str) -> object | None:
    annotation = inspect.get_annotations(owner).get(attribute)
    if annotation is None:
        return None
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
