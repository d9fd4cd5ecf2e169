"""What a handler's class declares by annotating an attribute: `options: MyOptions`."""

from __future__ import annotations

import inspect
import sys
import typing


def declared(handler: type, attribute: str, *, above: type) -> object | None:
    """Return the annotation of a class's attribute, None if it has none.

    Only that one is evaluated: others may well name what is imported for type
    checkers alone.

    Args:
        handler: the class; its bases are looked at as well.
        attribute: the annotated name.
        above: the base at which the search ends, itself not looked at.

    Raises:
        NameError: the annotation names what its module does not have.
    """
    for owner in handler.__mro__:
        if owner is above:
            return None
        annotation = inspect.get_annotations(owner).get(attribute)
        if annotation is None:
            continue
        holder = type("Holder", (), {"__annotations__": {attribute: annotation}})
        module = vars(sys.modules[owner.__module__])
        hints = typing.get_type_hints(holder, module, dict(vars(owner)), include_extras=True)
        evaluated: object = hints[attribute]
        return evaluated
    return None
