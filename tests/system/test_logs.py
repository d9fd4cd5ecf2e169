"""The format and content of the log, from real processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap
from datetime import datetime
from typing import Any

import pytest

from kapudf_cli.system import loggers
from tests.serve_process import PATIENCE_S

SETUP = """
import logging, sys, threading, warnings
import structlog
from kapudf_cli.system import logs
logs.configure(sys.argv[1], sys.argv[2])
log = logs.get_logger()
"""


def run(
    code: str, log_format: str = "json", level: str = "info"
) -> subprocess.CompletedProcess[str]:
    """Run code with logging set up, stderr being a pipe."""
    return subprocess.run(
        [sys.executable, "-c", SETUP + code, log_format, level],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def events(code: str, level: str = "info") -> list[dict[str, Any]]:
    """Return what code logs, each line of it an event; nothing may go to stdout."""
    result = run(code, "json", level)
    assert (result.returncode, result.stdout) == (0, "")
    return [json.loads(line) for line in result.stderr.splitlines()]


def on_terminal(code: str, log_format: str) -> str:
    """Return what code logs where stderr is a terminal."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SETUP + code, log_format, "info"],
        stdin=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        written = b""
        # Once the other end is closed everywhere, reading fails with EIO.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 4096):
                written += data
        assert process.wait(PATIENCE_S) == 0
    os.close(ours)
    return written.decode()


def test_an_event_is_a_json_object_in_a_line() -> None:
    (event,) = events("log.info('it happened', count=3, ratio=0.5, who=None)")
    stamp = datetime.fromisoformat(event.pop("timestamp"))
    assert stamp.utcoffset() is not None
    assert event == {
        "event": "it happened",
        "level": "info",
        "count": 3,
        "ratio": 0.5,
        "who": None,
    }


def test_an_event_begins_with_when_how_bad_and_what() -> None:
    (event,) = events("log.bind(zone='a').warning('it happened', count=3)")
    assert list(event)[:3] == ["timestamp", "level", "event"]


def test_whatever_is_logged_is_one_line() -> None:
    (event,) = events("log.info('a\\nb', text='ü\\n漢', thing={1, 2}, data=b'x', odd='\\udcff')")
    assert event["event"] == "a\nb"
    assert event["text"] == "ü\n漢"
    assert event["thing"] == "{1, 2}"
    assert event["data"] == "b'x'"


def test_other_alphabets_are_written_as_they_are() -> None:
    assert "Grüße 漢" in run("log.info('x', text='Grüße 漢')").stderr


def test_an_exception_is_a_fact_of_its_event() -> None:
    code = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')"
    (event,) = events(code)
    assert event["level"] == "error"
    assert event["exception"].startswith("Traceback (most recent call last):")
    assert event["exception"].endswith("ZeroDivisionError: division by zero")


def test_a_record_of_the_standard_library_is_an_event() -> None:
    code = """
stranger = logging.getLogger('acme.udf')
stranger.warning('%d of %s', 2, 'three', extra={'task': 'cpu'})
try:
    1 / 0
except ZeroDivisionError:
    stranger.exception('failed')
"""
    warning, failure = events(code)
    assert (warning["event"], warning["level"], warning["task"]) == ("2 of three", "warning", "cpu")
    assert "timestamp" in warning
    assert failure["exception"].endswith("ZeroDivisionError: division by zero")


def test_a_warning_is_an_event() -> None:
    (event,) = events("warnings.warn('old', stacklevel=1)")
    assert event["level"] == "warning"
    assert "UserWarning: old" in event["event"]


def test_a_thread_that_fails_is_an_event_with_its_name() -> None:
    code = """
thread = threading.Thread(target=lambda: 1 / 0, name='mine')
thread.start()
thread.join()
"""
    (event,) = events(code)
    assert (event["event"], event["level"], event["thread"]) == ("thread failed", "error", "mine")
    assert event["exception"].endswith("ZeroDivisionError: division by zero")


def test_bound_facts_are_in_each_event() -> None:
    code = """
structlog.contextvars.bind_contextvars(function='mirror')
bound = log.bind(connection=7)
bound.info('a')
bound.info('b')
"""
    for event in events(code):
        assert (event["connection"], event["function"]) == (7, "mirror")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
@pytest.mark.parametrize("logger", ["log", "logging.getLogger('acme')"])
def test_events_below_the_level_are_not_shown(logger: str, level: str, shown: list[str]) -> None:
    levels = ("debug", "info", "warning", "error")
    code = "\n".join(f"{logger}.{name}('x')" for name in levels)
    assert [event["level"] for event in events(code, level)] == shown


def test_the_console_has_lines_for_people() -> None:
    result = run("log.info('it happened', count=3)", "console")
    assert re.search(r"\[info +\] it happened +count=3$", result.stderr.strip())
    assert "\x1b" not in result.stderr
    assert result.stdout == ""


def test_on_the_console_the_error_and_the_function_come_first() -> None:
    code = "log.error('it happened', age_s=1, connection=7, function='f', error='no', task_id='t')"
    assert run(code, "console").stderr.split("] ")[1].split() == [
        *["it", "happened", "error=no", "function=f", "task_id=t", "age_s=1", "connection=7"],
    ]


def test_the_console_has_indented_tracebacks() -> None:
    code = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')"
    lines = run(code, "console").stderr.splitlines()
    assert "    Traceback (most recent call last):" in lines
    assert lines[-1] == "    ZeroDivisionError: division by zero"


FORGERY = "x\n2026-01-01T00:00:00Z [info     ] connection finished\r\x1b[2J\x9b31m\u2028\u202e"


FORGED_EVENTS = [
    f"log.error({FORGERY!r})",
    f"log.error('failed', task_id={FORGERY!r})",
    f"log.error('failed', task_id={FORGERY.replace(' ', '_')!r})",
    f"log.error('failed', values=[{FORGERY!r}])",
    f"log.error('failed', **{{{FORGERY!r}: 1}})",
    f"logging.getLogger('acme').error('%s', {FORGERY!r})",
    f"logging.getLogger('acme').error('failed', extra={{'exception': {FORGERY!r}}})",
    f"logging.getLogger('acme').error('failed', extra={{{FORGERY!r}: 1}})",
    f"logging.getLogger('acme').error('failed', extra={{'level': {FORGERY!r}}})",
    f"try:\n    raise ValueError({FORGERY!r})\nexcept ValueError:\n    log.exception('failed')",
]


def test_on_the_console_a_text_cannot_forge_an_event_or_control_the_terminal() -> None:
    written = run("\n".join(FORGED_EVENTS), "console").stderr
    lines = written.split("\n")
    assert len([line for line in lines if line.startswith("2")]) == len(FORGED_EVENTS)
    assert all(line.startswith(("2", "    ")) or not line for line in lines)
    assert not set(written) & set("\r\x1b\x9b\u2028\u202e")
    assert r"task_id='x\n2026-01-01T00:00:00Z_[info" in written


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_long_text_is_cut_and_how_much_is_said(log_format: str) -> None:
    code = """
try:
    raise ValueError('begin ' + 5_000_000 * 'x' + ' end')
except ValueError as error:
    log.exception('failed', error=str(error))
"""
    written = run(code, log_format).stderr
    assert len(written) < 50_000
    assert written.count("ValueError: begin xxx") == 1
    assert len(re.findall(r"x \[\.\.\. \d{7} characters cut \.\.\.\] x", written)) == 2
    assert written.count("x end") == 2


def test_auto_is_json_where_no_terminal_is() -> None:
    result = run("log.info('it happened')", "auto")
    assert json.loads(result.stderr)["event"] == "it happened"


def test_auto_is_for_people_on_a_terminal() -> None:
    written = on_terminal("log.info('it happened', count=3)", "auto")
    assert "it happened" in written
    assert "\x1b[" in written
    assert not written.startswith("{")


def test_json_is_json_on_a_terminal_too() -> None:
    written = on_terminal("log.info('it happened')", "json")
    assert json.loads(written)["event"] == "it happened"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_log_that_cannot_be_written_ends_nothing(log_format: str) -> None:
    code = "log.info('it happened')\nlogging.getLogger('acme').error('x')\nprint('still here')"
    with open("/dev/full", "w", encoding="ascii") as full:
        result = subprocess.run(
            [sys.executable, "-c", SETUP + code, log_format, "info"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert result.stdout == "still here\n"


def test_setting_up_twice_shows_each_event_once() -> None:
    code = "logs.configure('json', 'warning')\nlog.info('hidden')\nlog.warning('shown')"
    assert [event["event"] for event in events(code)] == ["shown"]


# --- handlers that arrange logging as they like ---

HOSTILE = [
    "logging.config.dictConfig({'version': 1})",
    "logging.config.dictConfig({'version': 1, 'root': {'level': 'CRITICAL', 'handlers': []}})",
    "logging.basicConfig(force=True, level='CRITICAL', handlers=[logging.NullHandler()])",
    "logging.disable(logging.CRITICAL)",
    "logging.getLogger().handlers.clear()",
    "[(each.setLevel(100), each.close()) for each in logging.getLogger().handlers]",
    "[each.setFormatter(logging.Formatter('x')) for each in logging.getLogger().handlers]",
    "[each.addFilter(lambda record: False) for each in logging.getLogger().handlers]",
    "logging.getLogger('kapudf').disabled = True",
    "logging.getLogger('kapudf_cli').setLevel('CRITICAL')",
    "logging.setLogRecordFactory(lambda *args, **more: logging.LogRecord(*args[:6], None))",
    "logging.shutdown()",
    "sys.stderr.close()",
    "sys.stdout = sys.stderr = None",
    "sys.stdout = sys.stderr = open(os.devnull, 'w')",
    "structlog.configure(processors=[lambda *args: None])",
    "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))",
    "structlog.reset_defaults()",
    "structlog.contextvars.clear_contextvars()",
]


@pytest.mark.parametrize("prints", [False, True])
def test_no_handler_can_silence_what_kapudf_logs_itself(*, prints: bool) -> None:
    code = "import logging.config, os\nfrom kapudf_cli.system import loggers\n"
    if prints:
        code += "logs.prints_logged().__enter__()\n"
    code += "logs.bind_facts(connection=7)\nbefore = log.bind(when='before')\n"
    for number, line in enumerate(HOSTILE):
        code += f"""
{line}
before.error('bound before', number={number})
logs.get_logger().info('got after', number={number})
loggers.get('kapudf_cli.agent').error('point %s', 'dropped', extra={{'number': {number}}})
"""
    expected = ["bound before", "got after", "point dropped"]
    seen = events(code)
    for number, line in enumerate(HOSTILE):
        named = [event["event"] for event in seen if event.get("number") == number]
        assert named == expected, line
    assert all(event["connection"] == 7 for event in seen)


def test_a_library_s_events_go_to_the_program_s_logging_until_it_is_set_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loggers.get("kapudf_cli.handler.handler").warning("snapshot discarded", extra={"offset": 3})
    (record,) = caplog.records
    assert (record.getMessage(), record.name) == (
        "snapshot discarded",
        "kapudf_cli.handler.handler",
    )
    assert vars(record)["offset"] == 3


# --- what handlers print ---


def printed(code: str, level: str = "info") -> list[tuple[str, str]]:
    """Return the stream and text of each event, of code that prints."""
    code = "with logs.prints_logged():\n" + textwrap.indent(textwrap.dedent(code), "    ")
    return [(event["stream"], event["event"]) for event in events(code, level)]


@pytest.mark.parametrize("level", ["debug", "error"])
def test_each_printed_line_is_an_event(level: str) -> None:
    code = """
    print("a", 1, "ü", "\\udcff")
    print("b\\n\\nc\\nd", end="", flush=True)
    print("e", file=sys.stderr)
    sys.stdout.buffer.write(b"f\\xff\\n")
    sys.stdout.writelines(["g\\n", "without an end"])
    """
    assert printed(code, level) == [
        ("stdout", "a 1 ü \\udcff"),
        ("stdout", "b"),
        ("stdout", "c"),
        ("stdout", "d"),
        ("stderr", "e"),
        ("stdout", "f\ufffd"),
        ("stdout", "g"),
        ("stdout", "without an end"),
    ]


def test_lines_that_threads_print_at_the_same_time_stay_whole() -> None:
    code = """
    def talk(name):
        for _ in range(200):
            for _ in range(5):
                print(name, end="")
            print()
    threads = [threading.Thread(target=talk, args=[name]) for name in "abc"]
    [each.start() for each in threads]
    [each.join() for each in threads]
    """
    lines = [line for _, line in printed(code)]
    assert sorted(lines) == sorted(name * 5 for name in "abc" for _ in range(200))


def test_a_printed_line_without_end_takes_little_memory() -> None:
    pieces = [line for _, line in printed("for _ in range(100_000): print('x', end='')")]
    assert "".join(pieces) == "x" * 100_000
    assert max(map(len, pieces)) <= 16 * 1024


def test_a_program_may_be_started_with_a_stream_that_is_logged() -> None:
    code = """
    import subprocess
    with logs.prints_logged():
        subprocess.run(["echo", "from a child"], stdout=sys.stderr, check=True)
    """
    assert run(textwrap.dedent(code)).stderr == "from a child\n"


def test_streams_are_as_before_once_prints_are_no_longer_logged() -> None:
    code = "with logs.prints_logged(): print('x')\nprint('an error', file=sys.stderr)"
    assert run(code).stderr.splitlines()[-1] == "an error"
