"""Why an agent's connection fails."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError, describe
from kapudf_cli.handler.definition import advice_for
from kapudf_cli.handler.errors import InvalidReturnError


class CallTimeoutError(TimeoutError):
    """A call of an async method took longer than `timeout_s`."""


class HandlerError(KapudfError):
    """A method of a handler raised, or returned what cannot be written.

    The exception is the `__cause__`.

    Attributes:
        handler: name of the handler's class.
        method: name of the method that was called.
        cause: what it raised.
    """

    def __init__(self, handler: str, method: str, cause: BaseException) -> None:
        if isinstance(cause, InvalidReturnError | CallTimeoutError):
            super().__init__(f"{handler}.{cause}")
        else:
            super().__init__(f"{handler}.{method} raised {describe(cause)}{advice_for(cause)}")
        self.handler = handler
        self.method = method
        self.cause = cause
        self.__cause__ = cause


class WorkerLostError(KapudfError):
    """The workers that served a connection died of it, and no other is tried."""
