"""The protobuf messages of the UDF protocol, built at import from a descriptor set.

A module that protoc generates runs only with protobuf of the same major version and the next
one. These classes run with every release from 4.25 on. `make proto` writes `udf.binpb` and the
types of this module.
"""

from google.protobuf import descriptor_pool
from google.protobuf.internal import builder

#: What precedes the file in a set of one: its tag, and its length in two bytes. To parse the set,
#: `descriptor_pb2` would have to be imported, which takes some milliseconds.
_HEAD_BYTES = 3


def _file_descriptor() -> bytes:
    with open(__file__.rpartition("_pb2")[0] + ".binpb", "rb") as descriptor_set:
        return descriptor_set.read()[_HEAD_BYTES:]


DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(_file_descriptor())
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, __name__, globals())
