"""Looks each option up in a dictionary that does not have all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.peers.plain_udf import PlainUdf

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import InitRequest


class DiesOfAnOption(PlainUdf):
    """Looks each option up in a dictionary that does not have all."""

    def init(self, request: InitRequest) -> None:
        fields = {"field": 1}
        for option in request.options:
            fields[option.name] += 1
        super().init(request)


if __name__ == "__main__":
    DiesOfAnOption().run()
