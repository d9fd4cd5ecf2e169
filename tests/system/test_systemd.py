"""Notifications to systemd, received on a real socket."""

from __future__ import annotations

import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.system import systemd
from tests.serve_process import PATIENCE_S, ServeProcess

if TYPE_CHECKING:
    from pathlib import Path


def receiver(address: str) -> socket.socket:
    """Listen as systemd does."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.settimeout(PATIENCE_S)
    listener.bind(address)
    return listener


def test_a_notice_arrives_at_a_path(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(short_folder / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with receiver(path) as listener:
        systemd.notify("READY=1")
        assert listener.recv(64) == b"READY=1"


def test_a_notice_arrives_at_an_abstract_address(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"kapudf-test/{short_folder.name}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with receiver(f"\0{name}") as listener:
        systemd.notify("STOPPING=1")
        assert listener.recv(64) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["/nowhere/at/all", "relative", "x" * 200, "@" + "x" * 200])
def test_a_notice_that_cannot_be_delivered_is_no_error(
    address: str, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_folder)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")


def test_without_systemd_nothing_is_sent(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver(str(short_folder / "notify")) as listener:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        systemd.notify("READY=1")
        monkeypatch.setenv("NOTIFY_SOCKET", "")
        systemd.notify("READY=1")
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.recv(64)


def test_a_server_says_when_it_is_ready_and_when_it_stops(
    short_folder: Path, socket_path: str
) -> None:
    path = str(short_folder / "notify")
    arguments = ["--socket", socket_path, "--handler", "mirror"]
    with (
        receiver(path) as listener,
        ServeProcess(*arguments, env={"NOTIFY_SOCKET": path}) as process,
    ):
        notices = iter(lambda: listener.recv(64).decode(), "STOPPING=1")
        assert next(notices) == "READY=1"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(socket_path)
            process.event("connection started")
        process.event("connection finished")
        process.signal(signal.SIGHUP)
        process.event("new workers serve")
        assert process.stop() == 0
        told = list(notices)
    status = [each for each in told if each.startswith("STATUS=")]
    assert status[0] == "STATUS=serves 0 connections of 1 function"
    (begin,) = (place for place, each in enumerate(told) if each.startswith("RELOADING=1\n"))
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", told[begin])
    assert "READY=1" in told[begin:]


def test_the_watchdog_is_fed_while_the_loop_works(short_folder: Path, socket_path: str) -> None:
    path = str(short_folder / "notify")
    arguments = ["--socket", socket_path, "--handler", "mirror"]
    env = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000"}
    with receiver(path) as listener, ServeProcess(*arguments, env=env) as process:
        for _ in range(3):
            while listener.recv(64) != b"WATCHDOG=1":
                pass
        assert process.stop() == 0
