"""Read recordings: those of Kapacitor, and line protocol.

| file | content |
| --- | --- |
| stream recording (.srpl) | three lines per point: database, retention policy, line protocol |
| batch recording (.brpl) | a zip with a member per query, or lines; each line is a batch as JSON |
| line protocol | one point per line; comments and blank lines are skipped |

Each may be compressed with gzip, and come from a file or from standard input. The format is
detected from the content unless it is given, and checked at every record. Files are read in
pieces: memory holds one point, or one batch per query.
"""
