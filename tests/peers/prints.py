"""Prints to stdout what it is about to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.peers.plain_udf import PlainUdf

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import Point


class Prints(PlainUdf):
    """Prints to stdout what it is about to do."""

    def point(self, point: Point) -> None:
        self.write_bytes(b"now taking a point\n")
        super().point(point)


if __name__ == "__main__":
    Prints().run()
