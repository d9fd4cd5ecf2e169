"""Works on thirteen points at a time, and forgets the last ones at the end of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.peers.plain_udf import PlainUdf

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import KeepaliveRequest, Point


class SwallowsTheEnd(PlainUdf):
    """Works on thirteen points at a time, and forgets the last ones at the end of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Point] = []

    def point(self, point: Point) -> None:
        self.kept.append(point)
        if len(self.kept) == 13:
            self.release()

    def rest(self) -> None:
        self.flush()

    def keepalive(self, request: KeepaliveRequest) -> None:
        self.release()
        super().keepalive(request)

    def release(self) -> None:
        for point in self.kept:
            self.write(point)
        self.kept.clear()


if __name__ == "__main__":
    SwallowsTheEnd().run()
