"""A real InfluxDB 1.x on loopback, with a temporary folder of its own."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import time
import urllib.parse
from base64 import b64encode
from typing import TYPE_CHECKING, Self

from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

USERNAME, PASSWORD = "reader", "p@ss:w/rd"

_CONFIG = """\
reporting-disabled = true
bind-address = "127.0.0.1:0"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
[http]
  bind-address = "127.0.0.1:0"
  auth-enabled = true
  log-enabled = false
[monitor]
  store-enabled = false
"""


class InfluxDaemon:
    """influxd with authentication, from `__enter__` to `__exit__`."""

    def __init__(self, folder: Path) -> None:
        """Keep all its files in `folder`."""
        self._folder = folder
        self._log = folder / "influxd.log"
        self.address = ""

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("influxd") is not None

    @property
    def url(self) -> str:
        """The URL of the database `plant`, with the user."""
        return f"influxdb://{USERNAME}:{urllib.parse.quote(PASSWORD, safe='')}@{self.address}/plant"

    def __enter__(self) -> Self:
        config = self._folder / "influxdb.conf"
        config.write_text(_CONFIG.format(folder=self._folder))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["influxd", "-config", str(config)], stdout=log, stderr=log
            )
        give_up_s = time.monotonic() + PATIENCE_S
        while not (found := re.search(r"Listening on HTTP.* addr=(\S+)", self._log.read_text())):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < give_up_s, self._log.read_text()
            time.sleep(0.02)
        self.address = found[1]
        self._request(
            "/query", q=f"CREATE USER {USERNAME} WITH PASSWORD '{PASSWORD}' WITH ALL PRIVILEGES"
        )
        self._request("/query", q="CREATE DATABASE plant")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def write(self, lines: Iterable[str]) -> None:
        """Write line protocol to the database."""
        self._request("/write", "\n".join(lines), db="plant")

    def _request(self, path: str, body: str = "", **parameters: str) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_S)
        account = b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        target = f"{path}?{urllib.parse.urlencode(parameters)}"
        connection.request("POST", target, body, {"Authorization": f"Basic {account}"})
        response = connection.getresponse()
        answer = response.read()
        assert response.status in {200, 204}, answer
        assert not answer or "error" not in json.dumps(json.loads(answer)), answer
        connection.close()
