"""Says that it provides a stream, and sends batches."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from tests.peers.plain_udf import PlainUdf


class BatchesIntoAStream(PlainUdf):
    """Says that it provides a stream, and sends batches."""

    def point(self, point: Point) -> None:
        self.write(BeginBatch(name="cpu", size=1))
        self.write(point)
        self.write(EndBatch(name="cpu"))


if __name__ == "__main__":
    BatchesIntoAStream().run()
