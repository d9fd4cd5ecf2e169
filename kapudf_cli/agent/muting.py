"""Which messages were sent before, and must not be sent again; sans-I/O.

A handler that is made anew is given its input again, and writes again what its predecessor
wrote. As many messages as were sent are muted, then the rest is let out. A handler need
not write the same again, though: new code may not, nor may one that goes by the clock. So
where muting ends inside a batch of which Kapacitor knows no begin, that batch is left out:
an EndBatch alone would crash it.
"""

from __future__ import annotations

import math


class Muting:
    """Says of each message, in the order in which they are written, whether it may leave.

    Attributes:
        messages: how many are still muted; infinitely many until `end`.
        leaves_out: whether a batch is left out to its end, since Kapacitor knows no begin
            of it.
    """

    __slots__ = ("_remaining", "_sent_in_batch", "leaves_out", "messages")

    def __init__(self) -> None:
        """Mute nothing."""
        self.messages: float = 0
        self.leaves_out = False
        # How many are to be muted after `end`: `begin` came before all of them had been.
        self._remaining: float = 0
        self._sent_in_batch = False

    @property
    def is_over(self) -> bool:
        """Whether every message may leave."""
        return not self.messages and not self.leaves_out

    @property
    def is_endless(self) -> bool:
        """Whether whatever comes is muted, until `end`."""
        return self.messages == math.inf

    def sent_in_batch(self, *, in_batch: bool) -> bool:
        """Return whether the last message that has left is of a batch that has not ended.

        Args:
            in_batch: whether the last one that was written is, muted or not.
        """
        return in_batch if self.is_over else self._sent_in_batch

    def begin(self, *, in_batch: bool) -> None:
        """Mute whatever comes, as if nothing had been said yet.

        Args:
            in_batch: whether the last message that was written is of a batch that has not
                ended. It does not matter where that message was muted.
        """
        self._sent_in_batch = self.sent_in_batch(in_batch=in_batch)
        if not self.is_endless:
            self._remaining = self.messages
        self.messages = math.inf
        self.leaves_out = False

    def end(self, *, in_batch: bool) -> None:
        """Let out what comes from now on, or after what was still muted before `begin`.

        Args:
            in_batch: whether the repetition has begun a batch and not ended it.
        """
        self.end_after(self._remaining, sent_in_batch=self._sent_in_batch, in_batch=in_batch)

    def end_after(self, messages: float, *, sent_in_batch: bool, in_batch: bool) -> None:
        """Mute so many more, of which the last is, or is not, of a batch that has not ended.

        Args:
            messages: how many of what comes next were sent already.
            sent_in_batch: whether the last message that was sent is of such a batch.
            in_batch: whether the repetition has begun a batch and not ended it.
        """
        self.messages = messages
        self._sent_in_batch = sent_in_batch
        if not messages:
            self._leave_out_unknown_batch(in_batch=in_batch)

    def mute_one(self, *, in_batch: bool) -> None:
        """Count a message that is muted; `in_batch` after it."""
        self.messages -= 1
        if not self.messages:
            self._leave_out_unknown_batch(in_batch=in_batch)

    def end_batch(self) -> None:
        """Let out what comes after a batch that was left out, if one was."""
        self.leaves_out = False

    def _leave_out_unknown_batch(self, *, in_batch: bool) -> None:
        """Leave the batch out that is under way, if Kapacitor was not sent its begin."""
        self.leaves_out = in_batch and not self._sent_in_batch
