"""Partitions in the agent's thread whose results come in an order that a test chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kapudf_cli.agent.partitions import LocalPartitions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kapudf_cli.agent.partition_messages import Result


class ReorderedPartitions(LocalPartitions):
    """Partitions that return one result at a time.

    `choose` is called with the numbers of the partitions that have results, and returns the one
    whose oldest result comes next, or None if none comes now.
    """

    def __init__(
        self, *arguments: Any, choose: Callable[[Sequence[int]], int | None], **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self._choose = choose
        self._kept: list[tuple[int, Result]] = []

    def take(self) -> list[tuple[int, Result]]:
        self._kept += super().take()
        chosen = self._next()
        place = next((at for at, (number, _) in enumerate(self._kept) if number == chosen), None)
        return [] if place is None else [self._kept.pop(place)]

    def _next(self) -> int | None:
        numbers = sorted({number for number, _ in self._kept})
        return self._choose(numbers) if numbers else None

    def forget(self) -> None:
        super().forget()
        self._kept.clear()

    def wait(self, *, input_descriptor: int | None = None, timeout_s: float | None = None) -> None:
        if self._next() is None:
            super().wait(input_descriptor=input_descriptor, timeout_s=timeout_s)


class Gate:
    """Holds back the results of some partitions.

    Attributes:
        held: these partitions.
    """

    def __init__(self) -> None:
        self.held: set[int] = set()
        self._made: list[ReorderedPartitions] = []

    def partitions(self, *arguments: Any, **more: Any) -> ReorderedPartitions:
        """Return partitions of a handler; see `LocalPartitions`."""
        made = ReorderedPartitions(*arguments, choose=self._choose, **more)
        self._made.append(made)
        return made

    def _choose(self, numbers: Sequence[int]) -> int | None:
        return next((number for number in numbers if number not in self.held), None)

    def release(self) -> None:
        """Let all results come."""
        self.held.clear()
        for each in self._made:
            each.wake()
