"""Read recordings: those of Kapacitor, and line protocol.

| file | content |
| --- | --- |
| stream recording (.srpl) | three lines a point: database, retention policy, line protocol |
| batch recording (.brpl) | a zip with a member for each query, or lines: each a batch as JSON |
| line protocol | a point a line; comments and blank lines are passed over |

Each may be compressed with gzip, and come from a file or from standard input. The format
is detected from the content unless it is named, and checked at every record. Files are read
piece by piece: memory holds one point, or one batch for each query.
"""

from kapudf_cli.tools.recordings.lines import Refuse
from kapudf_cli.tools.recordings.recording import Kind, Recording, open_recording

__all__ = ["Kind", "Recording", "Refuse", "open_recording"]
