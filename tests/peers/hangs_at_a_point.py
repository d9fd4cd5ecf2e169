"""A process UDF that sends its first point back and then hangs."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from kapudf_cli.protocol.udf_pb2 import Point
from tests.peers.plain_udf import PlainUdf

if TYPE_CHECKING:
    from kapudf_cli.protocol.codec import RequestMessage


class HangsAtAPoint(PlainUdf):
    """Handles one point, and no request after it."""

    def take(self, request: RequestMessage) -> None:
        super().take(request)
        self.flush()
        if isinstance(request, Point):
            signal.pause()


if __name__ == "__main__":
    HangsAtAPoint().run()
