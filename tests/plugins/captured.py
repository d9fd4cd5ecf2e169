"""The mirror that was at the other end when the captures were made."""

from __future__ import annotations

from kapudf_cli import BATCH, Handler, Point
from kapudf_cli.protocol import (
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STRING,
    InfoResponse,
    OptionInfo,
    RestoreRequest,
    RestoreResponse,
    SnapshotResponse,
)

_OPTIONS = {
    "field": (STRING, DOUBLE),
    "enabled": (BOOL,),
    "size": (INT,),
    "scale": (DOUBLE,),
    "as": (STRING,),
    "every": (DURATION,),
    "tag": (STRING, STRING),
    "empty": (),
}


class StreamMirror(Handler):
    """Sends every point back untouched."""

    def info(self) -> InfoResponse:
        info = super().info()
        for name, types in _OPTIONS.items():
            info.options[name].CopyFrom(OptionInfo(valueTypes=types))
        return info

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)

    def snapshot(self) -> SnapshotResponse:
        return SnapshotResponse(snapshot=b"state")

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        return RestoreResponse(success=bool(request.snapshot))


class BatchMirror(StreamMirror):
    """Sends every batch back untouched."""

    wants = BATCH
    provides = BATCH
