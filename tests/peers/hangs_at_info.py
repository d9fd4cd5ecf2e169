"""Never says what it is."""

from __future__ import annotations

import time

from tests.peers.plain_udf import PlainUdf


class HangsAtInfo(PlainUdf):
    """Never says what it is."""

    def info(self) -> None:
        time.sleep(60)


if __name__ == "__main__":
    HangsAtInfo().run()
