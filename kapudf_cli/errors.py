"""Every error that kapudf raises on purpose, in one hierarchy.

An error's class says whose fault it is, its attributes hold the facts, and its
message says in one line what happened, where, and what to do next. The module
imports nothing of the project, so that every other module may import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: The longest text of an exception that is passed on. It may hold all the data of a task.
_DESCRIPTION_CHARACTERS: Final = 2000


class KapudfError(Exception):
    """The root: catch it to catch whatever kapudf raises on purpose.

    Attributes:
        wrong_call: whether what was asked for is wrong, so that trying again is no use.
    """

    is_usage_error: bool = False


# --- The peer's fault: bytes that are not the protocol --------------------------


class ProtocolError(KapudfError):
    """The peer sent what the protocol does not allow.

    Attributes:
        problem: what is wrong, without the place.
        offset: where in the incoming stream the faulty frame starts, in bytes
            from the connection's first, or None while that is not known.
    """

    def __init__(self, problem: str, *, offset: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.offset = offset

    def __str__(self) -> str:
        """Return the problem, and the place where it is known."""
        if self.offset is None:
            return self.problem
        return f"{self.problem} (in the frame at byte {self.offset})"


class VarintTooLongError(ProtocolError):
    """A frame's length does not fit into 32 bits."""


class FrameTooLongError(ProtocolError):
    """A frame is announced as longer than the limit; none of it was kept."""

    def __init__(self, length: int, limit: int, *, offset: int | None = None) -> None:
        super().__init__(
            f"a frame of {length} bytes is announced, the limit max_frame_bytes is {limit}",
            offset=offset,
        )
        self.length = length
        self.limit = limit


class TruncatedFrameError(ProtocolError):
    """The input ended inside a frame."""

    def __init__(self, received: int, expected: int | None, *, offset: int | None = None) -> None:
        whole = "its length is not complete" if expected is None else f"it has {expected}"
        super().__init__(
            f"the input ended inside a frame: {received} bytes of it came, {whole}",
            offset=offset,
        )
        self.received = received
        self.expected = expected


class UndecodableMessageError(ProtocolError):
    """A frame's bytes are not the protobuf message they should be.

    Attributes:
        kind: the class of the message in it, None where that cannot be told.
    """

    def __init__(self, problem: str, *, kind: type | None = None) -> None:
        super().__init__(problem)
        self.kind = kind


class EmptyMessageError(UndecodableMessageError):
    """A Request or Response in which no message is set."""


class UnexpectedMessageError(ProtocolError):
    """A message that may not come at this point of the conversation."""


# --- The handler's fault --------------------------------------------------------


class HandlerError(KapudfError):
    """A method of a handler raised; the exception is the `__cause__`.

    Attributes:
        handler: name of the handler's class.
        method: name of the method that was called.
        cause: what it raised.
    """

    def __init__(self, handler: str, method: str, cause: BaseException) -> None:
        super().__init__(f"{handler}.{method} raised {describe(cause)}")
        self.handler = handler
        self.method = method
        self.cause = cause
        self.__cause__ = cause


class InvalidWriteError(KapudfError):
    """A handler wrote what would break Kapacitor's side; nothing of it was sent."""


class OptionsError(KapudfError):
    """A TICKscript calls a handler's options wrongly; the message is for its author."""


class FieldValueError(KapudfError, ValueError):
    """A value that no field of a point can have."""

    def __init__(self, field: str, value: object, advice: str) -> None:
        super().__init__(f"field '{field}': {type(value).__name__} {value!r:.80}: {advice}")
        self.field = field
        self.value = value


class StateError(KapudfError):
    """A snapshot is not of this handler's state."""


class BatchTooLongError(KapudfError):
    """A batch has more points than its handler keeps."""


class ConnectionClosedError(KapudfError):
    """A handler wrote to a connection that has ended."""


class DecodeMemoryError(MemoryError):
    """A message cannot be decoded because this process has no memory left for it.

    It is no fault of the message, of the handler or of the peer: another process may be able to.
    """


class WorkerLostError(KapudfError):
    """The workers that served a connection died of it, and no other is tried."""


# --- The input's fault ----------------------------------------------------------


class LineProtocolError(KapudfError, ValueError):
    """A text is no line protocol, or a point cannot be written as such.

    Attributes:
        text: the text at fault.
        reason: what is wrong, without the text.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"not line protocol: {text!r:.200}: {reason}")
        self.text = text
        self.reason = reason


class RecordingError(KapudfError):
    """A recording cannot be read, or has an ill-formed line.

    Attributes:
        place: the file, and the line in it where it is one line that is at fault.
        reason: what is wrong, without the place.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class CallError(KapudfError):
    """The calls of a UDF's options are not TICKscript's, or not what the UDF declares.

    Attributes:
        column: where in the text, the first character being 1.
        reason: what is wrong, without the place.
    """

    is_usage_error = True

    def __init__(self, column: int, reason: str) -> None:
        super().__init__(f"character {column} of the options: {reason}")
        self.column = column
        self.reason = reason


class WindowsTooFullError(KapudfError):
    """The windows over a stream hold more points than memory should."""


class MisfitError(KapudfError):
    """A UDF, a recording, and what was asked for do not go together."""

    is_usage_error = True


class ReplayError(KapudfError):
    """A UDF did what fails its task, or worse, while a recording was sent through it."""


# --- The plugin's fault ---------------------------------------------------------


class PluginError(KapudfError):
    """A handler could not be had from what the user named.

    Attributes:
        function: the function that it is for, None where it is for none.
    """

    function: str | None = None


class UnknownHandlerError(PluginError):
    """No installed distribution offers a handler of that name."""

    is_usage_error = True

    def __init__(self, name: str, known: Sequence[str], nearest: str | None) -> None:
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        installed = ", ".join(known) if known else "none"
        super().__init__(
            f"no handler is named '{name}'{hint} (installed: {installed}; "
            "a class that is not is named as file.py:Class or package.module:Class)"
        )
        self.name = name
        self.known = tuple(known)
        self.nearest = nearest


class AmbiguousHandlerError(PluginError):
    """Two or more distributions offer a handler of the same name."""

    is_usage_error = True

    def __init__(self, name: str, sources: Sequence[str]) -> None:
        super().__init__(
            f"handler '{name}' is offered more than once, by {' and by '.join(sources)}; "
            "uninstall one, or name the class itself as package.module:Class"
        )
        self.name = name
        self.sources = tuple(sources)


class HandlerImportError(PluginError):
    """The code of a handler could not be imported; the cause is the `__cause__`.

    Attributes:
        name: what the user called the handler.
        source: where it comes from.
        cause: what the import raised.
    """

    def __init__(self, name: str, source: str, cause: BaseException) -> None:
        # What was named by its class comes from where it says.
        origin = "" if source == name else f" of {source}"
        reason = f"{describe(cause)}{_place_in_import(cause)}"
        super().__init__(f"handler '{name}'{origin} cannot be imported: {reason}")
        self.name = name
        self.source = source
        self.cause = cause
        self.__cause__ = cause


class WorkerStartError(PluginError):
    """A worker could not load its handler.

    Attributes:
        wrong_call: whether what was asked for is wrong, so that trying again is no use.
    """

    def __init__(self, problem: str, *, function: str, is_usage_error: bool) -> None:
        super().__init__(problem)
        self.function = function
        self.is_usage_error = is_usage_error


class NotAHandlerError(PluginError):
    """What was named exists, but is no usable handler class."""

    is_usage_error = True


# --- The socket, the configuration, the other side ------------------------------


class SocketPathError(KapudfError):
    """A Unix socket cannot be had at a path, for the reason that the message gives.

    Attributes:
        path: the path as the user gave it.
        problem: the reason, without the path.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class SocketInUseError(SocketPathError):
    """A live process serves the path; it was left alone.

    Attributes:
        pid: that process, or None where the system does not say.
    """

    def __init__(self, path: str, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(path, f"{who} serves this socket already; stop it or choose another path")
        self.pid = pid


class StaleSocketError(SocketPathError):
    """A socket is left over at the path and nobody serves it."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            "a socket is left over here that nobody serves; to have it removed, start "
            "`kapudf serve` with --remove-stale, or set remove_stale: true in its configuration",
        )


class ConfigError(KapudfError):
    """A configuration is not usable.

    Attributes:
        source: the file, or a word for where the settings came from.
        faults: one line each: the path of the setting, and what is wrong.
    """

    is_usage_error = True

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        super().__init__("; ".join(f"{source}: {fault}" for fault in faults))
        self.source = source
        self.faults = tuple(faults)


class ProjectNameError(KapudfError):
    """No plugin project can have this name, for the reason that the message gives."""

    is_usage_error = True

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"no project can be called '{name}': {problem}")
        self.name = name
        self.problem = problem


class ProjectTargetError(KapudfError):
    """A plugin project cannot be written to a folder; nothing there was changed."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"{folder}: {problem}")
        self.folder = folder
        self.problem = problem


class MissingExtraError(KapudfError):
    """Something needs a library that is an extra of kapudf's, and is not installed."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(f"{what} needs {library}: pip install 'kapudf[{extra}]'")
        self.library = library
        self.extra = extra


class ControlError(KapudfError):
    """The supervisor of a function could not be asked, or could not do what was asked."""


class TargetError(KapudfError):
    """A UDF that is to be tested cannot be connected to, or not be started.

    Attributes:
        target: the path or command as the user gave it.
        problem: the reason, without the target.
    """

    def __init__(self, target: str, problem: str) -> None:
        super().__init__(f"{target}: {problem}")
        self.target = target
        self.problem = problem


class ResponseFaultError(KapudfError):
    """A UDF sent what Kapacitor cannot bear.

    Attributes:
        problem: what it did, to be put after the UDF's name.
        consequence: what Kapacitor would do.
    """

    def __init__(self, problem: str, consequence: str) -> None:
        super().__init__(f"{problem}; {consequence}")
        self.problem = problem
        self.consequence = consequence


class LoadError(KapudfError):
    """A UDF could not carry the load that was put on it: it refused, failed, hung or ended."""


class OutputError(KapudfError):
    """What a command found out cannot be written to where it should go."""


class ProbeError(KapudfError):
    """A UDF did not answer as Kapacitor needs it to."""


def _place_in_import(error: BaseException) -> str:
    """Return which line of the imported code raised, if one did and the text does not say."""
    if isinstance(error, SyntaxError):
        return ""
    place = ""
    importing = False
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            # What has run until now has led to the import, and is no part of the code.
            importing, place = True, ""
        elif importing:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


def describe(error: BaseException) -> str:
    """Return an exception's type and text in one line of bounded length, for logs and Kapacitor."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception that cannot be shown must not hide that it came
        text = "(an exception whose text cannot be had)"
    # Half a surrogate pair would fail to be sent, and the connection with it.
    text = text.encode("utf-8", "backslashreplace").decode()
    name = type(error).__name__
    return f"{name}: {shorten(text, _DESCRIPTION_CHARACTERS)}" if text else name


def shorten(text: str, limit: int) -> str:
    """Return a text over `limit` characters without its middle, and how much was cut there."""
    cut = len(text) - limit
    if cut <= 0:
        return text
    end = limit // 4
    return f"{text[: limit - end]} [... {cut} characters cut ...] {text[len(text) - end :]}"
