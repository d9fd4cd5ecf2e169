"""Answers in plain words."""

from __future__ import annotations

from tests.peers.plain_udf import PlainUdf


class Garbage(PlainUdf):
    """Answers in plain words."""

    def info(self) -> None:
        self.write_bytes(b"This is a UDF that mirrors points.\n")


if __name__ == "__main__":
    Garbage().run()
