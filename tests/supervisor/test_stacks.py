"""What faulthandler writes, read back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kapudf_cli.worker import stacks

#: Says which thread it dies in, and dies there.
FAULT = """
import ctypes, faulthandler, sys, threading
faulthandler.enable()
def die():
    print(threading.get_ident(), flush=True)
    ctypes.string_at(0)
if sys.argv[1] == "main":
    die()
thread = threading.Thread(target=die)
thread.start()
thread.join()
"""
DUMP = "import faulthandler; faulthandler.dump_traceback()"


@pytest.mark.parametrize("thread", ["main", "another"])
def test_the_thread_of_a_fault_is_found(thread: str) -> None:
    """As Python itself names it."""
    process = subprocess.run(
        [sys.executable, "-c", FAULT, thread], capture_output=True, text=True, check=False
    )
    assert process.returncode < 0
    assert stacks.faulty_thread(process.stderr) == int(process.stdout)


@pytest.mark.parametrize(
    "text", ["", "Thread 0x00007f498c1c1b80 (most recent call first):\n"], ids=["killed", "asked"]
)
def test_where_no_fault_was_there_is_no_thread_of_it(text: str) -> None:
    """As after a kill, which nothing is written of."""
    assert stacks.faulty_thread(text) is None


def test_as_much_is_shown_as_a_log_can_bear() -> None:
    """The beginning, which is where the fault is; all, if it is short."""
    dump = subprocess.run([sys.executable, "-c", DUMP], capture_output=True, text=True, check=True)
    assert dump.stderr
    assert stacks.beginning(dump.stderr) == dump.stderr.strip("\n")
    lines = [f"line {number}" for number in range(1000)]
    assert stacks.beginning("\n".join(lines)) == "\n".join(lines[:60])


def test_where_a_thread_was_is_a_line() -> None:
    """The innermost calls first, of that thread only."""
    code = "import faulthandler, threading\nprint(threading.get_ident(), flush=True)\n"
    code += "def inner(): faulthandler.dump_traceback()\ndef outer(): inner()\nouter()\n"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    dump = 'Thread 0x0000000000000007 (most recent call first):\n  File "x", line 1 in x\n'
    dump += process.stderr
    assert stacks.where(dump, int(process.stdout)) == (
        "inner (<string>:3) < outer (<string>:4) < <module> (<string>:5)"
    )
    assert stacks.where(dump, 7) == "x (x:1)"
    assert stacks.where(dump, 8) == ""
