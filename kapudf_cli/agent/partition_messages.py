"""What an agent and the partitions of its handler send each other.

A partition handles the orders in their sequence, and answers each with one result.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from kapudf_cli.agent.calls_in_flight import MAX_UNORDERED_BYTES

#: How a partition could not handle a frame: its handler raised, and the task fails or the handler
#: is restarted; it raised again during a replay; the frame is invalid; or it cannot be dropped.
FailureKind: TypeAlias = Literal["handler", "restart", "replay", "protocol", "lost"]


class _Order(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """An order to a partition; its class name is its tag."""


class Create(_Order, frozen=True, tag=True, array_like=True):
    """Create a handler."""


class Ask(_Order, frozen=True, tag=True, array_like=True):
    """Answer Info, Init or Restore, which is given as a frame."""

    frame: bytes


class Handle(_Order, frozen=True, tag=True, array_like=True):
    """Handle points and batches.

    Attributes:
        frames: whole frames of the input.
        replays: whether the handler gets them to rebuild its state.
        drops: whether the handler does not get them, because they failed before.
    """

    frames: bytes
    replays: bool = False
    drops: bool = False


class TakeSnapshot(_Order, frozen=True, tag=True, array_like=True):
    """Return a snapshot of the state, as the first output; see also `partition.KEEPS_TIME`."""


class Drain(_Order, frozen=True, tag=True, array_like=True):
    """Call the handler's `drain`, for a limited time."""

    limit_s: float


class End(_Order, frozen=True, tag=True, array_like=True):
    """Call the handler's `teardown`, and forget the handler."""


Order: TypeAlias = Create | Ask | Handle | TakeSnapshot | Drain | End


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why a partition did not handle all frames of an order.

    Attributes:
        frame: the number of the frame among those of the order.
        kind: what failed.
        text: the error message.
        method: the method of the handler that raised.
        trace: the traceback of what it raised.
    """

    frame: int
    kind: FailureKind
    text: str = ""
    method: str = ""
    trace: str = ""


class Passed(msgspec.Struct, frozen=True, array_like=True):
    """A frame at which `on_error` has passed something over.

    Attributes:
        frame: the number of the frame among those of the order.
        failures: how many exceptions there were.
        points: how many points were dropped.
    """

    frame: int
    failures: int
    points: int


class Result(msgspec.Struct, frozen=True, array_like=True):
    """What a partition returns for an order.

    Attributes:
        outputs: the frames that the handler wrote.
        counts: how many of them belong to each frame of the input; None if each frame has one.
        only_points: whether each of them is a point.
        passed: the frames at which `on_error` has passed something over.
        failure: why later frames were not handled, None if all were.
        took_ns: how long the handler took.
    """

    outputs: list[bytes] = []
    counts: list[int] | None = []
    only_points: bool = True
    passed: list[Passed] = []
    failure: Failure | None = None
    took_ns: int = 0

    @property
    def may_overtake(self) -> bool:
        """Whether the output may be written before that of other partitions."""
        return (
            self.failure is None
            and self.only_points
            and sum(map(len, self.outputs)) <= MAX_UNORDERED_BYTES
        )


class Written(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A message, as a frame, that a thread of the handler wrote; it belongs to no order."""

    frame: bytes


class Progress(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How many frames of the current order are handled, while it takes long."""

    frames: int


class Answer(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The result of the oldest order that has none yet."""

    result: Result


class Served(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The first reply: which thread of the process executes the orders."""

    thread: int


class Waits(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Whether the partition cannot be reached: then no handler is to blame that nothing comes."""

    waits: bool


Reply: TypeAlias = Answer | Written | Progress | Served | Waits

ENCODER: Final = msgspec.msgpack.Encoder()
ORDERS: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order)
REPLIES: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)
