"""`kapudf serve`: flags, environment, configuration file and errors."""

from __future__ import annotations

import contextlib
import grp
import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.client.driver import KapacitorSide, probe
from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse, Point
from kapudf_cli.system.peers import peer_credentials
from tests.conftest import plugin
from tests.plugins.distributions import PLAIN, environment, install
from tests.plugins.unprivileged import run_unprivileged
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S, ServeProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Only the length of a frame, which exceeds all limits.
HUGE_FRAME = b"\xff\xff\xff\xff\x0f"


#: `kapudf` on a system whose kernel does not count the bytes read from a socket.
ELSEWHERE = (
    sys.executable,
    "-c",
    (
        "from kapudf_cli.journal import kernel as r; r._SO_PEEK_OFF = 9999; "
        "from kapudf_cli.commands import main; main()"
    ),
)


def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `kapudf serve` until it exits by itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KAPUDF_")}
    return run_kapudf("serve", *arguments, env={**kept, "KAPUDF_KEEPER": "0", **(env or {})})


def refusal(*arguments: str, status: int = 2, env: Mapping[str, str] | None = None) -> str:
    """Return the error of `kapudf serve`, which prints nothing to stdout."""
    result = run(*arguments, env=env)
    assert (result.returncode, result.stdout) == (status, ""), result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def groups() -> list[str]:
    """Return three groups to which this process may assign files."""
    allowed = None if os.geteuid() == 0 else {os.getegid(), *os.getgroups()}
    found = [
        entry.gr_name for entry in grp.getgrall() if allowed is None or entry.gr_gid in allowed
    ]
    if len(found) < 3:
        pytest.skip("this user has too few groups")
    return found[-3:]


def leave_stale(path: str) -> None:
    """Create a stale socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)


def write_config(folder: Path, functions: object, **top: object) -> str:
    """Write a configuration file and return its path."""
    file = folder / "kapudf.yaml"
    # JSON is YAML.
    file.write_text(json.dumps({"functions": functions, **top}), encoding="utf-8")
    return str(file)


@contextlib.contextmanager
def serving(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[ServeProcess]:
    """Start `kapudf serve` with these flags and variables, and wait until it is ready."""
    with ServeProcess(*arguments, env=env) as process:
        yield process.ready()


def observed(process: ServeProcess, path: str) -> dict[str, Any]:
    """Stop a server, and return its settings as seen from outside."""
    found = os.stat(path)
    listening = process.event("listening")
    with KapacitorSide.connect(path, timeout_s=PATIENCE_S) as side:
        side.send_bytes(HUGE_FRAME)
        error = process.event("connection finished", reason="protocol_error")["error"]
    assert process.stop() == 0
    return {
        "handler": listening["handler"],
        "socket": listening["socket"],
        "socket_mode": f"{stat.S_IMODE(found.st_mode):04o}",
        "socket_group": grp.getgrgid(found.st_gid).gr_name,
        "max_frame_bytes": int(error.split("max_frame_bytes is ")[1].split()[0]),
        "grace_period_s": process.event("stopping")["grace_period_s"],
    }


# --- flags beat the environment, which beats the file, which beats the defaults ---


class Sources:
    """Each setting's value in the file, in the environment and on the command line."""

    def __init__(self, folder: Path) -> None:
        """Set each setting to different values in the file, the environment and the flags."""
        self.folder = folder
        by_file, by_environment, by_flag = groups()
        captured = plugin("captured.py")
        self.in_file: dict[str, Any] = {
            "handler": f"{captured}:StreamMirror",
            "socket": str(folder / "file.sock"),
            "socket_mode": "0600",
            "socket_group": by_file,
            "max_frame_bytes": 2001,
            "grace_period_s": 1.5,
        }
        self.in_environment: dict[str, Any] = {
            "handler": f"{captured}:BatchMirror",
            "socket": str(folder / "environment.sock"),
            "socket_mode": "0640",
            "socket_group": by_environment,
            "max_frame_bytes": 2002,
            "grace_period_s": 2.5,
        }
        self.in_flags: dict[str, Any] = {
            "handler": "mirror",
            "socket": str(folder / "flag.sock"),
            "socket_mode": "0666",
            "socket_group": by_flag,
            "max_frame_bytes": 2003,
            "grace_period_s": 3.5,
        }

    def config(self, *names: str) -> list[str]:
        """Return the flag for a file that has these settings."""
        function = {name: self.in_file[name] for name in names if name != "grace_period_s"}
        top = {name: self.in_file[name] for name in names if name == "grace_period_s"}
        return ["--config", write_config(self.folder, {"f": function}, **top)]

    def environment(self, *names: str) -> dict[str, str]:
        """Return the variables for these settings."""
        return {
            f"KAPUDF_{name.removesuffix('_s').upper()}": str(self.in_environment[name])
            for name in names
        }

    def flags(self, *names: str) -> list[str]:
        """Return the flags for these settings."""
        return [
            word
            for name in names
            for word in (
                f"--{name.removesuffix('_s').replace('_', '-')}",
                str(self.in_flags[name]),
            )
        ]


def shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as `observed` shows them: a handler by the name of its class."""
    handler = settings["handler"].rpartition(":")[2].replace("mirror", "Mirror")
    return {**settings, "handler": handler}


@pytest.fixture
def sources(short_folder: Path) -> Sources:
    """Return three sources of settings."""
    return Sources(short_folder)


def test_two_flags_are_enough(socket_path: str) -> None:
    with serving("--socket", socket_path, "--handler", "mirror") as process:
        assert observed(process, socket_path) == {
            "handler": "Mirror",
            "socket": socket_path,
            "socket_mode": "0660",
            "socket_group": grp.getgrgid(os.getegid()).gr_name,
            "max_frame_bytes": 64 * 1024 * 1024,
            "grace_period_s": 10.0,
        }


def test_the_file_beats_the_defaults(sources: Sources) -> None:
    with serving(*sources.config(*sources.in_file)) as process:
        assert observed(process, sources.in_file["socket"]) == shown(sources.in_file)


def test_the_environment_beats_the_file(sources: Sources) -> None:
    arguments = sources.config(*sources.in_file)
    with serving(*arguments, env=sources.environment(*sources.in_environment)) as process:
        found = observed(process, sources.in_environment["socket"])
    assert found == shown(sources.in_environment)


def test_flags_beat_the_environment_and_the_file(sources: Sources) -> None:
    arguments = [*sources.config(*sources.in_file), *sources.flags(*sources.in_flags)]
    with serving(*arguments, env=sources.environment(*sources.in_environment)) as process:
        assert observed(process, sources.in_flags["socket"]) == shown(sources.in_flags)


def test_the_environment_alone_is_enough(sources: Sources) -> None:
    with serving(env=sources.environment(*sources.in_environment)) as process:
        found = observed(process, sources.in_environment["socket"])
    assert found == shown(sources.in_environment)


def test_each_setting_comes_from_the_strongest_source_that_has_it(sources: Sources) -> None:
    arguments = [
        *sources.config("handler", "socket", "socket_mode", "grace_period_s"),
        *sources.flags("socket_mode"),
    ]
    with serving(*arguments, env=sources.environment("max_frame_bytes")) as process:
        found = observed(process, sources.in_file["socket"])
    assert found == {
        **shown(sources.in_file),
        "socket_mode": sources.in_flags["socket_mode"],
        "socket_group": grp.getgrgid(os.getegid()).gr_name,
        "max_frame_bytes": sources.in_environment["max_frame_bytes"],
    }


def test_the_file_may_be_named_by_the_environment(sources: Sources) -> None:
    _, file = sources.config(*sources.in_file)
    with serving(env={"KAPUDF_CONFIG": file}) as process:
        assert process.event("listening")["socket"] == sources.in_file["socket"]


@pytest.mark.parametrize(
    ("said", "removed"),
    [
        ((None, None, None), False),
        ((False, None, None), False),
        ((True, None, None), True),
        ((False, "true", None), True),
        ((True, "false", None), False),
        ((True, "0", None), False),
        ((None, "1", None), True),
        ((False, None, "--remove-stale"), True),
        ((True, None, "--keep-stale"), False),
        ((False, "false", "--remove-stale"), True),
        ((True, "true", "--keep-stale"), False),
    ],
)
def test_whether_stale_sockets_are_removed_has_the_same_order(
    socket_path: str,
    short_folder: Path,
    said: tuple[bool | None, str | None, str | None],
    *,
    removed: bool,
) -> None:
    in_file, variable, flag = said
    leave_stale(socket_path)
    function: dict[str, object] = {"handler": "mirror", "socket": socket_path}
    if in_file is not None:
        function["remove_stale"] = in_file
    arguments = ["--config", write_config(short_folder, {"f": function})]
    if flag is not None:
        arguments.append(flag)
    env = {} if variable is None else {"KAPUDF_REMOVE_STALE": variable}
    if removed:
        with serving(*arguments, env=env) as process:
            assert process.stop() == 0
    else:
        assert "--remove-stale" in refusal(*arguments, status=1, env=env)


def import_failure(
    folder: Path, in_file: str | None, variable: str | None, flag: str | None, setting: str
) -> str:
    """Return the log of a server that cannot import its handler; at level debug it is long."""
    broken = folder / "broken.py"
    broken.write_text("raise RuntimeError('broken')\n")
    function = {"handler": f"{broken}:Broken", "socket": str(folder / "udf.sock")}
    top = {"log_level": "debug", "log_format": "json"}
    if in_file is None:
        del top[setting]
    else:
        top[setting] = in_file
    arguments = ["--config", write_config(folder, {"f": function}, **top)]
    if flag is not None:
        arguments += [f"--{setting.replace('_', '-')}", flag]
    env = {} if variable is None else {f"KAPUDF_{setting.upper()}": variable}
    return run(*arguments, env=env).stderr


@pytest.mark.parametrize(
    ("in_file", "variable", "flag", "traceback"),
    [
        (None, None, None, False),
        ("debug", None, None, True),
        ("debug", "error", None, False),
        ("error", "debug", None, True),
        ("debug", "debug", "info", False),
        ("info", "info", "debug", True),
    ],
)
def test_the_log_level_has_the_same_order(
    short_folder: Path,
    in_file: str | None,
    variable: str | None,
    flag: str | None,
    *,
    traceback: bool,
) -> None:
    logged = import_failure(short_folder, in_file, variable, flag, "log_level")
    assert ("Traceback" in logged) is traceback


@pytest.mark.parametrize(
    ("in_file", "variable", "flag", "is_json"),
    [
        (None, None, None, True),
        ("console", None, None, False),
        ("console", "json", None, True),
        ("json", "console", None, False),
        ("console", "console", "json", True),
        ("json", "json", "console", False),
        ("console", "console", "auto", True),
    ],
)
def test_the_log_format_has_the_same_order(
    short_folder: Path,
    in_file: str | None,
    variable: str | None,
    flag: str | None,
    *,
    is_json: bool,
) -> None:
    logged = import_failure(short_folder, in_file, variable, flag, "log_format")
    assert ("\n    Traceback (most recent call last):\n" in logged) is not is_json
    assert logged.startswith("{") is is_json


# --- several functions ---


def test_one_process_serves_every_function_of_the_file(short_folder: Path) -> None:
    captured = plugin("captured.py")
    first, second = str(short_folder / "1.sock"), str(short_folder / "2.sock")
    file = write_config(
        short_folder,
        {
            "first": {"handler": "mirror", "socket": first, "socket_mode": "0600"},
            "second": {"handler": f"{captured}:BatchMirror", "socket": second},
        },
    )
    with serving("--config", file) as process:
        process.event("listening", function="first", socket=first, handler="Mirror")
        process.event("listening", function="second", socket=second, handler="BatchMirror")
        assert set(probe(first, timeout_s=PATIENCE_S).info.options) == {"field", "tag"}
        assert "every" in probe(second, timeout_s=PATIENCE_S).info.options
        assert stat.S_IMODE(os.stat(first).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(second).st_mode) == 0o660
        process.event("connection finished", function="first")
        process.event("connection finished", function="second")
        assert process.stop() == 0
    assert sorted(os.listdir(short_folder)) == ["kapudf.yaml"]


def test_a_flag_counts_for_every_function(short_folder: Path) -> None:
    paths = [str(short_folder / f"{number}.sock") for number in range(3)]
    functions = {
        f"f{number}": {"handler": "mirror", "socket": path, "socket_mode": "0600"}
        for number, path in enumerate(paths)
    }
    file = write_config(short_folder, functions)
    with serving("--config", file, "--socket-mode", "0666") as process:
        process.await_events("listening", 3)
        assert {stat.S_IMODE(os.stat(path).st_mode) for path in paths} == {0o666}


@pytest.mark.parametrize("flag", ["--socket", "--handler"])
def test_a_flag_for_one_function_is_refused_where_there_are_several(
    short_folder: Path, flag: str
) -> None:
    functions = {
        name: {"handler": "mirror", "socket": str(short_folder / name)} for name in ("a", "b")
    }
    file = write_config(short_folder, functions)
    said = refusal("--config", file, flag, "x")
    named = f"{flag} (or KAPUDF_{flag[2:].upper()})"
    assert said == f"Error: {file}: functions: there are 2, and {named} can only be used with one\n"


@pytest.mark.parametrize("handler", ["miror", "kapudf_handlers.mirror:Miror"])
def test_where_one_function_cannot_be_served_none_is(short_folder: Path, handler: str) -> None:
    file = write_config(
        short_folder,
        {
            "good": {"handler": "mirror", "socket": str(short_folder / "good.sock")},
            "bad": {"handler": handler, "socket": str(short_folder / "bad.sock")},
        },
    )
    result = run("--config", file)
    assert result.returncode in (1, 2)
    assert result.stderr.startswith("Error: ")
    assert os.listdir(short_folder) == ["kapudf.yaml"]


def test_a_function_is_called_after_its_socket(short_folder: Path) -> None:
    path = str(short_folder / "my-mirror.sock")
    with serving("--socket", path, "--handler", "mirror") as process:
        assert process.event("listening")["function"] == "my_mirror"


# --- wrong values ---


@pytest.mark.parametrize("arguments", [[], ["--socket", "/x.sock"], ["--handler", "mirror"]])
def test_without_a_function_there_is_nothing_to_serve(arguments: list[str]) -> None:
    said = refusal(*arguments)
    assert "give --socket and --handler, or a --config file" in said


WRONG = [
    ("socket-mode", "660", "four octal digits such as 0660"),
    ("socket-mode", "0o660", "four octal digits such as 0660"),
    ("socket-mode", "rw-rw----", "four octal digits such as 0660"),
    ("max-frame-bytes", "1023", "a number of bytes from 1024 to 4294967295"),
    ("max-frame-bytes", "4294967296", "a number of bytes from 1024 to 4294967295"),
    ("max-frame-bytes", "64M", "integer"),
    ("grace-period", "-1", "a number of seconds from 0 to 3600"),
    ("grace-period", "3601", "a number of seconds from 0 to 3600"),
    ("grace-period", "nan", "a number of seconds from 0 to 3600"),
    ("grace-period", "inf", "a number of seconds from 0 to 3600"),
    ("grace-period", "soon", "float"),
    ("log-format", "xml", "'auto', 'console', 'json'"),
    ("log-level", "loud", "'debug', 'info', 'warning', 'error'"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_flag_is_named_with_what_it_takes(
    socket_path: str, name: str, value: str, expected: str
) -> None:
    said = refusal("--socket", socket_path, "--handler", "mirror", f"--{name}={value}")
    assert f"Invalid value for '--{name}'" in said
    assert value in said
    assert expected in said
    assert not os.path.lexists(socket_path)


@pytest.mark.parametrize(
    ("name", "value", "expected"), [*WRONG, ("remove-stale", "maybe", "boolean")]
)
def test_a_wrong_variable_is_named_with_what_it_takes(
    socket_path: str, name: str, value: str, expected: str
) -> None:
    variable = f"KAPUDF_{name.upper().replace('-', '_')}"
    said = refusal("--socket", socket_path, "--handler", "mirror", env={variable: value})
    assert variable in said
    assert value in said
    assert expected in said


@pytest.mark.parametrize("name", ["socket", "handler"])
def test_an_empty_flag_is_refused(socket_path: str, name: str) -> None:
    good = {"socket": socket_path, "handler": "mirror"}
    arguments = [f"--{key}={'' if key == name else value}" for key, value in good.items()]
    assert f"Invalid value for '--{name}'" in refusal(*arguments)


def test_a_fault_of_the_file_is_a_line_with_its_place(short_folder: Path) -> None:
    file = write_config(
        short_folder,
        {"mirror": {"handler": "mirror", "socket": "/x.sock", "sockt_group": "x"}},
        log_level="loud",
    )
    assert refusal("--config", file).splitlines() == [
        f"Error: {file}: functions.mirror.sockt_group: unknown setting; did you mean socket_group?",
        f"Error: {file}: log_level: expected debug, info, warning or error, got 'loud'",
    ]


def test_a_missing_file_is_a_line(short_folder: Path) -> None:
    file = short_folder / "no.yaml"
    assert refusal("--config", str(file)) == (
        f"Error: {file}: cannot be read: No such file or directory\n"
    )


@pytest.mark.parametrize("option", ["--socket", "--handler"])
def test_a_name_that_is_not_utf_8_is_a_wrong_call(socket_path: str, option: str) -> None:
    name = os.fsdecode(b"/n\xff")
    arguments = {"--socket": socket_path, "--handler": "mirror", option: name}
    said = refusal(*itertools.chain.from_iterable(arguments.items()))
    assert "in UTF-8, got '/n\\udcff'\n" in said


def test_a_folder_that_is_gone_is_a_wrong_place_for_a_relative_path(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = (
        f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); "
        "from kapudf_cli.commands import main; "
        "main(['serve', '--socket', 'udf.sock', '--handler', 'mirror'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == (
        "Error: command line: functions.udf.socket: udf.sock: the working folder cannot be read: "
        "No such file or directory; use an absolute path\n"
    )


def test_an_unknown_group_is_a_line(socket_path: str) -> None:
    arguments = ["--socket", socket_path, "--handler", "mirror", "--socket-group", "no-such-group"]
    said = refusal(*arguments, status=1)
    assert said == (
        f"Error: {socket_path}: there is no group 'no-such-group'; "
        "create it or choose another group\n"
    )


def test_a_path_that_is_served_is_a_line_with_the_process(socket_path: str) -> None:
    arguments = ["--socket", socket_path, "--handler", "mirror"]
    with serving(*arguments) as first:
        said = refusal(*arguments, "--remove-stale", status=1)
        assert said == (
            f"Error: {socket_path}: process {first.pid} already serves this socket; "
            "stop it or choose another path\n"
        )
        assert probe(socket_path, timeout_s=PATIENCE_S).info.options


# --- handlers that cannot be loaded ---


def serve_with(folder: Path, handler: str, *arguments: str, status: int) -> str:
    """Return the error for a handler, with the distributions in `folder` installed."""
    said = refusal(
        *["--socket", str(folder / "udf.sock"), "--handler", handler, *arguments],
        status=status,
        env=environment(folder),
    )
    assert not (folder / "udf.sock").exists()
    return said


def test_an_unknown_handler_brings_the_known_ones_and_the_nearest(short_folder: Path) -> None:
    install(short_folder, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    said = serve_with(short_folder, "miror", status=2)
    assert said.startswith(
        "Error: no installed handler has the name 'miror'; did you mean 'mirror'? (installed:"
    )
    assert "mirror, moving-average, outliers, plain, rate, seasonal-baseline, ttest; name" in said
    assert said.count("\n") == 1


def test_an_import_failure_is_one_line(short_folder: Path) -> None:
    install(
        short_folder,
        "acme-udfs",
        {"bad": "acme_bad:Bad"},
        {"acme_bad": "import no_such_module_anywhere\n"},
        version="2.3",
    )
    assert serve_with(short_folder, "bad", status=1) == (
        "Error: handler 'bad' of acme-udfs 2.3 (acme_bad:Bad) cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module_anywhere' "
        f"({short_folder}/acme_bad.py, line 1); install the package that has it into kapudf's "
        f"environment: {sys.executable} -m pip install PACKAGE "
        "(at level debug, the log has the traceback)\n"
    )


def test_an_import_failure_has_its_traceback_at_debug(short_folder: Path) -> None:
    install(
        short_folder,
        "acme",
        {"bad": "acme_bad:Bad"},
        {"acme_bad": "import acme_inner\n", "acme_inner": "1 / 0\n"},
    )
    result = run(
        *["--socket", str(short_folder / "udf.sock"), "--handler", "bad"],
        *["--log-level", "debug", "--log-format", "json"],
        env=environment(short_folder),
    )
    assert result.returncode == 1
    event, line = result.stderr.splitlines()
    logged = json.loads(event)
    assert (logged["level"], logged["function"]) == ("debug", "udf")
    assert 'acme_inner.py", line 1' in logged["exception"]
    assert logged["exception"].endswith("ZeroDivisionError: division by zero")
    assert line.startswith("Error: handler 'bad' of acme 1.0 ")


def test_an_ambiguous_name_is_refused_with_both_distributions(short_folder: Path) -> None:
    install(short_folder, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    install(short_folder, "rival", {"plain": "rival_plain:Plain"}, {"rival_plain": PLAIN})
    assert serve_with(short_folder, "plain", status=2) == (
        "Error: handler 'plain' is provided more than once, by acme 1.0 (acme_plain:Plain) "
        "and by rival 1.0 (rival_plain:Plain); "
        "uninstall one, or name the class as package.module:Class\n"
    )


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        ("gone.py:Gone", "there is no file gone.py"),
        ("acme_plain:Gone", "acme_plain has no 'Gone'; handlers there: Plain"),
        ("json:JSONDecoder", "json:JSONDecoder is not a subclass of kapudf_cli.Handler"),
        ("kapudf_cli:Handler", "cannot be used: Handler does not define point()"),
        ("gone.py", "there is no file gone.py"),
    ],
)
def test_what_is_no_handler_is_refused(short_folder: Path, handler: str, problem: str) -> None:
    (short_folder / "acme_plain.py").write_text(PLAIN)
    said = serve_with(short_folder, handler, status=2)
    assert said.startswith("Error: handler '")
    assert problem in said
    assert said.count("\n") == 1


# --- handlers that are no entry points ---


def test_an_installed_handler_of_a_stranger_is_served(short_folder: Path, socket_path: str) -> None:
    install(short_folder, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    arguments = ["--socket", socket_path, "--handler", "plain"]
    with serving(*arguments, env=environment(short_folder)) as process:
        assert process.event("listening")["handler"] == "Plain"


def test_a_class_of_a_module_in_the_current_folder_is_served(
    short_folder: Path, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_folder / "at_hand.py").write_text(PLAIN)
    monkeypatch.chdir(short_folder)
    # The console script does not put the current folder on the path, unlike `python -m`.
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with serving("--socket", socket_path, "--handler", "at_hand:Plain") as process:
        assert process.event("listening")["handler"] == "Plain"
        assert process.stop() == 0


def test_a_class_of_a_file_is_served(
    short_folder: Path, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_folder / "inner").mkdir()
    (short_folder / "inner" / "helper_beside.py").write_text("OK = True\n")
    (short_folder / "inner" / "udf.py").write_text(f"from helper_beside import OK\n{PLAIN}")
    monkeypatch.chdir(short_folder)
    with serving("--socket", socket_path, "--handler", "inner/udf.py:Plain") as process:
        assert process.event("listening")["handler"] == "Plain"
        assert process.stop() == 0


def test_a_relative_socket_is_where_the_server_was_started(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_folder)
    with serving("--socket", "udf.sock", "--handler", "mirror") as process:
        assert process.event("listening")["socket"] == os.path.abspath("udf.sock")
        assert process.stop() == 0


def test_help_shows_every_default() -> None:
    text = " ".join(run("--help").stdout.split())
    for default in ("0660", "keep", "67108864", "10", "auto", "info", "that of the process"):
        assert f"[default: {default}]" in text
    for name in ("SOCKET", "HANDLER", "CONFIG", "SOCKET_MODE", "REMOVE_STALE", "GRACE_PERIOD"):
        assert f"[env var: KAPUDF_{name}]" in text


# --- on other systems ---


def test_where_the_system_lacks_what_workers_need_one_process_serves(socket_path: str) -> None:
    arguments = ["--socket", socket_path, "--handler", "mirror"]
    with ServeProcess(*arguments, kapudf=ELSEWHERE) as process:
        process.ready()
        (said,) = [each for each in process.events if each["level"] == "warning"]
        assert "serving in one process" in said["event"]
        with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
            assert isinstance(side.connection, socket.socket)
            peer = peer_credentials(side.connection)
            assert peer is not None
            assert peer.pid == process.pid
            side.send(InitRequest(taskID="task", nodeID="node"))
            assert side.receive() == InitResponse(success=True)
            side.send(Point(time=1))
            assert side.receive() == Point(time=1)
        assert process.stop() == 0


@pytest.mark.parametrize("flag", ["--reload", "--metrics=:0"])
def test_where_there_can_be_no_workers_some_flags_are_refused(socket_path: str, flag: str) -> None:
    result = subprocess.run(
        [*ELSEWHERE, "serve", "--socket", socket_path, "--handler", "mirror", flag],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 2
    name = flag.partition("=")[0]
    assert f"{name} needs workers, which this system lacks" in result.stderr


def test_a_crash_of_the_interpreter_without_workers_leaves_its_stack(socket_path: str) -> None:
    handler = plugin("talkative.py:Aborting")
    with ServeProcess("--socket", socket_path, "--handler", handler, "--workers", "0") as process:
        process.ready()
        with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
            side.send(InitRequest(taskID="task"))
            side.receive()
            side.send(Point(time=1))
            assert process.wait() == -signal.SIGABRT
    assert any("Fatal Python error: Aborted" in line for line in process.lines)
    assert any("talkative.py" in line and "in point" in line for line in process.lines)


#: Connects as another user, and reads; the server says nothing before it is asked.
CONNECT = """
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(30)
    connection.connect(sys.argv[1])
    print(connection.recv(16))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_without_workers_other_users_are_refused_too(short_folder: Path, socket_path: str) -> None:
    short_folder.chmod(0o755)
    flags = ("--socket", socket_path, "--handler", "mirror", "--socket-mode", "0666")
    with serving(*flags, "--allow-users", "1, 2", "--workers", "0") as process:
        refused = run_unprivileged("import socket, sys", CONNECT, socket_path)
        assert refused.stdout == "b''\n"
        assert process.event("peer refused")["peer_uid"] == 65534
        assert process.stop() == 0
