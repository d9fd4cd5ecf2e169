"""Old names of the interface, which work for one more release, with a warning.

Names that have moved out of `kapudf_cli` are in its `__init__.py`.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.handler.state import Snapshot

#: The old class attributes, and what replaces each.
_ATTRIBUTES: Final = {
    "state_version": "class MyState(State, version=2)",
    "state_limit": "state = PerGroup(MyState, limit=...)",
    "state_expiry": "state = PerGroup(MyState, expiry=...)",
    "foreign_state": "on_state_mismatch",
}
#: The parameters of the old form of `migrate`, besides `self`.
_OLD_MIGRATE_PARAMETERS: Final = 3


def warn(handler: type, message: str) -> None:
    """Give a DeprecationWarning at the class of a handler, for its author to find the line."""
    try:
        file = inspect.getsourcefile(handler) or handler.__module__
        _, line = inspect.getsourcelines(handler)
    except (OSError, TypeError):
        file, line = handler.__module__, 1
    warnings.warn_explicit(
        f"{handler.__name__}: {message}", DeprecationWarning, file, line, handler.__module__
    )


def warn_of_class(handler: type[Any]) -> None:
    """Warn of the old names that a handler's class defines."""
    for name, replacement in _ATTRIBUTES.items():
        if hasattr(handler, name):
            warn(handler, f"{name} is deprecated; write {replacement}")
    if last_method(handler) == "stop":
        warn(handler, "the method stop is deprecated; rename it to teardown")
    if is_old_method("migrate", inspect.getattr_static(handler, "migrate")):
        warn(
            handler,
            "migrate(self, handler, version, content) is deprecated; "
            "write migrate(self, snapshot), which has these as attributes",
        )


def last_method(handler: type) -> str:
    """Return the name of a handler's last method: `teardown`, or `stop` if it overrides that."""
    for owner in handler.__mro__:
        if "teardown" in vars(owner):
            return "teardown"
        if "stop" in vars(owner):
            return "stop"
    return "teardown"


def is_old_method(name: str, method: object) -> bool:
    """Return whether a method of a class is `migrate` with the old parameters."""
    return name == "migrate" and inspect.isfunction(method) and _takes_parts(method, skip=1)


def migrate(handler: Any, snapshot: Snapshot) -> Any:
    """Call a handler's `migrate`; the old form gets no snapshots of other programs."""
    if not _takes_parts(handler.migrate):
        return handler.migrate(snapshot)
    if snapshot.handler is None:
        return None
    return handler.migrate(snapshot.handler, snapshot.version, snapshot.content)


def on_state_mismatch(handler: Any) -> str:
    """Return what happens with a snapshot that a handler cannot use."""
    decision: str = getattr(handler, "foreign_state", handler.on_state_mismatch)
    return decision


def _takes_parts(method: Callable[..., Any], *, skip: int = 0) -> bool:
    """Return whether a `migrate` has the old parameters; `skip` of them are not counted."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(method).parameters.values()
    return sum(each.kind in named for each in parameters) - skip >= _OLD_MIGRATE_PARAMETERS
