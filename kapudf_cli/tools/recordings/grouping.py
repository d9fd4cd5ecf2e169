"""Groups, as Kapacitor forms them, and the parts of a stream that a task would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kapudf_cli.protocol.udf_pb2 import Point


def group_id(
    name: str, tags: Mapping[str, str], dimensions: Sequence[str], *, by_name: bool
) -> str:
    """Return what Kapacitor calls a group (`ToGroupID` in its models/point.go).

    Args:
        name: the measurement.
        tags: the tags of a point; one that it lacks counts as empty.
        dimensions: the tags to group by, in order.
        by_name: whether to group by measurement as well.
    """
    values = ",".join(f"{tag}={tags.get(tag, '')}" for tag in dimensions)
    if not by_name:
        return values
    return f"{name}\n{values}" if dimensions else name


@dataclass(frozen=True)
class Grouping:
    """What a stream is grouped by, as by `|groupBy('host')`, `|groupBy(*)` and `.byMeasurement()`.

    Attributes:
        tags: the tags; None stands for all that each point has.
        by_name: whether by measurement as well.
    """

    tags: tuple[str, ...] | None = ()
    by_name: bool = False

    def apply(self, point: Point) -> None:
        """Put a point into its group."""
        tags = dict(point.tags)
        dimensions = sorted(tags if self.tags is None else self.tags)
        del point.dimensions[:]
        point.dimensions.extend(dimensions)
        point.byName = self.by_name
        point.group = group_id(point.name, tags, dimensions, by_name=self.by_name)
