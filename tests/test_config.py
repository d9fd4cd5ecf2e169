"""Settings and the configuration file: valid values and error messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from kapudf_cli import config, config_file
from kapudf_cli.config import FunctionSettings, RayActor, Settings
from kapudf_cli.errors import ConfigError
from tests.plugins.unprivileged import run_unprivileged

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(__file__).parents[1] / "config.example.yaml"

MINIMAL = "functions:\n  mirror:\n    handler: mirror\n    socket: /run/mirror.sock\n"

#: For each setting of a function, values that it cannot have.
WRONG_IN_FUNCTION: dict[str, list[object]] = {
    "handler": [1, True, None, "", [], ["mirror"], {}, {"name": "mirror"}],
    "socket": [1, True, None, "", [], ["/x"], {}, {"path": "/x"}],
    "socket_mode": [
        660,
        432,
        6.6,
        True,
        None,
        "",
        "660",
        "0o660",
        "0888",
        "01660",
        "rw-rw----",
        "0660\n",
        [],
        {},
        {"mode": "0660"},
    ],
    "socket_group": [-1, 2**32 - 1, 1.5, True, [], ["kapacitor"], {}, {"name": "kapacitor"}],
    "allow_users": ["kapacitor", 0, [], [""], [-1], [2**32 - 1], [1.5], [None], True, {}],
    "allow_groups": ["kapacitor", 0, [], [""], [-1], [2**32 - 1], [1.5], [None], True, {}],
    "remove_stale": [0, 1, "true", "yes", None, [], {}, {"a": True}],
    "preload": [0, 1, "true", "yes", None, [], {}, {"a": True}],
    "standby": [-1, 9, 1.5, True, "1", None, [], {}],
    "partitions": [0, -1, 65, 1.5, True, "2", None, [], {}],
    "engine": ["Ray", "threads", "", 1, True, None, [], ["ray"], {}, {"name": "ray"}],
    "ray_address": [
        "", "10.0.0.1", "http://a:1", "ray://", "ray://a", "a b:1", ":1", 10001, True, None, [], {},
    ],
    "ray_actor": [None, 1, True, "", []],
    "ray_fallback": [0, 1, "true", "yes", None, [], {}, {"a": True}],
    "max_frame_bytes": [
        1023, -1, 0, 2**32, 1e6, "1024", True, None, [], [2048], {}, {"max": 2048},
    ],
    "linger_ms": [
        -0.1, 5.1, 500, "0.5", True, None, float("nan"), float("inf"), [], [0.5], {}, {"ms": 0.5},
    ],
    "workers": [-1, 65, 1.0, "1", True, None, [], [1], {}, {"count": 1}],
    "on_error": ["ignore", "Fail", "", 1, True, None, [], ["skip"], {}, {"skip": True}],
    "concurrency": [0, -1, 1.5, 1025, "16", True, [], [16], {}, {"calls": 16}],
    "timeout_s": [0, -1, 86_401, "5", True, float("nan"), [], [5], {}, {"s": 5}],
    "snapshot_interval_s": [0, 0.05, 3601, "10", True, None, float("nan"), [], [10], {}],
    "journal_mb": [0, 0.05, 1025, "32", True, None, float("inf"), [], [32], {}],
    "busy_limit_s": [0, 0.9, 86_401, "300", True, None, float("nan"), [], [300], {}],
    "max_points": [0, -1, 1.5, 2**64, "1000", True, [], [1000], {}, {"points": 1}],
    "max_rss_mb": [0, 63, float("inf"), "512", True, float("nan"), [], [512], {}, {"mb": 512}],
}  # fmt: skip

#: The same for what partitions need of a Ray cluster.
WRONG_IN_RAY_ACTOR: dict[str, list[object]] = {
    "num_cpus": [-1, "1", True, []],
    "num_gpus": [-0.5, "1", True, {}],
    "memory": [-1, 1.5, "1 GB"],
    "resources": [["x"], "x", {"x": "1"}, {"x": -1}],
    "accelerator_type": [1, []],
    "strategy": ["spread", "", None, 1],
    "runtime_env": ["pip", []],
}

#: The same for each setting at the top.
WRONG_AT_TOP: dict[str, list[object]] = {
    "functions": [1, "mirror", True, None, [], ["mirror"], {}],
    "log_format": ["xml", "JSON", 1, True, None, "", [], ["json"], {}, {"format": "json"}],
    "log_level": ["verbose", "INFO", 1, True, None, "", [], ["info"], {}, {"level": "info"}],
    "metrics": [
        "9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:9464", "a b:1", "", 9464, True,
        [], {}, {"port": 9464},
    ],
    "grace_period_s": [
        -1, -0.5, 3600.5, "10", True, None, float("nan"), float("inf"), [], [10], {}, {"s": 10},
    ],
}  # fmt: skip


def cases(wrong: dict[str, list[object]]) -> list[Any]:
    """Return a test case for each setting and value."""
    return [
        pytest.param(name, value, id=f"{name}={value!r}")
        for name, values in wrong.items()
        for value in values
    ]


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str | bytes], Settings]:
    """Give a function that writes a file and returns its settings."""

    def write_and_check(content: str | bytes) -> Settings:
        file = tmp_path / "kapudf.yaml"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return config.check(config_file.read(file), source="kapudf.yaml")

    return write_and_check


@pytest.fixture
def faults(check: Callable[[str | bytes], Settings]) -> Callable[[str | bytes], list[str]]:
    """Give a function that writes a file and returns what is wrong with it."""

    def faults_of(content: str | bytes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            check(content)
        return list(caught.value.faults)

    return faults_of


def faults_of_raw(raw: dict[str, Any]) -> list[str]:
    """Return what is wrong with settings."""
    with pytest.raises(ConfigError) as caught:
        config.check(raw, source="kapudf.yaml")
    return list(caught.value.faults)


def with_function(**settings: object) -> dict[str, Any]:
    """Return settings with one function, good but for what is given."""
    return {"functions": {"mirror": {"handler": "mirror", "socket": "/x.sock", **settings}}}


# --- what is right ---


def test_two_settings_are_enough(check: Callable[[str], Settings]) -> None:
    assert check(MINIMAL) == Settings(
        functions={
            "mirror": FunctionSettings(
                handler="mirror",
                socket="/run/mirror.sock",
                socket_mode="0660",
                socket_group=None,
                remove_stale=False,
                max_frame_bytes=64 * 1024 * 1024,
            )
        },
        log_format="auto",
        log_level="info",
        grace_period_s=10.0,
    )


def test_every_setting_can_be_set(check: Callable[[str], Settings]) -> None:
    text = """
        functions:
          first: {handler: mirror, socket: /run/1.sock}
          second:
            handler: package.module:Class
            socket: /run/2.sock
            socket_mode: "0600"
            socket_group: kapacitor
            remove_stale: true
            max_frame_bytes: 1024
        log_format: json
        log_level: debug
        grace_period_s: 2.5
    """
    assert check(text) == Settings(
        functions={
            "first": FunctionSettings(handler="mirror", socket="/run/1.sock"),
            "second": FunctionSettings(
                handler="package.module:Class",
                socket="/run/2.sock",
                socket_mode="0600",
                socket_group="kapacitor",
                remove_stale=True,
                max_frame_bytes=1024,
            ),
        },
        log_format="json",
        log_level="debug",
        grace_period_s=2.5,
    )


@pytest.mark.parametrize("written", ["0640", '"0640"', "'0640'"])
def test_a_mode_means_what_it_looks_like(check: Callable[[str], Settings], written: str) -> None:
    settings = check(f"{MINIMAL}    socket_mode: {written}\n")
    assert settings.functions["mirror"].socket_mode == "0640"
    assert settings.functions["mirror"].mode == 0o640


@pytest.mark.parametrize(
    ("written", "group"),
    [("kapacitor", "kapacitor"), ("999", "999"), ('"999"', "999"), ("0", "0"), ("null", None)],
)
def test_a_group_has_a_name_or_a_number(
    check: Callable[[str], Settings], written: str, group: str | None
) -> None:
    assert check(f"{MINIMAL}    socket_group: {written}\n").functions["mirror"].group == group


@pytest.mark.parametrize(("written", "number"), [("0", 0), ("2048", 2048), ("0x800", 2048)])
def test_other_numbers_are_numbers(tmp_path: Path, written: str, number: int) -> None:
    file = tmp_path / "kapudf.yaml"
    file.write_text(f"number: {written}\n")
    assert config_file.read(file) == {"number": number}


def test_a_whole_number_of_seconds_is_a_time(check: Callable[[str], Settings]) -> None:
    grace_period_s = check(f"{MINIMAL}grace_period_s: 3\n").grace_period_s
    assert grace_period_s == 3.0
    assert isinstance(grace_period_s, float)


def test_the_limits_themselves_are_allowed(check: Callable[[str], Settings]) -> None:
    low = check(f"{MINIMAL}    max_frame_bytes: 1024\ngrace_period_s: 0\n")
    high = check(f"{MINIMAL}    max_frame_bytes: 4294967295\ngrace_period_s: 3600\n")
    assert (low.functions["mirror"].max_frame_bytes, low.grace_period_s) == (1024, 0)
    assert (high.functions["mirror"].max_frame_bytes, high.grace_period_s) == (2**32 - 1, 3600)


def test_functions_can_share_settings(check: Callable[[str], Settings]) -> None:
    text = """
        functions:
          first: &shared {handler: mirror, socket: /run/1.sock, socket_mode: 0600}
          second: {<<: *shared, socket: /run/2.sock}
    """
    assert check(text).functions["second"] == FunctionSettings(
        handler="mirror", socket="/run/2.sock", socket_mode="0600"
    )


def test_a_byte_order_mark_is_no_part_of_a_key(check: Callable[[str], Settings]) -> None:
    assert check(f"\ufeff{MINIMAL}") == check(MINIMAL)


# --- what is wrong: keys ---


def test_an_unknown_setting_at_the_top_is_named_with_the_likely_one(
    faults: Callable[[str], list[str]],
) -> None:
    assert faults(f"{MINIMAL}log_levle: debug\n") == [
        "log_levle: unknown setting; did you mean log_level?"
    ]


def test_an_unknown_setting_of_a_function_is_named_with_its_path(
    faults: Callable[[str], list[str]],
) -> None:
    assert faults(f"{MINIMAL}    sockt_mode: '0600'\n") == [
        "functions.mirror.sockt_mode: unknown setting; did you mean socket_mode?"
    ]


def test_a_setting_like_no_other_brings_no_guess(faults: Callable[[str], list[str]]) -> None:
    assert faults(f"{MINIMAL}zzz: 1\n") == ["zzz: unknown setting"]


@pytest.mark.parametrize("key", ["1", "true", "null", "1.5", "2020-01-01"])
def test_a_key_that_is_no_text_is_an_unknown_setting(
    faults: Callable[[str], list[str]], key: str
) -> None:
    (at_top,) = faults(f"{MINIMAL}{key}: 1\n")
    (in_function,) = faults(f"{MINIMAL}    {key}: 1\n")
    assert at_top.endswith(": unknown setting")
    assert in_function.startswith("functions.mirror.")
    assert in_function.endswith(": unknown setting")


@pytest.mark.parametrize("name", ["handler", "socket"])
def test_a_missing_setting_is_named(name: str) -> None:
    raw = with_function()
    del raw["functions"]["mirror"][name]
    (fault,) = faults_of_raw(raw)
    assert fault.startswith(f"functions.mirror.{name}: missing; expected the ")


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "---\n", "{}\n", "null\n"])
def test_an_empty_file_has_no_functions(faults: Callable[[str], list[str]], text: str) -> None:
    (fault,) = faults(text)
    assert fault.startswith("functions: missing; expected one entry or more")


@pytest.mark.parametrize(
    "name", ["my-mirror", "1st", "_mirror", "mirror.one", "", "a b", "mirror\n"]
)
def test_a_name_that_no_tickscript_can_call_is_refused(name: str) -> None:
    raw = {"functions": {name: {"handler": "mirror", "socket": "/x.sock"}}}
    (fault,) = faults_of_raw(raw)
    assert "a TICKscript cannot call this name; use letters, digits and underscores" in fault
    assert "\n" not in fault


def test_a_keyword_of_tickscript_is_refused_as_a_name() -> None:
    raw = {"functions": {"var": {"handler": "mirror", "socket": "/x.sock"}}}
    expected = "functions.var: a TICKscript cannot call this name; var is a keyword of TICKscript"
    assert faults_of_raw(raw) == [expected]


@pytest.mark.parametrize("name", ["true", "on", "null"])
def test_a_key_is_text(check: Callable[[str], Settings], name: str) -> None:
    found = check(f"functions: {{{name}: {{handler: mirror, socket: /x.sock}}}}\n")
    assert list(found.functions) == [name]


def test_a_bad_function_is_not_called_an_absent_one() -> None:
    found = faults_of_raw({"functions": {"my-mirror": {"handler": "m", "socket": "/x"}}})
    assert not [fault for fault in found if fault.startswith("functions: ")]


@pytest.mark.parametrize("entry", [None, "mirror", 1, ["mirror"]])
def test_a_function_without_settings_is_refused(entry: object) -> None:
    (fault,) = faults_of_raw({"functions": {"mirror": entry}})
    assert fault == (
        f"functions.mirror: expected settings such as handler and socket, got {entry!r}"
    )


# --- what is wrong: values ---


@pytest.mark.parametrize(("name", "value"), cases(WRONG_IN_FUNCTION))
def test_a_wrong_value_in_a_function_is_named_with_its_path(name: str, value: object) -> None:
    (fault,) = faults_of_raw(with_function(**{name: value}))
    assert fault.startswith(f"functions.mirror.{name}: expected ")
    assert fault.endswith(f", got {value!r}")


@pytest.mark.parametrize(("name", "value"), cases(WRONG_IN_RAY_ACTOR))
def test_a_wrong_need_of_partitions_is_named_with_its_path(name: str, value: object) -> None:
    (fault,) = faults_of_raw(with_function(ray_actor={name: value}))
    assert fault.startswith(f"functions.mirror.ray_actor.{name}: expected ")
    assert fault.endswith(f", got {value!r}")


def test_an_unknown_need_of_partitions_is_named() -> None:
    (fault,) = faults_of_raw(with_function(ray_actor={"num_gpu": 1}))
    assert fault == "functions.mirror.ray_actor.num_gpu: unknown setting; did you mean num_gpus?"


@pytest.mark.parametrize(("name", "value"), cases(WRONG_AT_TOP))
def test_a_wrong_value_at_the_top_is_named(name: str, value: object) -> None:
    (fault,) = faults_of_raw({**with_function(), name: value})
    assert fault.startswith(f"{name}: expected ")
    assert fault.endswith(f", got {value!r}")


def test_the_tables_of_wrong_values_leave_no_setting_out() -> None:
    assert set(WRONG_IN_FUNCTION) == set(FunctionSettings.__struct_fields__)
    assert set(WRONG_AT_TOP) == set(Settings.__struct_fields__)
    assert set(WRONG_IN_RAY_ACTOR) == set(RayActor.__struct_fields__)


@pytest.mark.parametrize("character", ["\0", "\ud800"], ids=["NUL", "surrogate"])
def test_a_path_that_no_file_can_have_is_a_fault(character: str) -> None:
    (fault,) = faults_of_raw(with_function(socket=f"/x{character}y"))
    assert fault.startswith("functions.mirror.socket: ")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"preload": True, "workers": 0}, "preload: needs workers"),
        ({"partitions": 2, "workers": 0}, "partitions: needs workers"),
        ({"standby": 1, "workers": 0}, "standby: needs workers"),
        ({"engine": "ray", "workers": 0}, "engine: needs workers"),
        ({"engine": "ray", "preload": True}, "preload: forks partitions"),
        ({"preload": True, "standby": 1}, "standby: a preloaded worker needs none"),
    ],
)
def test_settings_that_exclude_each_other_are_a_fault(
    settings: dict[str, object], problem: str
) -> None:
    (fault,) = faults_of_raw(with_function(**settings))
    assert fault.startswith(f"functions.mirror.{problem}")


# --- what is wrong: two functions on one socket ---


@pytest.mark.parametrize(
    "spelling",
    [
        "udf.sock",
        "./udf.sock",
        "sub/../udf.sock",
        "{cwd}/udf.sock",
        "//{cwd}//udf.sock",
        "l/udf.sock",
    ],
)
def test_two_functions_cannot_have_one_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "l").symlink_to(tmp_path)
    second = spelling.format(cwd=tmp_path)
    raw = {
        "functions": {
            "first": {"handler": "mirror", "socket": "udf.sock"},
            "second": {"handler": "mirror", "socket": second},
        }
    }
    assert faults_of_raw(raw) == [
        f"functions.second.socket: {second} is already the socket of functions.first"
    ]


def beside_each_other(workers: int) -> dict[str, Any]:
    """Return a function, and one with its socket where the first has that for its status."""
    common = {"handler": "mirror", "workers": workers}
    return {
        "functions": {
            "first": {**common, "socket": "/run/udf.sock"},
            "second": {**common, "socket": "/run/udf.sock.control"},
        }
    }


def test_no_function_can_be_served_where_another_is_asked_for_its_status() -> None:
    (fault,) = faults_of_raw(beside_each_other(workers=1))
    assert fault == (
        "functions.second.socket: /run/udf.sock.control is the control "
        "socket of functions.first; choose another path"
    )


def test_without_workers_there_is_no_other_socket_in_the_way() -> None:
    assert config.check(beside_each_other(workers=0), source="file").in_one_process


def test_sockets_of_one_name_in_two_folders_are_two(check: Callable[[str], Settings]) -> None:
    settings = check(
        "functions:\n"
        "  a: {handler: mirror, socket: /run/a/udf.sock}\n"
        "  b: {handler: mirror, socket: /run/b/udf.sock}\n"
    )
    assert len(settings.functions) == 2


# --- what is wrong: several things at once ---


def test_all_faults_are_reported_together(faults: Callable[[str], list[str]]) -> None:
    found = faults(
        """
        functions:
          first: {handler: mirror, sokcet: /run/1.sock}
          second: {handler: 7, socket: /run/2.sock, socket_mode: 660}
          third: {handler: mirror, socket: /run/3.sock}
          fourth: {handler: mirror, socket: /run/3.sock}
          fifth: mirror
          no-name: {handler: mirror, socket: /run/6.sock}
        log_level: loud
        grace_period: 10
        """
    )
    assert {fault.partition(":")[0] for fault in found} == {
        "functions.first.sokcet",
        "functions.first.socket",
        "functions.second.handler",
        "functions.second.socket_mode",
        "functions.fourth.socket",
        "functions.fifth",
        "functions.no-name",
        "grace_period",
        "log_level",
    }
    assert len(found) == 9


def test_the_settings_of_a_badly_named_function_are_checked_too(
    faults: Callable[[str], list[str]],
) -> None:
    found = faults("functions: {my-mirror: {handler: mirror, sokcet: /x}}\n")
    assert any("sokcet" in fault for fault in found)


def test_an_error_names_the_file_at_each_fault() -> None:
    error = ConfigError("kapudf.yaml", ["a: wrong", "b: wrong"])
    assert str(error) == "kapudf.yaml: a: wrong; kapudf.yaml: b: wrong"


# --- what is wrong: the file ---


def test_a_key_that_occurs_twice_is_named_with_its_line(faults: Callable[[str], list[str]]) -> None:
    assert faults("log_level: info\nlog_level: debug\n") == [
        "line 2, column 1: the key 'log_level' occurs twice"
    ]


def test_a_function_that_occurs_twice_is_named_with_its_line(
    faults: Callable[[str], list[str]],
) -> None:
    assert faults(MINIMAL + MINIMAL.removeprefix("functions:\n")) == [
        "line 5, column 3: the key 'mirror' occurs twice"
    ]


@pytest.mark.parametrize("text", ["- a\n- b\n", "mirror\n", "12\n", "true\n"])
def test_a_file_that_is_no_mapping_is_refused(
    faults: Callable[[str], list[str]], text: str
) -> None:
    assert faults(text) == ["is not a mapping of settings to values"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("functions: [\n", 2),
        ("a: 1\n  b: 2\n", 2),
        ("\tfunctions: 1\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: *nowhere\n", 1),
        ("a: !!python/object/apply:os.getcwd []\n", 1),
        ("a: 1\nfunctions: {{ template }}\n", 2),
        ("a: 1\n? [b, c]\n: 2\n", 2),
    ],
    ids=["unclosed", "indent", "tab", "documents", "alias", "object", "template", "list as key"],
)
def test_what_is_no_yaml_is_named_with_its_line(
    faults: Callable[[str], list[str]], text: str, line: int
) -> None:
    (fault,) = faults(text)
    assert fault.startswith(f"line {line}, column ")
    assert "\n" not in fault


#: Ten levels of ten aliases: 10,000,000,000 values in 400 bytes.
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 11)
)
#: The same with mappings that are merged.
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}], k{level}: *a{level - 1}}}\n"
    for level in range(1, 11)
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: !!int ''", "line 1, column 4: the tag '!!int' is not supported; remove it"),
        ("a: !!bool maybe", "the tag '!!bool' is not supported"),
        ("a: !!timestamp foo", "the tag '!!timestamp' is not supported"),
        ("a: !!float _", "the tag '!!float' is not supported"),
        ("a: !!set [1]", "the tag '!!set' is not supported"),
        ("a: !!binary é", "the tag '!!binary' is not supported"),
        ("a: !!omap 1", "the tag '!!omap' is not supported"),
        ("a: !!python/name:os.system ''", "the tag '!!python/name:os.system' is not supported"),
        ("? !!null x\n: 1", "the tag '!!null' is not supported"),
        ("? {b: 1}\n: 2", "line 1, column 3: a key must be text"),
        ("a: *b", "there is no anchor 'b'"),
        ("a: &b [*b]", "line 1, column 8: 'b' contains itself"),
        ("a: &b {<<: *b}", "'b' contains itself"),
        ("a: {<<: 1}", "<<: needs a mapping or a list of mappings"),
        ("a: {<<: [1]}", "<<: needs a mapping or a list of mappings"),
        (BOMB, "there are more than 50000 values up to here"),
        (MERGE_BOMB, "there are more than 50000 values up to here"),
        ("a: [" + "0, " * 60_000 + "]", "there are more than 50000 values up to here"),
        ("[" * 100_000, "nested more than 16 levels deep"),
        ("{a: " * 100_000, "nested more than 16 levels deep"),
        ("- " * 100_000, "nested more than 16 levels deep"),
        ("#" * 1_100_000, "has more than 1048576 bytes"),
        ('a: "\\U00110000"', ""),
        ('a: "\\ud800"', "line 1, column "),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", ""),
    ],
)
@pytest.mark.parametrize("has_libyaml", [True, False])
def test_whatever_a_file_holds_is_data_or_a_fault_of_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    fault: str,
    has_libyaml: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    if not has_libyaml:
        monkeypatch.setattr(config_file, "_Events", yaml.SafeLoader)
    file = tmp_path / "kapudf.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        config_file.read(file)
    (found,) = caught.value.faults
    assert fault in found
    assert "\n" not in found
    assert len(found) < 300


@pytest.mark.parametrize(
    "value",
    ["2024-01-01", "2024-99-99", "0x_", "0b_", "1:30", "08", "0x" + "f" * 100_000, "9" * 5000],
)
def test_what_only_looks_like_a_number_or_a_date_is_text(tmp_path: Path, value: str) -> None:
    file = tmp_path / "kapudf.yaml"
    file.write_text(f"a: {value}\nb: !!str 1\nc: ! 2\n", encoding="utf-8")
    assert config_file.read(file) == {"a": value, "b": "1", "c": "2"}


def test_a_long_value_is_shown_in_part() -> None:
    (fault,) = faults_of_raw(with_function(workers="x" * 100_000))
    assert fault.endswith("…")
    assert len(fault) < 400


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="is not a regular file, so it cannot be read again"):
        config_file.read(pipe, again=True)


def test_a_control_character_is_a_fault_with_its_place(faults: Callable[[str], list[str]]) -> None:
    (fault,) = faults("log_level: \x01\n")
    assert "position 11" in fault


def test_a_file_that_is_not_utf8_is_refused(faults: Callable[[bytes], list[str]]) -> None:
    assert faults(b"log_level: \xff\n") == ["is not UTF-8: invalid start byte at byte 11"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "no.yaml"
    with pytest.raises(ConfigError) as caught:
        config_file.read(file)
    assert str(caught.value) == f"{file}: cannot be read: No such file or directory"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config_file.read(tmp_path)


def test_a_file_without_permission_is_refused(short_folder: Path) -> None:
    file = short_folder / "kapudf.yaml"
    file.write_text(MINIMAL)
    file.chmod(0)
    short_folder.chmod(0o755)
    result = run_unprivileged(
        "import sys, pathlib, encodings.utf_8\nfrom kapudf_cli import config_file, errors\n",
        """
try:
    config_file.read(pathlib.Path(sys.argv[1]))
except errors.ConfigError as error:
    print(error)
""",
        str(file),
    )
    assert result.stdout == f"{file}: cannot be read: Permission denied\n"


# --- flags and environment over the file ---


def overlay(raw: dict[str, Any], **function: object) -> dict[str, Any]:
    """Return `raw` with settings of its functions from flags."""
    return config.overlay(raw, top={}, function=function, source="kapudf.yaml")


def test_flags_go_over_every_function() -> None:
    raw = {
        "functions": {
            "a": {"handler": "mirror", "socket": "/a", "socket_mode": "0600"},
            "b": {"handler": "mirror", "socket": "/b"},
        },
        "log_level": "debug",
        "log_format": "console",
    }
    assert config.overlay(
        raw, top={"log_format": "json"}, function={"socket_mode": "0666"}, source="kapudf.yaml"
    ) == {
        "functions": {
            "a": {"handler": "mirror", "socket": "/a", "socket_mode": "0666"},
            "b": {"handler": "mirror", "socket": "/b", "socket_mode": "0666"},
        },
        "log_level": "debug",
        "log_format": "json",
    }


def test_the_file_s_settings_are_not_changed_in_place() -> None:
    raw = with_function()
    overlay(raw, socket_mode="0600")
    assert raw == with_function()


def test_a_function_of_the_command_line_is_called_after_its_socket() -> None:
    raw = overlay({}, handler="mirror", socket="/run/my-mirror.sock")
    assert raw == {
        "functions": {"my_mirror": {"handler": "mirror", "socket": "/run/my-mirror.sock"}}
    }
    assert list(config.check(raw, source="command line").functions) == ["my_mirror"]


def test_flags_may_say_the_handler_and_socket_of_the_only_function() -> None:
    raw = overlay(with_function(), handler="other", socket="/other.sock")
    assert raw == {"functions": {"mirror": {"handler": "other", "socket": "/other.sock"}}}


@pytest.mark.parametrize("names", [["handler"], ["socket"], ["handler", "socket"]])
def test_flags_may_not_say_the_handler_or_socket_of_several(names: list[str]) -> None:
    raw = {"functions": {"a": {"handler": "m", "socket": "/a"}, "b": {"handler": "m"}}}
    flags = " and ".join(f"--{name} (or KAPUDF_{name.upper()})" for name in names)
    with pytest.raises(ConfigError) as caught:
        overlay(raw, **dict.fromkeys(names, "x"))
    (fault,) = caught.value.faults
    assert fault == f"functions: there are 2, and {flags} can only be used with one"


@pytest.mark.parametrize("functions", [None, "mirror", ["mirror"], {"mirror": "mirror"}])
def test_flags_over_a_wrong_file_leave_its_faults_to_the_check(functions: object) -> None:
    raw = overlay({"functions": functions}, socket_mode="0600")
    assert faults_of_raw(raw)


# --- the example ---


def test_the_example_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = config.check(config_file.read(EXAMPLE), source=EXAMPLE.name)
    assert len(settings.functions) == 2


def test_the_example_shows_every_setting_with_its_default() -> None:
    raw = config_file.read(EXAMPLE)
    functions = raw.pop("functions")
    assert raw == defaults(Settings)
    shown = next(iter(functions.values()))
    assert set(shown) == set(FunctionSettings.__struct_fields__)
    optional = defaults(FunctionSettings)
    assert {name: shown[name] for name in optional} == optional


def defaults(settings: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the declared defaults, of those settings that have one."""
    return {
        field.name: msgspec.to_builtins(field.default)
        for field in msgspec.structs.fields(settings)
        if not field.required
    }


def test_the_example_explains_every_setting() -> None:
    lines = [line.strip() for line in EXAMPLE.read_text(encoding="utf-8").splitlines()]
    for name in (*Settings.__struct_fields__, *FunctionSettings.__struct_fields__):
        place = next(at for at, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert lines[place - 1].startswith("# "), name


def test_every_setting_says_what_it_takes() -> None:
    for settings in (Settings, FunctionSettings):
        for name in settings.__struct_fields__:
            problem = config.check_value(settings, name, object())
            assert problem is not None
            assert problem.startswith("expected "), (name, problem)


def test_the_working_folder_is_not_touched_by_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config.check(with_function(socket="udf.sock"), source="kapudf.yaml")
    assert os.listdir(tmp_path) == []
