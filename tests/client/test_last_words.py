"""The line of a dead process's stderr that is shown as the cause."""

from __future__ import annotations

import sys

import pytest

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.target import cause_line
from tests.serve_process import PATIENCE_S

PANIC = "panic: runtime error: index out of range [5] with length 3"
GO = f"2026/11/28 started\n{PANIC}\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:7 +0x1d"
PYTHON = """Traceback (most recent call last):
  File "udf.py", line 3, in point
    raise ValueError("no model")
ValueError: no model"""


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        ("", ""),
        ("loading\nout of memory", "out of memory"),
        (GO, PANIC),
        (f"panic: first [recovered]\n\t{PANIC}\n\ngoroutine 1 [running]:", PANIC),
        ("fatal error: all goroutines are asleep - deadlock!\n\ngoroutine 1 [select]:\nmain.main()",
         "fatal error: all goroutines are asleep - deadlock!"),
        (PYTHON, "ValueError: no model"),
        (f"{PYTHON}\n  in two lines\nexit status 1", "ValueError: no model"),
        (f"{PYTHON}\n\nDuring handling of the above exception:\n\n"
         + PYTHON.replace("ValueError: no model", "KeyError: 'a'"), "KeyError: 'a'"),
        ('Fatal Python error: Segmentation fault\n\nCurrent thread 0x7f:\n  File "udf.py", line 3',
         "Fatal Python error: Segmentation fault"),
        (f"{GO}\n{PYTHON}", "ValueError: no model"),
        ('Traceback (most recent call last):\n  File "udf.py", line 3', 'File "udf.py", line 3'),
    ],
)  # fmt: skip
def test_the_line_that_says_why_is_found(stderr: str, cause: str) -> None:
    assert cause_line(stderr.splitlines()) == cause


def test_a_panic_line_is_kept_however_long_its_stacks_are() -> None:
    code = (
        f"import sys\nprint({PANIC!r}, file=sys.stderr)\n"
        "for n in range(1000): print('main.call()', file=sys.stderr)\nsys.exit(2)"
    )
    with CommandTarget("udf", (sys.executable, "-c", code)).open(timeout_s=PATIENCE_S) as udf:
        ending = udf.ending(PATIENCE_S)
    assert ending is not None
    assert ending.cause == PANIC
    assert len(ending.last_words) == 21
