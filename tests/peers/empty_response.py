"""Answers each point with a Response in which nothing is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.peers.plain_udf import PlainUdf

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import Point


class EmptyResponse(PlainUdf):
    """Answers each point with a Response in which nothing is set."""

    def point(self, point: Point) -> None:
        del point
        self.write_bytes(b"\x00")


if __name__ == "__main__":
    EmptyResponse().run()
