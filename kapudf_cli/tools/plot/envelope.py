"""A line in bounded memory, for any number of points."""

from __future__ import annotations

import bisect
from array import array
from typing import Final

#: The most columns of an envelope; after columns are joined, there are at least half as many. A
#: picture has less than a thousand columns of pixels, so that none of them lacks an extreme.
COLUMNS: Final = 2_000
#: The same for marks, which are wider than a pixel.
MARK_COLUMNS: Final = 1_000


class Envelope:
    """The lowest and the highest value in each column of time, with their exact times.

    At first, each time has a column of its own, so that all points are kept. Whenever there are
    too many columns, pairs of neighbours are joined.

    Attributes:
        count: the number of points that were added.
    """

    def __init__(self, columns: int = COLUMNS) -> None:
        """Keep at most this number of columns, 40 bytes each."""
        self.count = 0
        self._limit = columns
        self._width_ns = 1
        self._columns = array("q")
        self._low_times = array("q")
        self._lows = array("d")
        self._high_times = array("q")
        self._highs = array("d")

    def add(self, time_ns: int, value: float) -> None:
        """Add a point; the times may be in any order."""
        self.count += 1
        column = time_ns // self._width_ns
        columns = self._columns
        place = len(columns) - 1
        if place < 0 or column > columns[place]:
            self._insert(place + 1, column, time_ns, value)
            return
        if column < columns[place]:
            place = bisect.bisect_left(columns, column)
            if columns[place] != column:
                self._insert(place, column, time_ns, value)
                return
        if value < self._lows[place]:
            self._lows[place] = value
            self._low_times[place] = time_ns
        if value > self._highs[place]:
            self._highs[place] = value
            self._high_times[place] = time_ns

    @property
    def is_joined(self) -> bool:
        """Whether columns were joined, so that points were left out."""
        return self._width_ns > 1

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest value; there must be one."""
        return min(self._lows), max(self._highs)

    def points(self) -> tuple[list[int], list[float]]:
        """Return the times and values of the extremes, in the order of time."""
        times: list[int] = []
        values: list[float] = []
        for pair in zip(self._low_times, self._lows, self._high_times, self._highs, strict=True):
            low, high = pair[:2], pair[2:]
            ends = (low,) if low == high else (low, high) if low < high else (high, low)
            for time_ns, value in ends:
                times.append(time_ns)
                values.append(value)
        return times, values

    def _insert(self, place: int, column: int, time_ns: int, value: float) -> None:
        self._columns.insert(place, column)
        self._low_times.insert(place, time_ns)
        self._high_times.insert(place, time_ns)
        self._lows.insert(place, value)
        self._highs.insert(place, value)
        while len(self._columns) > self._limit:
            self._join()

    def _join(self) -> None:
        """Double the width of the columns."""
        before = (self._columns, self._low_times, self._lows, self._high_times, self._highs)
        self._width_ns *= 2
        self._columns = array("q")
        self._low_times, self._high_times = array("q"), array("q")
        self._lows, self._highs = array("d"), array("d")
        for column, low_time, low, high_time, high in zip(*before, strict=True):
            if self._columns and self._columns[-1] == column // 2:
                if low < self._lows[-1]:
                    self._lows[-1], self._low_times[-1] = low, low_time
                if high > self._highs[-1]:
                    self._highs[-1], self._high_times[-1] = high, high_time
            else:
                self._columns.append(column // 2)
                self._low_times.append(low_time)
                self._lows.append(low)
                self._high_times.append(high_time)
                self._highs.append(high)
