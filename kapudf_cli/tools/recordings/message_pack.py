"""Find the ends of messages in MessagePack, which have no length in front.

msgspec decodes a message only if it is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class _Form:
    """What follows the first byte of a value.

    Attributes:
        length_bytes: the bytes with a length or a count.
        rest: the number of bytes after these, besides the counted ones.
        values: the number of values inside, besides the counted ones.
        counted_values: how many values each unit of the count is; 0 if it counts bytes.
    """

    length_bytes: int = 0
    rest: int = 0
    values: int = 0
    counted_values: int = 0


#: The form of each first byte. 0xC1 is not used.
_FORMS: Final = {
    **{byte: _Form() for byte in (*range(0x80), *range(0xE0, 0x100))},  # fixint
    **{0x80 + n: _Form(values=2 * n) for n in range(16)},  # fixmap
    **{0x90 + n: _Form(values=n) for n in range(16)},  # fixarray
    **{0xA0 + n: _Form(rest=n) for n in range(32)},  # fixstr
    **{byte: _Form() for byte in (0xC0, 0xC2, 0xC3)},  # nil, false, true
    **{0xC4 + n: _Form(1 << n) for n in range(3)},  # bin
    **{0xC7 + n: _Form(1 << n, rest=1) for n in range(3)},  # ext
    **{0xCA + n: _Form(rest=4 << n) for n in range(2)},  # float
    **{0xCC + n: _Form(rest=1 << n) for n in range(4)},  # uint
    **{0xD0 + n: _Form(rest=1 << n) for n in range(4)},  # int
    **{0xD4 + n: _Form(rest=1 + (1 << n)) for n in range(5)},  # fixext
    **{0xD9 + n: _Form(1 << n) for n in range(3)},  # str
    **{0xDC + n: _Form(2 << n, counted_values=1) for n in range(2)},  # array
    **{0xDE + n: _Form(2 << n, counted_values=2) for n in range(2)},  # map
}


class MessageEnd:
    """Finds the end of one message while its bytes arrive."""

    def __init__(self) -> None:
        """Begin at the first byte of the message."""
        self._place = 0
        self._missing = 1

    def find(self, data: bytes | bytearray) -> int | None:
        """Return the end of the message that begins `data`, None as long as it is incomplete.

        Values that were complete before are not looked at again.

        Raises:
            ValueError: this is not MessagePack.
        """
        place, missing, size = self._place, self._missing, len(data)
        while missing and place < size:
            form = _FORMS.get(data[place])
            if form is None:
                raise ValueError(f"the byte {data[place]:#x} begins no value of MessagePack")
            end = place + 1 + form.length_bytes
            values = form.values
            if form.length_bytes:
                count = int.from_bytes(data[place + 1 : end], "big")
                values += count * form.counted_values
                end += 0 if form.counted_values else count
            end += form.rest
            # If the length itself is incomplete, the end is too.
            if end > size:
                break
            place = end
            missing += values - 1
        self._place, self._missing = place, missing
        return None if missing else place
