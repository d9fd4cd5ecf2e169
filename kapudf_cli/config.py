"""All settings, with their types, defaults and checks.

Each setting is declared once, as a field with a type, a default and a description of the allowed
values. The checks and error messages for the file, the environment and the flags derive from it.
"""

from __future__ import annotations

import difflib
import functools
import os
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from kapudf_cli.agent.checkpoints import DEFAULT_SNAPSHOT_INTERVAL_S
from kapudf_cli.agent.error_policy import DEFAULT_ON_ERROR, OnError
from kapudf_cli.agent.read_coalescing import DEFAULT_LINGER_MS, MAX_LINGER_MS
from kapudf_cli.errors import ConfigError
from kapudf_cli.handler.concurrency import MAX_CONCURRENCY
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES, MAX_VARINT
from kapudf_cli.system import logs  # noqa: TC001 - msgspec reads the annotations at run time
from kapudf_cli.system.peers import MAX_ID
from kapudf_cli.system.socket_file import Access
from kapudf_cli.tickscript.identifiers import identifier, name_problem

S = TypeVar("S", bound=msgspec.Struct)

#: The control socket of a function (status, reload) is at its socket's path plus this suffix.
CONTROL_SUFFIX = ".control"

#: A worker that has loaded only kapudf takes about 35 MB; a lower limit could never be met.
_MIN_RSS_MB = 64

#: A larger number cannot be encoded for a worker, and has the effect of no limit.
_MAX_LIMIT = 10**15

#: A larger number of processors or GPUs is an error in the file.
_MAX_UNITS = 10**6

#: How much of a wrong value or name an error message shows.
_SHOWN_CHARACTERS = 200

#: A frame must be able to hold an InitRequest with some options.
_MIN_FRAME_LIMIT_BYTES = 1024


#: A host, with brackets if it is an IPv6 address, and a port up to 65535.
_PORT = "[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_ADDRESS = rf"^(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]*):({_PORT})\Z"


#: Some users or groups.
_Names: TypeAlias = Annotated[
    Annotated[
        list[Annotated[str, Meta(min_length=1)] | Annotated[int, Meta(ge=0, le=MAX_ID)]],
        Meta(min_length=1),
    ]
    | None,
    Meta(description="a list of names or numbers, or null for everybody"),
]


class RayActor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What each partition needs of a Ray cluster, in Ray's words."""

    num_cpus: Annotated[
        Annotated[float, Meta(ge=0, le=_MAX_UNITS)] | None,
        Meta(description="a number of processors, or null for a hundredth of one"),
    ] = None
    num_gpus: Annotated[
        Annotated[float, Meta(ge=0, le=_MAX_UNITS)] | None,
        Meta(description="a number of GPUs, or null for none"),
    ] = None
    memory: Annotated[
        Annotated[int, Meta(ge=0, le=_MAX_LIMIT)] | None,
        Meta(description="a number of bytes, or null for any"),
    ] = None
    resources: Annotated[
        dict[str, Annotated[float, Meta(ge=0, le=_MAX_UNITS)]] | None,
        Meta(description="numbers by the names of custom resources, or null for none"),
    ] = None
    accelerator_type: Annotated[
        str | None, Meta(description="Ray's name of an accelerator such as A100, or null for any")
    ] = None
    strategy: Annotated[
        Literal["SPREAD", "STRICT_SPREAD", "PACK"],
        Meta(description="SPREAD (over nodes, where possible), STRICT_SPREAD or PACK"),
    ] = "SPREAD"
    runtime_env: Annotated[
        dict[str, Any] | None,
        Meta(description="a runtime environment as Ray describes it, or null for the node's own"),
    ] = None


class FunctionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one function: a handler and its socket."""

    handler: Annotated[
        str,
        Meta(
            min_length=1,
            description="the name of an installed handler, package.module:Class, file.py:Class or "
            "a script for InfluxData's agent",
        ),
    ]
    socket: Annotated[str, Meta(min_length=1, description="the path of a Unix socket")]
    socket_mode: Annotated[
        str, Meta(pattern=r"^0[0-7]{3}\Z", description="four octal digits such as 0660")
    ] = "0660"
    socket_group: Annotated[
        str | Annotated[int, Meta(ge=0, le=MAX_ID)] | None,
        Meta(description="the name or number of a group, or null for the process's own"),
    ] = None
    allow_users: _Names = None
    allow_groups: _Names = None
    remove_stale: Annotated[bool, Meta(description="true or false")] = False
    max_frame_bytes: Annotated[
        int,
        Meta(
            ge=_MIN_FRAME_LIMIT_BYTES,
            le=MAX_VARINT,
            description=f"a number of bytes from {_MIN_FRAME_LIMIT_BYTES} to {MAX_VARINT}",
        ),
    ] = DEFAULT_MAX_FRAME_BYTES
    linger_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_LINGER_MS,
            description=f"a number of milliseconds from 0 (never) to {MAX_LINGER_MS:g}",
        ),
    ] = DEFAULT_LINGER_MS

    workers: Annotated[
        int,
        Meta(ge=0, le=64, description="a number of processes from 0 (none of its own) to 64"),
    ] = 1
    partitions: Annotated[
        int, Meta(ge=1, le=64, description="a number of processes from 1 (no partitions) to 64")
    ] = 1
    engine: Annotated[Literal["processes", "ray"], Meta(description="processes or ray")] = (
        "processes"
    )
    ray_address: Annotated[
        str,
        Meta(
            pattern=r"^(auto|(ray://)?[^\s/:]+:[0-9]{1,5})\Z",
            description="auto, ray://HOST:PORT or HOST:PORT",
        ),
    ] = "auto"
    ray_actor: Annotated[
        RayActor, Meta(description="what each partition needs, such as num_gpus: 1")
    ] = RayActor()
    ray_fallback: Annotated[bool, Meta(description="true or false")] = False
    preload: Annotated[bool, Meta(description="true or false")] = False
    standby: Annotated[int, Meta(ge=0, le=8, description="a number of processes from 0 to 8")] = 0
    on_error: Annotated[OnError, Meta(description="fail, skip or restart")] = DEFAULT_ON_ERROR
    concurrency: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY)] | None,
        Meta(description=f"a number of calls from 1 to {MAX_CONCURRENCY}, or null for the class's"),
    ] = None
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0, le=86_400)] | None,
        Meta(description="a number of seconds above 0, at most 86400, or null for the class's"),
    ] = None
    snapshot_interval_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="a number of seconds from 0.1 to 3600")
    ] = DEFAULT_SNAPSHOT_INTERVAL_S
    journal_mb: Annotated[
        float, Meta(ge=0.1, le=1024, description="a number of megabytes from 0.1 to 1024")
    ] = 32.0
    busy_limit_s: Annotated[
        float, Meta(ge=1, le=86_400, description="a number of seconds from 1 to 86400")
    ] = 300.0
    max_points: Annotated[
        Annotated[int, Meta(ge=1, le=_MAX_LIMIT)] | None,
        Meta(description="a number of points, or null for any"),
    ] = None
    max_rss_mb: Annotated[
        Annotated[float, Meta(ge=_MIN_RSS_MB, le=_MAX_LIMIT)] | None,
        Meta(description=f"a number of megabytes from {_MIN_RSS_MB}, or null for any"),
    ] = None

    @property
    def is_partitioned(self) -> bool:
        """Whether only partitions call the handler."""
        return self.partitions > 1 or self.engine == "ray"

    @property
    def journal_bytes(self) -> int:
        """How much input the journal keeps before it is compacted."""
        return round(self.journal_mb * 1_000_000)

    @property
    def group(self) -> str | None:
        """The name of the socket's group, or its number in digits."""
        return None if self.socket_group is None else str(self.socket_group)

    @property
    def access(self) -> Access:
        """Who may connect to the socket."""
        users, groups = (
            None if names is None else tuple(map(str, names))
            for names in (self.allow_users, self.allow_groups)
        )
        return Access(self.mode, self.group, users, groups)

    @property
    def mode(self) -> int:
        """The socket's permission bits."""
        return int(self.socket_mode, 8)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one `kapudf serve`."""

    functions: Annotated[
        dict[str, FunctionSettings],
        Meta(min_length=1, description="one entry or more, each a function's name and settings"),
    ]
    log_format: Annotated[logs.LogFormat, Meta(description="auto, console or json")] = "auto"
    log_level: Annotated[logs.LogLevel, Meta(description="debug, info, warning or error")] = "info"
    grace_period_s: Annotated[
        float, Meta(ge=0, le=3600, description="a number of seconds from 0 to 3600")
    ] = 10.0

    metrics: Annotated[
        Annotated[str, Meta(pattern=_ADDRESS)] | None,
        Meta(description="HOST:PORT such as 127.0.0.1:9464, or null for no metrics"),
    ] = None

    @property
    def in_one_process(self) -> bool:
        """Whether there are no workers."""
        return all(function.workers == 0 for function in self.functions.values())


def metrics_address(address: str) -> tuple[str, int]:
    """Return the host and the port of `metrics`; without a host, it is the loopback address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


def check(raw: dict[str, Any], *, source: str) -> Settings:
    """Check settings and return them as structs.

    Args:
        raw: as `config_file.read` returns it.
        source: the file's name, for error messages.

    Raises:
        ConfigError: lists all errors, each with its path in the file.
    """
    faults: list[str] = []
    entries = raw.get("functions")
    if isinstance(entries, dict) and entries:
        raw = {**raw, "functions": _check_functions(entries, faults)}
    settings = _convert(Settings, raw, "", faults)
    if faults or settings is None:
        raise ConfigError(source, faults)
    alone = [name for name, function in settings.functions.items() if function.workers == 0]
    if alone and not settings.in_one_process:
        fault = (
            f"functions.{alone[0]}.workers: 0 serves everything in one process; "
            "set it for all functions or for none"
        )
        raise ConfigError(source, [fault])
    faults = [
        f"functions.{name}.{problem}"
        for name, function in settings.functions.items()
        if (problem := _conflict(function)) is not None
    ]
    if faults:
        raise ConfigError(source, faults)
    return settings


def _conflict(function: FunctionSettings) -> str | None:
    """Return an error message if settings of a function exclude each other, None if not."""
    needy = {
        "partitions": function.partitions > 1,
        "engine": function.engine == "ray",
        "preload": function.preload,
        "standby": function.standby > 0,
    }
    if not function.workers and (
        name := next((name for name, is_set in needy.items() if is_set), None)
    ):
        return f"{name}: needs workers; remove it, or workers: 0"
    if function.preload and function.engine == "ray":
        return "preload: forks partitions, and Ray starts its own; remove it, or engine: ray"
    if function.standby and function.preload:
        return "standby: a preloaded worker needs none, because it starts at once; remove one"
    return None


def overlay(
    raw: dict[str, Any], *, top: dict[str, Any], function: dict[str, Any], source: str
) -> dict[str, Any]:
    """Return `raw`, overridden by settings from flags and the environment.

    `top` overrides the settings of the process, `function` those of every function. `function`
    may name a handler and a socket only if `raw` has at most one function.

    Raises:
        ConfigError: `function` names a handler or a socket, and `raw` has several functions.
    """
    functions = raw.get("functions", {})
    if isinstance(functions, dict):
        naming = [name for name in ("handler", "socket") if name in function]
        if naming and len(functions) > 1:
            options = " and ".join(f"--{name} (or KAPUDF_{name.upper()})" for name in naming)
            fault = (
                f"functions: there are {len(functions)}, and {options} can only be used with one"
            )
            raise ConfigError(source, [fault])
        if naming and not functions:
            functions = {identifier(Path(function.get("socket", "function")).stem): {}}
        functions = {
            name: {**entry, **function} if isinstance(entry, dict) else entry
            for name, entry in functions.items()
        }
    return {**raw, **top, "functions": functions}


def check_value(settings: type[msgspec.Struct], name: str, value: object) -> str | None:
    """Return an error message for the value of a setting, None if it is valid."""
    field = _fields(settings)[name]
    try:
        msgspec.convert(value, type=field.type, strict=True)
    except msgspec.ValidationError:
        return f"expected {_description(field.type)}, got {_shown(value)}"
    if isinstance(value, str) and not _is_unicode(value):
        # A command line may hold any bytes, but workers receive their settings as JSON.
        return f"expected {_description(field.type)}, in UTF-8, got {_shown(value)}"
    return None


@functools.cache
def _fields(settings: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """Return the fields of a class by name; computing them evaluates all annotations."""
    return {field.name: field for field in msgspec.structs.fields(settings)}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _name(name: object) -> str:
    """Return a name for an error message, unchanged if it is short and printable."""
    text = str(name)
    return text if text.isprintable() and len(text) <= _SHOWN_CHARACTERS else _shown(name)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_functions(entries: dict[Any, Any], faults: list[str]) -> dict[str, FunctionSettings]:
    """Return the valid functions, and add the errors of the others to `faults`."""
    functions: dict[str, FunctionSettings] = {}
    for name, entry in entries.items():
        place = f"functions.{_name(name)}"
        problem = name_problem(name) if isinstance(name, str) else "a name is a string"
        if problem is not None:
            faults.append(f"{place}: a TICKscript cannot call this name; {problem}")
        if not isinstance(entry, dict):
            faults.append(
                f"{place}: expected settings such as handler and socket, got {_shown(entry)}"
            )
            continue
        actor = entry.get("ray_actor")
        if isinstance(actor, dict):
            checked = _convert(RayActor, actor, f"{place}.ray_actor", faults)
            entry = {**entry, "ray_actor": checked or RayActor()}  # noqa: PLW2901 - a copy
        function = _convert(FunctionSettings, entry, place, faults)
        if function is not None:
            functions[name] = function
    _check_sockets(functions, faults)
    return functions


def _convert(settings: type[S], raw: dict[str, Any], place: str, faults: list[str]) -> S | None:
    """Return `raw` as a struct, or add the errors to `faults` and return None."""
    found = len(faults)
    prefix = f"{place}." if place else ""
    fields = _fields(settings)
    for name in raw:
        if name not in fields:
            nearest = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            faults.append(f"{prefix}{_name(name)}: unknown setting{hint}")
    for name, field in fields.items():
        if name not in raw:
            if field.required:
                faults.append(f"{prefix}{name}: missing; expected {_description(field.type)}")
        elif name == "functions" and isinstance(raw[name], dict) and (raw[name] or faults):
            continue  # Its entries are already checked.
        elif problem := check_value(settings, name, raw[name]):
            faults.append(f"{prefix}{name}: {problem}")
    if len(faults) > found:
        return None
    return settings(**{**raw, **_floats(fields, raw)})


def _floats(fields: dict[str, msgspec.structs.FieldInfo], raw: dict[str, Any]) -> dict[str, float]:
    """Return the float settings as floats, because YAML may have them as integers."""
    return {
        name: float(raw[name])
        for name, field in fields.items()
        if name in raw and typing.get_args(field.type)[:1] == (float,)
    }


def _check_sockets(functions: dict[str, FunctionSettings], faults: list[str]) -> None:
    users: dict[str, str] = {}
    for name, function in functions.items():
        place = f"functions.{name}.socket"
        if function.socket.startswith("~"):
            faults.append(f"{place}: {function.socket}: ~ is not expanded; write the full path")
            continue
        try:
            path = os.path.realpath(function.socket)
            os.fsencode(path)
        except ValueError as error:
            faults.append(f"{place}: {function.socket!r} is not a valid path: {error}")
            continue
        except OSError as error:
            reason = f"the working folder cannot be read: {error.strerror}"
            faults.append(f"{place}: {function.socket}: {reason}; use an absolute path")
            continue
        first = users.setdefault(path, name)
        if first != name:
            faults.append(f"{place}: {function.socket} is already the socket of functions.{first}")
    for path, name in users.items():
        beside = path.removesuffix(CONTROL_SUFFIX)
        if beside != path and beside in users and functions[users[beside]].workers:
            faults.append(
                f"functions.{name}.socket: {functions[name].socket} is the "
                f"control socket of functions.{users[beside]}; choose another path"
            )


def _description(annotation: object) -> str:
    for part in typing.get_args(annotation):
        if isinstance(part, Meta) and part.description:
            return part.description
    raise AssertionError(annotation)
