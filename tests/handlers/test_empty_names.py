"""Empty names in the options of the built-in handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kapudf_handlers.default import Default
from kapudf_handlers.enrich import Enrich
from kapudf_handlers.mirror import BatchMirror, Mirror
from kapudf_handlers.moving_average import MovingAverage
from kapudf_handlers.outliers import Outliers
from kapudf_handlers.rate import Rate
from kapudf_handlers.seasonal_baseline import SeasonalBaseline
from kapudf_handlers.ttest import TTest

from kapudf_cli.protocol.udf_pb2 import InitRequest
from kapudf_cli.testing import Task, TaskFailedError
from kapudf_cli.tickscript.calls import read_calls

if TYPE_CHECKING:
    from kapudf_cli import Handler

EMPTY = "expects a string that is not empty, got ''"
EMPTY_FIRST = "expects a string that is not empty as value 1, got ''"


@pytest.mark.parametrize(
    ("handler", "calls", "sentence"),
    [
        (Mirror, ".field('', 42.0)", f".field() {EMPTY_FIRST}"),
        (Mirror, ".tag('', 'x')", f".tag() {EMPTY_FIRST}"),
        (BatchMirror, ".field('', 42.0)", f".field() {EMPTY_FIRST}"),
        (Default, ".field('', 0.0)", f".field() {EMPTY_FIRST}"),
        (Default, ".fieldInt('', 0)", f".fieldInt() {EMPTY_FIRST}"),
        (Default, ".fieldString('', 'x')", f".fieldString() {EMPTY_FIRST}"),
        (Default, ".fieldBool('', TRUE)", f".fieldBool() {EMPTY_FIRST}"),
        (Default, ".tag('', 'x')", f".tag() {EMPTY_FIRST}"),
        (MovingAverage, ".field('').size(2)", f".field() {EMPTY}"),
        (MovingAverage, ".field('v').size(2).as('')", f".as() {EMPTY}"),
        (Rate, ".field('')", f".field() {EMPTY}"),
        (Rate, ".field('v').as('')", f".as() {EMPTY}"),
        (SeasonalBaseline, ".field('')", f".field() {EMPTY}"),
        (SeasonalBaseline, ".field('v').as('')", f".as() {EMPTY}"),
        (SeasonalBaseline, ".field('v').deviation('')", f".deviation() {EMPTY}"),
        (Enrich, ".by('').url('http://a/{}').tag('x')", f".by() {EMPTY}"),
        (Enrich, ".by('x').url('http://a/{}').tag('')", f".tag() {EMPTY}"),
        (Enrich, ".by('x').url('http://a/{}').field('')", f".field() {EMPTY}"),
        (Outliers, ".field('')", f".field() {EMPTY}"),
        (TTest, ".field('').size(3).alpha(0.1)", f".field() {EMPTY}"),
    ],
)
def test_an_empty_name_is_refused(handler: type[Handler], calls: str, sentence: str) -> None:
    options = [call.option for call in read_calls(calls)]
    with Task.of(handler) as task, pytest.raises(TaskFailedError) as failure:
        task.init_raw(InitRequest(options=options))
    assert str(failure.value) == sentence


def test_a_value_may_be_empty() -> None:
    options = [call.option for call in read_calls(".fieldString('text', '').tag('host', '')")]
    with Task.of(Default) as task:
        task.init_raw(InitRequest(options=options))
