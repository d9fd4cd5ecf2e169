"""Sends keepalives without end, and no answer."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import KeepaliveResponse
from tests.peers.plain_udf import PlainUdf


class KeepalivesForEver(PlainUdf):
    """Sends keepalives without end, and no answer."""

    def info(self) -> None:
        while True:
            self.write(KeepaliveResponse(time=1))
            self.flush()


if __name__ == "__main__":
    KeepalivesForEver().run()
