"""Has an option that no TICKscript can call."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import STRING, InfoResponse, OptionInfo
from tests.peers.plain_udf import PlainUdf


class DeclaresNoName(PlainUdf):
    """Has an option that no TICKscript can call."""

    def info(self) -> None:
        option = OptionInfo(valueTypes=[STRING])
        self.write(InfoResponse(wants=self.edge, provides=self.edge, options={"my-field": option}))


if __name__ == "__main__":
    DeclaresNoName().run()
