"""Answers a keepalive long after Kapacitor has given it up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.peers.plain_udf import PlainUdf

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import KeepaliveRequest


class AnswersKeepalivesLate(PlainUdf):
    """Answers a keepalive long after Kapacitor has given it up."""

    def keepalive(self, request: KeepaliveRequest) -> None:
        time.sleep(60)
        super().keepalive(request)


if __name__ == "__main__":
    AnswersKeepalivesLate().run()
