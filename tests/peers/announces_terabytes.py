"""Announces a frame of four terabytes."""

from __future__ import annotations

from tests.peers.plain_udf import PlainUdf


class AnnouncesTerabytes(PlainUdf):
    """Announces a frame of four terabytes."""

    def info(self) -> None:
        self.write_bytes(b"\x80\x80\x80\x80\x80\x80\x01")  # 1 << 42 as a varint


if __name__ == "__main__":
    AnnouncesTerabytes().run()
