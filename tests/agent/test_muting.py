"""What was sent before is muted, and what follows goes with it."""

from __future__ import annotations

import pytest

from kapudf_cli.agent.muting import Muting


def test_nothing_is_muted_at_first() -> None:
    """As for a handler that is the connection's first."""
    assert Muting().is_over


def test_everything_is_muted_until_the_end() -> None:
    """However much comes."""
    muting = Muting()
    muting.begin(in_batch=False)
    for _ in range(1000):
        muting.mute_one(in_batch=False)
        assert not muting.is_over
    muting.end(in_batch=False)
    assert muting.is_over


@pytest.mark.parametrize("messages", [0, 1, 3])
def test_so_many_messages_are_muted_and_no_more(messages: int) -> None:
    """As many as another handler has sent of them."""
    muting = Muting()
    muting.begin(in_batch=False)
    muting.end_after(messages, sent_in_batch=False, in_batch=False)
    for left in range(messages, 0, -1):
        assert muting.messages == left
        muting.mute_one(in_batch=False)
    assert muting.is_over


@pytest.mark.parametrize("how", ["end", "end_after", "mute_one"])
@pytest.mark.parametrize("sent_in_batch", [False, True])
@pytest.mark.parametrize("in_batch", [False, True])
def test_a_batch_of_whose_begin_kapacitor_knows_nothing_is_left_out(
    how: str, *, sent_in_batch: bool, in_batch: bool
) -> None:
    """Any other goes on, and so does what is no batch."""
    muting = Muting()
    muting.begin(in_batch=sent_in_batch)
    if how == "end":
        muting.end(in_batch=in_batch)
    elif how == "end_after":
        muting.end_after(0, sent_in_batch=sent_in_batch, in_batch=in_batch)
    else:
        muting.end_after(1, sent_in_batch=sent_in_batch, in_batch=False)
        muting.mute_one(in_batch=in_batch)
    assert muting.leaves_out == (in_batch and not sent_in_batch)
    muting.end_batch()
    assert muting.is_over


def test_a_repetition_that_begins_again_remembers_what_was_sent() -> None:
    """What the first one wrote was muted, so that it tells nothing of Kapacitor's batch."""
    muting = Muting()
    muting.begin(in_batch=True)
    muting.begin(in_batch=False)
    muting.end(in_batch=True)
    assert not muting.leaves_out


@pytest.mark.parametrize("sent_in_batch", [False, True])
def test_what_was_still_muted_is_muted_after_a_repetition_as_well(*, sent_in_batch: bool) -> None:
    """A repetition in the midst of it neither counts for it nor ends it."""
    muting = Muting()
    muting.end_after(3, sent_in_batch=sent_in_batch, in_batch=False)
    muting.mute_one(in_batch=True)
    for _ in range(2):
        muting.begin(in_batch=True)
        muting.mute_one(in_batch=False)
    muting.end(in_batch=True)
    assert muting.messages == 2
    for _ in range(2):
        assert muting.sent_in_batch(in_batch=True) == sent_in_batch
        muting.mute_one(in_batch=True)
    assert muting.leaves_out != sent_in_batch


def test_a_batch_that_is_left_out_was_not_sent() -> None:
    """Nor is it after a repetition that begins in the midst of it."""
    muting = Muting()
    muting.end_after(0, sent_in_batch=False, in_batch=True)
    assert not muting.sent_in_batch(in_batch=True)
    muting.begin(in_batch=True)
    assert not muting.sent_in_batch(in_batch=True)
    muting.end(in_batch=True)
    assert muting.leaves_out
