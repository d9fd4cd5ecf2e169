"""The message classes, which are built from a descriptor set."""

from __future__ import annotations

import copy
import itertools
import pickle

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from kapudf_cli.protocol import udf_pb2
from kapudf_cli.protocol.udf_pb2 import BATCH, EdgeType, Point

POINT = Point(time=1, name="cpu", tags={"host": "a"}, fieldsDouble={"usage": 1.5})


def test_messages_can_be_pickled_and_copied() -> None:
    assert pickle.loads(pickle.dumps(POINT)) == POINT  # noqa: S301
    assert copy.deepcopy(POINT) == POINT


def test_enums_have_their_names_and_numbers() -> None:
    assert EdgeType.Name(BATCH) == "BATCH"
    assert EdgeType.items() == [("STREAM", 0), ("BATCH", 1)]


def test_the_messages_of_another_agent_fit_into_the_same_process() -> None:
    """InfluxData's agent registers the same messages, in `udf.proto` and the package `agent`."""
    file = FileDescriptorProto()
    udf_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "udf.proto", "agent"
    for message in file.message_type:
        entries = (field for entry in message.nested_type for field in entry.field)
        for field in itertools.chain(message.field, entries):
            if field.type_name:
                field.type_name = field.type_name.replace(".kapudf.wire.", ".agent.")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    other = GetMessageClass(pool.FindMessageTypeByName("agent.Point"))
    assert other is not Point
    assert other.FromString(POINT.SerializeToString()) != POINT
    assert str(other.FromString(POINT.SerializeToString())) == str(POINT)
