"""Raises at a point that lacks its field, and so ends the task."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import ErrorResponse, Point
from tests.peers.plain_udf import PlainUdf


class FailsWithoutField(PlainUdf):
    """Raises at a point that lacks its field, and so ends the task."""

    def point(self, point: Point) -> None:
        if "value" not in point.fieldsDouble:
            self.write(ErrorResponse(error="KeyError: 'value'"))
        else:
            super().point(point)


if __name__ == "__main__":
    FailsWithoutField().run()
