"""Latencies, counted in buckets: any number of them in a few kilobytes.

The buckets are those of an HDR histogram, linear within each power of two: 128 of them,
so that a value is off by less than one per cent. That is a counter and a shift; the
package hdrhistogram brings a C extension and its own encodings for it.
"""

from __future__ import annotations

import collections
from typing import Final

#: How many bits of a value are kept.
_KEPT_BITS: Final = 8

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


class Latencies:
    """How long things took, in nanoseconds.

    Attributes:
        count: how many.
        max_ns: the longest, exactly.
    """

    def __init__(self) -> None:
        self.count = 0
        self.max_ns = 0
        self._buckets: collections.Counter[int] = collections.Counter()

    def add(self, nanoseconds: int, count: int = 1) -> None:
        """Count so many things that took so long each."""
        nanoseconds = max(nanoseconds, 0)
        shift = max(nanoseconds.bit_length() - _KEPT_BITS, 0)
        # The bucket is named by its upper end: what is reported is never too good.
        self._buckets[(nanoseconds >> shift << shift) + (1 << shift) - 1] += count
        self.count += count
        self.max_ns = max(self.max_ns, nanoseconds)

    def percentile_ns(self, percent: float) -> int:
        """Return the time within which so many per cent were done; 0 where there are none."""
        left = self.count * percent / 100
        for value in sorted(self._buckets):
            left -= self._buckets[value]
            if left <= 0:
                return min(value, self.max_ns)
        return self.max_ns
