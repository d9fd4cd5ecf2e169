"""A template: a process that has loaded the handler, and forks workers from then on.

supervisor ── template ── intermediate ── worker
     ╰──────── adopts the worker once the intermediate has exited ─╯
"""

from __future__ import annotations

import gc
import os
import random
import select
import signal
import socket
import sys
import time
import warnings
from typing import Any, Final

from kapudf_cli.worker.channel import Channel, Failed, Fork, Forked

#: A worker's end of the channel, and its memory files for stacks and its record.
_DESCRIPTORS_OF_FORK: Final = 3
#: How often a new worker looks whether the supervisor has adopted it.
_ADOPTION_PAUSE_S: Final = 0.0002
#: Only the supervisor ends a template: not a Ctrl-C, and not systemd, which may signal every
#: process of the service.
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ForkedWorker:
    """What a forked worker was given.

    Attributes:
        order: what it was forked for.
        channel: its end of the channel.
        dump: the memory file for the stacks of its threads.
        record: the memory file of its `WorkerRecord`.
    """

    def __init__(self, order: Fork, descriptors: list[int]) -> None:
        """Take the descriptors over."""
        descriptor, self.dump, self.record = descriptors
        self.order = order
        self.channel = Channel(socket.socket(fileno=descriptor))

    def close(self) -> None:
        """Close the descriptors, in the template."""
        self.channel.close()
        os.close(self.dump)
        os.close(self.record)


def fork_workers(channel: Channel) -> ForkedWorker | None:
    """Fork a worker for each `Fork` of the supervisor, which is at the other end of `channel`.

    Returns:
        In each worker, what it was given; in the template, None once it is to exit.
    """
    # Objects that exist now stay in memory that is shared, as far as nothing changes them: the
    # garbage collector of a worker does not.
    gc.collect()
    gc.freeze()
    before = [(number, signal.signal(number, lambda *_: None)) for number in _IGNORED]
    while (worker := _next_fork(channel)) is not None:
        try:
            is_worker = _fork_detached()
        except OSError as error:
            problem = f"no process can be forked: {error.strerror}"
            _report(worker, Failed(problem, is_usage_error=False))
            is_worker = False
        if is_worker:
            channel.close()
            for number, handler in before:
                signal.signal(number, handler)
            os.setpgid(0, 0)
            reseed()
            worker.channel.send(Forked(os.getpid()))
            return worker
        worker.close()
    return None


def fail_workers(channel: Channel, failure: Failed) -> None:
    """Report for each worker that was to be forked why it cannot be."""
    readable = select.poll()
    readable.register(channel, select.POLLIN)
    while readable.poll(0) and (worker := _next_fork(channel)) is not None:
        _report(worker, failure)
        worker.close()


def reseed() -> None:
    """Give the random generators of a forked process seeds of its own."""
    random.seed()
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _next_fork(channel: Channel) -> ForkedWorker | None:
    """Wait for the next `Fork`; None at the end of the supervisor, or when it says Stop."""
    while (received := channel.receive()) is not None:
        order, descriptors = received
        if not isinstance(order, Fork):
            return None
        if len(descriptors) == _DESCRIPTORS_OF_FORK:
            return ForkedWorker(order, descriptors)
        # No descriptor was left, so the kernel dropped some. The worker's channel is closed.
        for descriptor in descriptors:
            os.close(descriptor)
    return None


def _report(worker: ForkedWorker, failure: Failed) -> None:
    """Report a failure in place of a worker that was not forked."""
    try:
        worker.channel.send(failure)
    except OSError:
        return  # The supervisor no longer needs it.


def _fork_detached() -> bool:
    """Fork a process that the supervisor adopts; return whether this is it.

    Raises:
        OSError: the system has no process or memory left.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of threads. Those that matter are refused before.
        warnings.simplefilter("ignore", DeprecationWarning)
        intermediate = os.fork()
        if intermediate:
            _, status = os.waitpid(intermediate, 0)
            if status:
                number = os.waitstatus_to_exitcode(status)
                raise OSError(number, os.strerror(number))
            return False
        parent = os.getpid()
        try:
            child = os.fork()
        except OSError as error:
            os._exit(error.errno or 1)
        if child:
            os._exit(0)
    while os.getppid() == parent:
        time.sleep(_ADOPTION_PAUSE_S)
    return True
