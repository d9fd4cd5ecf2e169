"""Whole recordings made by `kapacitor record`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from kapudf_cli.tools.recordings.recording import open_recording

if TYPE_CHECKING:
    from kapudf_cli import Point
    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.tools.errors import RecordingError

RECORDINGS = Path(__file__).parent.parent / "recordings"
STREAM = RECORDINGS / "stream.srpl"
BATCH = RECORDINGS / "batch.brpl"


def read_stream(path: Path) -> list[Point]:
    """Return the points of a .srpl."""
    return cast("list[Point]", _read(path))


def read_batches(path: Path) -> list[Batch]:
    """Return the batches of a .brpl."""
    return cast("list[Batch]", _read(path))


def _read(path: Path) -> list[Point | Batch]:
    def refuse(error: RecordingError) -> None:
        raise error

    with open_recording(str(path), precision="ns", refuse=refuse) as recording:
        return list(recording.records)
