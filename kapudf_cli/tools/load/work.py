"""The data of a load run: points of a given shape, encoded once and sent repeatedly."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.batches import Batch
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.tools.recordings.notation import group_id, in_batch, messages_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.protocol.codec import DataMessage, RequestMessage
    from kapudf_cli.protocol.udf_pb2 import Option

#: The fields of telegraf's `cpu`, in per cent.
_CPU_FIELDS: Final = (
    "usage_guest",
    "usage_guest_nice",
    "usage_idle",
    "usage_iowait",
    "usage_irq",
    "usage_nice",
    "usage_softirq",
    "usage_steal",
    "usage_system",
    "usage_user",
)
#: 2023-11-14 22:13:20 UTC, and a millisecond.
_START_NS: Final = 1_700_000_000_000_000_000
_STEP_NS: Final = 1_000_000


@dataclass(frozen=True)
class Unit:
    """The data that is due at one time: a point, or a whole batch.

    Attributes:
        frames: each message as a frame.
        data: the frames joined.
        points: the number of points.
    """

    frames: tuple[bytes, ...]
    data: bytes
    points: int


@dataclass(frozen=True)
class Work:
    """The data of one connection, a block of messages that is sent repeatedly.

    Attributes:
        messages: the messages of the block.
        options: the options in Init.
    """

    messages: Sequence[RequestMessage]
    options: Sequence[Option] = ()

    @property
    def points(self) -> int:
        """The number of points in the block."""
        return sum(isinstance(message, Point) for message in self.messages)

    @cached_property
    def units(self) -> list[Unit]:
        """The block, split into units that are due at one time."""
        units: list[Unit] = []
        frames: list[bytes] = []
        points = 0
        in_batch = False
        for message in self.messages:
            frames.append(REQUESTS.encode(message))
            points += isinstance(message, Point)
            in_batch = isinstance(message, BeginBatch) or (
                in_batch and not isinstance(message, EndBatch)
            )
            if not in_batch:
                units.append(Unit(tuple(frames), b"".join(frames), points))
                frames, points = [], 0
        return units


def head_bytes(frame: bytes) -> int:
    """Return the number of bytes of a frame's length. Kapacitor writes the length separately."""
    size = 1
    while frame[size - 1] > 0x7F:  # noqa: PLR2004 - the high bit says that more follows
        size += 1
    return size


@dataclass(frozen=True)
class Shape:
    """The shape of the points; the default is telegraf's `cpu` of eight hosts.

    Attributes:
        fields: the number of double fields; the first ten have telegraf's names.
        tags: the number of tags; the last one has another value in each group.
        groups: the number of groups; the points take turns.
    """

    fields: int = len(_CPU_FIELDS)
    tags: int = 2
    groups: int = 8

    def points(self, count: int) -> Iterator[Point]:
        """Yield `count` points, the same in every run."""
        chance = random.Random(1)  # noqa: S311 - the same points in every run
        names = [*_CPU_FIELDS, *(f"field{n:02}" for n in range(len(_CPU_FIELDS), self.fields))]
        for number in range(count):
            tags = self._tags(number % self.groups)
            yield Point(
                time=_START_NS + number * _STEP_NS,
                name="cpu",
                database="telegraf",
                retentionPolicy="autogen",
                group=_group(tags),
                dimensions=sorted(tags),
                tags=tags,
                fieldsDouble={name: chance.uniform(1, 100) for name in names[: self.fields]},
            )

    def batches(self, count: int, length: int) -> Iterator[DataMessage]:
        """Yield `count` points in batches of `length`; the groups take turns."""
        points = list(self.points(count))
        for number, start in enumerate(range(0, count, length)):
            tags = self._tags(number % self.groups)
            group = _group(tags)
            inside = [in_batch(point, group) for point in points[start : start + length]]
            yield from messages_of(Batch("cpu", inside, tags, group))

    def _tags(self, group: int) -> dict[str, str]:
        tags = {"cpu": "cpu-total"} if self.tags > 1 else {}
        tags.update({f"tag{n:02}": "value" for n in range(1, self.tags - 1)})
        if self.tags:
            tags["host"] = f"server{group:02}"
        return tags


def _group(tags: dict[str, str]) -> str:
    return group_id("cpu", tags, sorted(tags), by_name=False)
