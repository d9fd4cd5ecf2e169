"""What a load run sends over and over: points of a given shape, encoded once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.protocol.codec import DataMessage, RequestMessage
    from kapudf_cli.protocol.udf_pb2 import Option

#: What telegraf's `cpu` measures, in per cent.
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
    """What is due at one moment: a point, or a whole batch.

    Attributes:
        frames: each message as a frame.
        data: all of them.
        points: how many points.
    """

    frames: tuple[bytes, ...]
    data: bytes
    points: int


@dataclass(frozen=True)
class Work:
    """What one connection sends over and over.

    Attributes:
        messages: the messages of one block.
        options: what Init calls.
    """

    messages: Sequence[RequestMessage]
    options: Sequence[Option] = ()

    @property
    def points(self) -> int:
        """How many points a block has."""
        return sum(isinstance(message, Point) for message in self.messages)

    @cached_property
    def units(self) -> list[Unit]:
        """The block, cut into what is due at one moment."""
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
    """Return how many bytes the length of a frame takes; Kapacitor writes them separately."""
    size = 1
    while frame[size - 1] > 0x7F:  # noqa: PLR2004 - the high bit says that more follows
        size += 1
    return size


@dataclass(frozen=True)
class Shape:
    """The shape of the points; the default is telegraf's `cpu` of eight hosts.

    Attributes:
        fields: how many double fields; the first ten are named as telegraf names them.
        tags: how many tags; the last one distinguishes the groups.
        groups: how many groups; the points belong to each in turn.
    """

    fields: int = len(_CPU_FIELDS)
    tags: int = 2
    groups: int = 8

    def points(self, count: int) -> Iterator[Point]:
        """Yield `count` points; the same in every run."""
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
        """Yield `count` points as batches of `length`, each of one group, the groups in turn."""
        points = list(self.points(count))
        for number, start in enumerate(range(0, count, length)):
            tags = self._tags(number % self.groups)
            yield from _batch(points[start : start + length], tags)

    def _tags(self, group: int) -> dict[str, str]:
        tags = {"cpu": "cpu-total"} if self.tags > 1 else {}
        tags.update({f"tag{n:02}": "value" for n in range(1, self.tags - 1)})
        if self.tags:
            tags["host"] = f"server{group:02}"
        return tags


def _group(tags: dict[str, str]) -> str:
    return ",".join(f"{name}={tags[name]}" for name in sorted(tags))


def _batch(points: Sequence[Point], tags: dict[str, str]) -> Iterator[DataMessage]:
    group = _group(tags)
    yield BeginBatch(name="cpu", group=group, tags=tags, size=len(points))
    for point in points:
        yield Point(time=point.time, group=group, tags=tags, fieldsDouble=point.fieldsDouble)
    yield EndBatch(name="cpu", group=group, tags=tags, tmax=points[-1].time)
