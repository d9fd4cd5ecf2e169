"""An actor in an event loop, without a cluster: what is sent with which answer."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.ray_engine.messages import CHUNK_BYTES, chunks, chunks_within, poll_s, silent_s

if TYPE_CHECKING:
    from pathlib import Path

HANDLER = """
import threading
from kapudf_cli import Handler, Point

class Threaded(Handler):
    def point(self, point):
        last = Point(name="by a thread", time=point.time)
        thread = threading.Thread(target=self.agent.write_point, args=(last,))
        thread.start()
        thread.join()
"""

#: An actor takes over the log of its process, so it gets a process of its own.
PROGRAM = """
import asyncio, sys
import msgspec
from kapudf_cli.agent.partition_messages import ENCODER, REPLIES, Ask, Create, Handle, Written
from kapudf_cli.config import FunctionSettings
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader, frame_body
from kapudf_cli.protocol.udf_pb2 import InitRequest, Point
from kapudf_cli.ray_engine.actor import NUMBER_BYTES, PartitionActor
from kapudf_cli.ray_engine.messages import Events, Load, Loaded, encode
from kapudf_cli.worker.shipped_code import ShippedCode

async def run():
    settings = FunctionSettings(handler=sys.argv[1], socket="/s", engine="ray")
    actor = PartitionActor()
    code = ShippedCode(sys.argv[1], "")
    load = Load("udf", settings, code, "json", "info", 0, "node")
    loaded = msgspec.msgpack.decode(await actor.load(encode(load)), type=Loaded)
    assert loaded.problem is None, loaded
    orders = [Create(), Ask(REQUESTS.encode(InitRequest(taskID="t", nodeID="n")))]
    orders += [Handle(REQUESTS.encode(Point(time=number))) for number in range(50)]
    written = polled = 0
    for number, order in enumerate(orders):
        result = await actor.execute(7, number, {}, ENCODER.encode(order))
        after = int.from_bytes(result[:NUMBER_BYTES], "little")
        if not isinstance(order, Handle):
            continue
        written += 1
        # The engine sends the result on once it has the events of this poll.
        while polled < after:
            events = msgspec.msgpack.decode(await actor.poll(), type=Events)
            polled = events.number
            for link, replies in events.replies:
                for body in FrameReader(frame_body, MAX_VARINT).feed(replies):
                    written -= isinstance(REPLIES.decode(body), Written)
        assert written == 0, (number, after)
    await actor.close(7)
    sys.__stdout__.write("all in order")

asyncio.run(run())
"""


def test_what_a_thread_writes_is_sent_on_before_the_result(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(HANDLER, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{tmp_path}/threaded.py:Threaded"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "all in order", result.stderr


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 3])
def test_chunks_are_no_longer_than_ray_sends_at_once(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    parts = chunks(data[:size])
    assert b"".join(parts) == data[:size]
    assert max(map(len, parts)) <= CHUNK_BYTES
    assert parts


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 1, 9 * CHUNK_BYTES])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_result_has_as_many_chunks_as_its_order(size: int, count: int) -> None:
    parts = chunks_within(b"x" * size, count)
    assert (len(parts), sum(map(len, parts))) == (count, size)
    assert all(len(part) <= CHUNK_BYTES for part in parts[:-1])


@pytest.mark.parametrize("busy_limit_s", [1.0, 2.0, 300.0])
def test_an_actor_is_out_of_reach_before_its_handler_hangs(busy_limit_s: float) -> None:
    assert poll_s(busy_limit_s) < silent_s(busy_limit_s) < busy_limit_s
