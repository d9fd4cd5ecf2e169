"""Wants an option, and does not say so."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import STRING, InfoResponse, InitRequest, InitResponse, OptionInfo
from tests.peers.plain_udf import PlainUdf


class RefusesInSilence(PlainUdf):
    """Wants an option, and does not say so."""

    def info(self) -> None:
        option = OptionInfo(valueTypes=[STRING])
        self.write(InfoResponse(wants=self.edge, provides=self.edge, options={"field": option}))

    def init(self, request: InitRequest) -> None:
        self.write(InitResponse(success=bool(request.options)))


if __name__ == "__main__":
    RefusesInSilence().run()
