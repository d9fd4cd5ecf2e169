"""What the Ray engine and its actors send each other, as MessagePack.

Both ends have the same version of kapudf, except for `Description`, which says whether that is so.
"""

from __future__ import annotations

import itertools
import platform
from typing import Any, Final

import google.protobuf
import msgspec

from kapudf_cli import __version__
from kapudf_cli.config import FunctionSettings  # noqa: TC001 - msgspec reads the annotations
from kapudf_cli.system.logs import LogFormat, LogLevel  # noqa: TC001 - as above
from kapudf_cli.worker.shipped_code import ShippedCode  # noqa: TC001 - as above

#: Longer arguments and results of a call take a slower way through Ray, by its object store: from
#: 100 kB on, by default.
CHUNK_BYTES: Final = 90_000
_POLL_S: Final = 0.5
_SILENT_S: Final = 5.0


class Description(msgspec.Struct, frozen=True):
    """An actor's process.

    Attributes:
        pid: the process id.
        node: the id of its node.
        versions: of kapudf, Python, and the packages that read and write messages.
    """

    pid: int
    node: str
    versions: dict[str, str]


def poll_s(busy_limit_s: float) -> float:
    """Return how long an actor waits for events before it answers a poll, in seconds."""
    return min(_POLL_S, busy_limit_s / 4)


def silent_s(busy_limit_s: float) -> float:
    """Return after how many seconds without an answer to a poll an actor may be out of reach.

    It is less than the busy limit: that an actor cannot be reached is not its handler's fault.
    """
    return min(_SILENT_S, busy_limit_s / 2)


def versions() -> dict[str, str]:
    """Return the versions that must be the same in the engine and in its actors."""
    major, minor, _ = platform.python_version_tuple()
    return {
        "kapudf": __version__,
        "Python": f"{major}.{minor}",
        "protobuf": google.protobuf.__version__,
        "msgspec": msgspec.__version__,
    }


class Load(msgspec.Struct, frozen=True):
    """How an actor loads the handler.

    Attributes:
        function: the name of the function.
        settings: of the function.
        code: the handler.
        log_format: of the log; not `auto`.
        log_level: from which level on events are logged.
        partition: which partition it is.
        node: where it is, for the log.
    """

    function: str
    settings: FunctionSettings
    code: ShippedCode
    log_format: LogFormat
    log_level: LogLevel
    partition: int
    node: str


class Loaded(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        problem: why the handler cannot be loaded, None if it is.
        is_usage_error: whether its name is wrong.
        sha256: the beginning of the hash of its file.
    """

    problem: str | None = None
    is_usage_error: bool = False
    sha256: str = ""


class Events(msgspec.Struct, frozen=True):
    """What has happened in an actor since the last poll.

    Attributes:
        number: how many polls there were, with this one.
        replies: replies that are no result of an order, by the number of their link.
        lines: of the log.
        rss_bytes: its resident memory.
        cpu_ns: its processor time.
    """

    number: int
    replies: list[tuple[int, bytes]]
    lines: bytes
    rss_bytes: int
    cpu_ns: int


_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: Any) -> bytes:
    """Return a message as bytes."""
    return _ENCODER.encode(message)


def chunks(data: bytes) -> list[bytes]:
    """Return bytes in chunks that are sent with a call; at least one."""
    return [data[at : at + CHUNK_BYTES] for at in range(0, max(len(data), 1), CHUNK_BYTES)]


def chunks_within(data: bytes, count: int) -> list[bytes]:
    """Return bytes in exactly this number of chunks; the last one has what is left."""
    ends = [min(number * CHUNK_BYTES, len(data)) for number in range(count)] + [len(data)]
    return [data[start:end] for start, end in itertools.pairwise(ends)]
