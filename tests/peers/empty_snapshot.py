"""Restores no snapshot that it gave before any data had come."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import RestoreRequest, RestoreResponse
from tests.peers.plain_udf import PlainUdf


class EmptySnapshot(PlainUdf):
    """Restores no snapshot that it gave before any data had come."""

    def restore(self, request: RestoreRequest) -> None:
        if int.from_bytes(request.snapshot) == 0:
            self.write(RestoreResponse(success=False, error="the snapshot is empty"))
        else:
            super().restore(request)


if __name__ == "__main__":
    EmptySnapshot().run()
