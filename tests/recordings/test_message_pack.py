"""The ends of messages in MessagePack."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from kapudf_cli.tools.recordings.message_pack import MessageEnd

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)
#: Values whose lengths need each size of a length, and extensions.
LONG = [
    *("x" * n for n in (31, 32, 255, 256, 65_535, 65_536)),
    *(b"x" * n for n in (255, 256, 65_536)),
    *([None] * n for n in (15, 16, 65_536)),
    *({str(key): key for key in range(n)} for n in (15, 16, 65_536)),
    *(msgspec.msgpack.Ext(5, b"x" * n) for n in (1, 2, 3, 4, 8, 16, 255, 256, 65_536)),
]


@given(VALUES, st.integers(1, 40))
def test_a_message_ends_where_it_was_encoded_to_end(value: object, step: int) -> None:
    message = msgspec.msgpack.encode(value)
    end = MessageEnd()
    for size in range(step, len(message), step):
        assert end.find(message[:size]) is None
    assert end.find(message + b"\xc0") == len(message)


@pytest.mark.parametrize("value", LONG, ids=lambda value: f"{type(value).__name__}")
def test_long_values(value: object) -> None:
    message = msgspec.msgpack.encode([value, 1])
    assert MessageEnd().find(message[:-1]) is None
    assert MessageEnd().find(message[:3]) is None
    assert MessageEnd().find(message + b"\xc1") == len(message)


def test_a_byte_that_begins_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="0xc1"):
        MessageEnd().find(b"\x92\x01\xc1")
