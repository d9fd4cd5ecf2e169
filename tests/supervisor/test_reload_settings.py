"""Reloads without worker processes: which sockets pass to which function, and when."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs

from kapudf_cli.config import FunctionSettings, Settings
from kapudf_cli.errors import ConfigError
from kapudf_cli.supervisor import functions as functions_module
from kapudf_cli.supervisor.errors import ControlError
from kapudf_cli.supervisor.pool import Pool
from kapudf_cli.supervisor.reload import Reloader
from kapudf_cli.supervisor.replacement import Reloaded
from kapudf_cli.system import logs
from kapudf_cli.system.errors import SocketPathError
from tests.supervisor.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kapudf_cli.supervisor.functions import Functions

#: The socket and the handler of each function.
Served = dict[str, tuple[str, str]]


class Workers:
    """Replaces the workers of all pools: they start and reload when the test says so.

    Attributes:
        ready: the pools whose workers have loaded the handler.
        reloads: the pools that are reloading, with the settings.
        reloaded: the names of the pools, each time that a reload began.
        started: the names of the pools that were started.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ready: set[Pool] = set()
        self.reloads: dict[Pool, FunctionSettings] = {}
        self.results: dict[Pool, list[Reloaded]] = {}
        self.reloaded: list[str] = []
        self.started: list[str] = []
        self._starting: set[Pool] = set()

        def start(pool: Pool) -> None:
            self.started.append(pool.name)
            self._starting.add(pool)

        def reload(pool: Pool, settings: FunctionSettings) -> None:
            self.reloaded.append(pool.name)
            self.reloads[pool] = settings

        def take_results(pool: Pool) -> list[Reloaded]:
            return self.results.pop(pool, [])

        monkeypatch.setattr(Pool, "start", start)
        monkeypatch.setattr(Pool, "reload", reload)
        monkeypatch.setattr(Pool, "take_reload_results", take_results)
        for name, answer in {
            "is_ready": lambda pool: pool in self.ready,
            "is_settled": lambda pool: pool in self.ready,
            "is_reloading": lambda pool: pool in self.reloads,
            "starting": lambda pool: int(pool in self.reloads or pool in self._starting),
        }.items():
            monkeypatch.setattr(Pool, name, property(answer))

    @property
    def are_busy(self) -> bool:
        """Whether anything starts or reloads."""
        return bool(self._starting or self.reloads)

    def finish_starts(self) -> None:
        """Make every started pool ready."""
        self.ready |= self._starting
        self._starting.clear()

    def finish_reloads(self) -> None:
        """Let every current reload succeed."""
        reloads, self.reloads = self.reloads, {}
        for pool, settings in reloads.items():
            pool.settings = settings
            self.results.setdefault(pool, []).append(Reloaded())


class File:
    """A configuration file that changes, and the functions that are served from it."""

    def __init__(self, folder: Path, loop: Loop, workers: Workers) -> None:
        self.folder = folder
        self.workers = workers
        self.loop = loop

    def serve(self, served: Served) -> None:
        """Serve functions, until all are ready."""
        self.write(served)
        self.functions: Functions = self.loop.bind_functions(self.settings)
        self.reloading: Reloader[int] = Reloader[int](self.functions, self.read, logs.get_logger())
        self.settle()

    def read(self) -> Settings:
        return self.settings

    def write(self, served: Served, **changes: object) -> None:
        """Write other functions, with other settings than the default ones."""
        functions = {
            name: msgspec.structs.replace(
                FunctionSettings(handler=handler, socket=str(self.folder / path)), **changes
            )
            for name, (path, handler) in served.items()
        }
        self.settings = Settings(functions=functions, grace_period_s=3.0)

    def turn(self) -> None:
        """Run one turn of the supervisor's loop."""
        self.functions.start()
        self.reloading.step()
        self.functions.listen_where_ready()
        self.functions.forget_ended()

    def settle(self) -> None:
        """Run the loop until all starts and reloads have finished."""
        while True:
            self.turn()
            if not self.workers.are_busy:
                break
            self.workers.finish_starts()
            self.workers.finish_reloads()
        self.turn()

    def users(self) -> dict[str, Pool]:
        """Return the function that accepts the connections at each path."""
        return {
            os.path.basename(each.socket_file.path): each.user.pool
            for each in self.functions._sockets
            if each.user is not None and each.listens
        }

    def paths(self) -> set[str]:
        """Return the paths of the functions' sockets, without control sockets."""
        return {name for name in os.listdir(self.folder) if "." not in name}

    def pool(self, name: str) -> Pool:
        function = self.functions.get(name)
        assert function is not None
        return function.pool


@pytest.fixture
def file(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[File]:
    """Give a configuration file that is not served yet."""
    with Loop() as loop:
        yield File(short_folder, loop, Workers(monkeypatch))


#: The client of a reload that does not start.
NO_CLIENT = 0

#: Functions before and after a reload, and for each new one, the old function whose connections
#: it keeps; None for none.
CHANGES: dict[str, tuple[Served, Served, dict[str, str | None]]] = {
    "nothing": ({"f": ("1", "a")}, {"f": ("1", "a")}, {"f": "f"}),
    "another handler": ({"f": ("1", "a")}, {"f": ("1", "b")}, {"f": "f"}),
    "one more": ({"f": ("1", "a")}, {"f": ("1", "a"), "g": ("2", "a")}, {"f": "f", "g": None}),
    "one less": ({"f": ("1", "a"), "g": ("2", "a")}, {"f": ("1", "a")}, {"f": "f"}),
    "renamed": ({"f": ("1", "a")}, {"g": ("1", "a")}, {"g": "f"}),
    "two names change places": (
        {"f": ("1", "a"), "g": ("2", "b")},
        {"f": ("2", "a"), "g": ("1", "b")},
        {"f": "f", "g": "g"},
    ),
    "another function at the same path": ({"f": ("1", "a")}, {"g": ("1", "b")}, {"g": None}),
    "moved": ({"f": ("1", "a")}, {"f": ("2", "a")}, {"f": "f"}),
    "moved and renamed": ({"f": ("1", "a")}, {"g": ("2", "a")}, {"g": None}),
    "moved to the path of one that goes": (
        {"f": ("1", "a"), "g": ("2", "b")},
        {"f": ("2", "a")},
        {"f": "f"},
    ),
    "moved to the path of one that moves": (
        {"f": ("1", "a"), "g": ("2", "b")},
        {"f": ("2", "a"), "g": ("3", "b")},
        {"f": "f", "g": "g"},
    ),
    "three in a circle": (
        {"f": ("1", "a"), "g": ("2", "b"), "h": ("3", "c")},
        {"f": ("2", "a"), "g": ("3", "b"), "h": ("1", "c")},
        {"f": "f", "g": "g", "h": "h"},
    ),
    "a new one at the path of one that moves": (
        {"f": ("1", "a")},
        {"f": ("2", "a"), "g": ("1", "b")},
        {"f": "f", "g": None},
    ),
    "renamed, and another one with the old name": (
        {"f": ("1", "a")},
        {"f": ("2", "a"), "g": ("1", "a")},
        {"f": "f", "g": None},
    ),
    "two renamed at once": (
        {"f": ("1", "a"), "g": ("2", "a")},
        {"x": ("2", "a"), "y": ("1", "a")},
        {"x": "g", "y": "f"},
    ),
}


@pytest.mark.parametrize(("before", "after", "continued"), CHANGES.values(), ids=CHANGES)
def test_no_path_is_unserved_for_a_moment(
    file: File, before: Served, after: Served, continued: dict[str, str | None]
) -> None:
    file.serve(before)
    pools = {name: file.pool(name) for name in before}
    kept = {path for path, _ in before.values()} & {path for path, _ in after.values()}
    inodes = {path: os.stat(file.folder / path).st_ino for path in kept}
    file.write(after)
    file.reloading.reload_all()
    file.turn()
    # New functions are not ready, so the old ones still serve all paths that stay.
    users = file.users()
    assert kept <= users.keys()
    assert all(pool in file.workers.ready for pool in users.values())
    for path in kept:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(file.folder / path))
    file.settle()
    for name, old in continued.items():
        pool = file.pool(name)
        assert pool.name == name
        assert pool is pools.get(old or "") or (old is None and pool not in pools.values())
        assert file.users()[after[name][0]] is pool
        assert pool.settings == file.settings.functions[name]
    assert file.functions.names() == after.keys()
    assert file.paths() == {path for path, _ in after.values()}
    assert {path: os.stat(file.folder / path).st_ino for path in kept} == inodes
    assert set(file.functions.pools()) == {file.pool(name) for name in after}
    assert file.functions.settings.grace_period_s == 3.0


def test_a_function_goes_on_if_its_successor_never_gets_ready(file: File) -> None:
    file.serve({"f": ("1", "a")})
    pool = file.pool("f")
    file.write({"g": ("1", "b")})
    file.reloading.reload_all()
    file.turn()
    assert file.users() == {"1": pool}
    file.write({"f": ("1", "a")})
    file.reloading.reload_all()
    file.settle()
    assert file.users() == {"1": pool}
    assert file.functions.names() == {"f"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"socket": "/no/such/folder/x"}, "/no/such/folder"),
        ({"socket_group": "no-such-group"}, "no-such-group"),
        ({"socket": "/dev/null"}, "/dev/null"),
    ],
)
def test_a_reload_that_cannot_be_prepared_for_one_changes_nothing_for_any(
    file: File, changes: dict[str, str], said: str
) -> None:
    file.serve({"f": ("1", "a"), "g": ("2", "a")})
    before, pools = file.functions.settings, file.functions.pools()
    file.write({"new": ("3", "a"), "renamed": ("1", "a"), "g": ("2", "a")}, socket_mode="0600")
    wrong = msgspec.structs.replace(file.settings.functions["g"], **changes)
    file.settings.functions["g"] = wrong
    with capture_logs() as events:
        file.reloading.reload_all()
    (event,) = events
    assert event["event"] == "reload failed, everything goes on as it was"
    assert said in event["error"]
    file.turn()
    assert file.functions.settings is before
    assert file.functions.pools() == pools
    assert file.functions.names() == {"f", "g"}
    assert file.paths() == {"1", "2"}
    for path in ("1", "2", "1.control", "2.control"):
        assert os.stat(file.folder / path).st_mode & 0o777 == 0o660
    assert not file.workers.reloads


def test_the_access_rights_are_those_of_the_settings(file: File) -> None:
    file.serve({"f": ("1", "a")})
    file.write({"f": ("1", "a")}, socket_mode="0600")
    file.reloading.reload_all()
    for path in ("1", "1.control"):
        assert os.stat(file.folder / path).st_mode & 0o777 == 0o600


def wrong() -> Settings:
    raise ConfigError("the file", ["what a thing to write"])


def broken() -> Settings:
    raise RecursionError


@pytest.mark.parametrize(
    ("read", "kind", "said"),
    [
        (wrong, ConfigError, "what a thing to write"),
        (broken, ControlError, "RecursionError"),
        (
            lambda: Settings(
                functions={"f": FunctionSettings(handler="a", socket="/x", workers=0)}
            ),
            ConfigError,
            "workers: 0 needs a restart",
        ),
    ],
    ids=["wrong settings", "a fault", "no workers"],
)
def test_settings_that_cannot_be_change_nothing(
    file: File, read: Callable[[], Settings], kind: type[Exception], said: str
) -> None:
    file.serve({"f": ("1", "a")})
    before = file.functions.settings
    file.reloading = Reloader[int](file.functions, read, logs.get_logger())
    with pytest.raises(kind, match=said):
        file.reloading.reload_one("f", NO_CLIENT)
    with capture_logs() as events:
        file.reloading.reload_all()
    assert [each["event"] for each in events] == ["reload failed, everything goes on as it was"]
    assert said in events[0]["error"]
    assert file.functions.settings is before
    assert not file.workers.reloads


# --- one function ---


def test_one_alone_is_neither_removed_nor_moved(file: File) -> None:
    file.serve({"a": ("1", "a"), "b": ("2", "a")})
    file.write({"b": ("moved", "a")})
    gone = "a is no longer in the configuration; SIGHUP removes or renames it"
    with pytest.raises(ControlError, match=gone):
        file.reloading.reload_one("a", NO_CLIENT)
    with pytest.raises(ControlError, match="the socket of b is another one now; SIGHUP moves it"):
        file.reloading.reload_one("b", NO_CLIENT)
    assert file.paths() == {"1", "2"}
    assert not file.workers.reloads


def test_a_function_that_cannot_be_prepared_is_logged_and_reported(file: File) -> None:
    file.serve({"a": ("1", "a")})
    file.write({"a": ("1", "a")}, socket_group="no-such-group", socket_mode="0600")
    with capture_logs() as events, pytest.raises(SocketPathError, match="no-such-group"):
        file.reloading.reload_one("a", NO_CLIENT)
    assert [(each["event"], each["function"]) for each in events] == [
        ("reload failed, everything goes on as it was", "a")
    ]
    assert os.stat(file.folder / "1").st_mode & 0o777 == 0o660


# --- many at once ---


def test_reloads_of_all_that_come_during_one_are_one_more(file: File) -> None:
    file.serve({"a": ("1", "a"), "b": ("2", "a")})
    reads = []

    def read() -> Settings:
        reads.append(1)
        return file.settings

    file.reloading = Reloader[int](file.functions, read, logs.get_logger())
    for _ in range(7):
        file.reloading.reload_all()
        file.turn()
    assert sorted(file.workers.reloaded) == ["a", "b"]
    file.settle()
    assert sorted(file.workers.reloaded) == ["a", "a", "b", "b"]
    assert len(reads) == 2
    assert not file.reloading.is_waiting


def test_each_client_gets_the_result_of_a_reload_that_began_after_its_request(
    file: File,
) -> None:
    file.serve({"a": ("1", "a")})
    for number in range(5):
        file.reloading.reload_one("a", number)
    assert file.workers.reloaded == ["a"]
    file.workers.finish_reloads()
    file.reloading.step()
    assert [each.clients for each in file.reloading.take_results()] == [[0]]
    file.settle()
    assert [each.clients for each in file.reloading.take_results()] == [[1, 2, 3, 4]]
    assert file.workers.reloaded == ["a", "a"]


def test_a_few_functions_start_at_once(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions_module, "_MAX_STARTING", 4)
    served = {f"f{number}": (str(number), "a") for number in range(60)}
    file.write(served)
    file.functions = file.loop.bind_functions(file.settings)
    file.reloading = Reloader[int](file.functions, file.read, logs.get_logger())
    file.turn()
    assert len(file.workers.started) == 4
    file.settle()
    assert sorted(file.workers.started) == sorted(served)
    for _ in range(7):
        file.reloading.reload_all()
        file.turn()
        assert len(file.workers.reloads) == 4
    file.settle()
    assert len(file.workers.reloaded) == 2 * 60


def test_a_stop_comes_before_the_reloads_that_wait(file: File) -> None:
    file.serve({"a": ("1", "a")})
    file.reloading.reload_one("a", 1)
    file.reloading.reload_one("a", 2)
    file.reloading.reload_all()
    file.functions.stop_listening()
    file.workers.finish_reloads()
    file.reloading.step()
    results = {each.clients[0]: each.reloaded for each in file.reloading.take_results()}
    assert results[1].problem is None
    assert results[2].problem == "kapudf was told to stop, and reloads nothing any more"
    assert file.workers.reloaded == ["a"]
    with pytest.raises(ControlError, match="told to stop"):
        file.reloading.reload_one("a", NO_CLIENT)
