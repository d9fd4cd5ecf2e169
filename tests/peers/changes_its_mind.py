"""Has another option in each process."""

from __future__ import annotations

import os

from kapudf_cli.protocol.udf_pb2 import STRING, InfoResponse, OptionInfo
from tests.peers.plain_udf import PlainUdf


class ChangesItsMind(PlainUdf):
    """Has another option in each process."""

    def info(self) -> None:
        option = OptionInfo(valueTypes=[STRING])
        options = {f"option{os.getpid()}": option}
        self.write(InfoResponse(wants=self.edge, provides=self.edge, options=options))


if __name__ == "__main__":
    ChangesItsMind().run()
