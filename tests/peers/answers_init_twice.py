"""Answers Init once when it comes, and once when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.peers.plain_udf import PlainUdf

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import InitRequest


class AnswersInitTwice(PlainUdf):
    """Answers Init once when it comes, and once when it is done."""

    def init(self, request: InitRequest) -> None:
        super().init(request)
        super().init(request)


if __name__ == "__main__":
    AnswersInitTwice().run()
