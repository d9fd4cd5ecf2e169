"""Answers Info as if it were Init."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import InitResponse
from tests.peers.plain_udf import PlainUdf


class AnswersWithAnother(PlainUdf):
    """Answers Info as if it were Init."""

    def info(self) -> None:
        self.write(InitResponse(success=True))


if __name__ == "__main__":
    AnswersWithAnother().run()
