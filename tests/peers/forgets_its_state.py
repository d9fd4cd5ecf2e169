"""Says that it has restored its snapshot, and has not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.protocol.udf_pb2 import RestoreResponse
from tests.peers.plain_udf import PlainUdf

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import RestoreRequest


class ForgetsItsState(PlainUdf):
    """Says that it has restored its snapshot, and has not."""

    def restore(self, request: RestoreRequest) -> None:
        del request
        self.write(RestoreResponse(success=True))


if __name__ == "__main__":
    ForgetsItsState().run()
