"""Queries: what can be replayed, and how their time is limited."""

from __future__ import annotations

import pytest

from kapudf_cli.tools.errors import QueryError
from kapudf_cli.tools.recordings.influxql import Query


@pytest.mark.parametrize(
    ("query", "limited"),
    [
        ("SELECT v FROM m", "SELECT v FROM m WHERE TIME"),
        ("select v from m ;", "select v from m WHERE TIME"),
        ("SELECT v FROM m WHERE a = 1 OR b = 2", "SELECT v FROM m WHERE (a = 1 OR b = 2) AND TIME"),
        ("SELECT v FROM m GROUP BY host", "SELECT v FROM m WHERE TIME GROUP BY host"),
        (
            "SELECT mean(v) FROM m WHERE a='x' GROUP BY time(1m), * fill(none)",
            "SELECT mean(v) FROM m WHERE (a='x') AND TIME GROUP BY time(1m), * fill(none)",
        ),
        ("SELECT v FROM m LIMIT 3 OFFSET 1", "SELECT v FROM m WHERE TIME LIMIT 3 OFFSET 1"),
        ("SELECT v FROM m tz('Europe/Berlin')", "SELECT v FROM m WHERE TIME tz('Europe/Berlin')"),
        (
            'SELECT "where" FROM "rp"."group by" WHERE t = \'it\\\'s where\'',
            'SELECT "where" FROM "rp"."group by" WHERE (t = \'it\\\'s where\') AND TIME',
        ),
        (
            "SELECT x FROM (SELECT y FROM m WHERE z = 1 GROUP BY host) GROUP BY dc",
            "SELECT x FROM (SELECT y FROM m WHERE z = 1 GROUP BY host) WHERE TIME GROUP BY dc",
        ),
        ("SELECT v FROM m -- WHERE x\nLIMIT 1", "SELECT v FROM m WHERE TIME LIMIT 1"),
        ("SELECT v /* ; INTO */ FROM m", "SELECT v FROM m WHERE TIME"),
        ("SELECT v FROM /where b/", "SELECT v FROM /where b/ WHERE TIME"),
        ("SELECT v FROM m WHERE h =~ /a(b/", "SELECT v FROM m WHERE (h =~ /a(b/) AND TIME"),
        ("SELECT a / b FROM m WHERE c / d > 1", "SELECT a / b FROM m WHERE (c / d > 1) AND TIME"),
    ],
)  # fmt: skip
def test_a_condition_on_the_time_is_added_where_kapacitor_adds_it(query: str, limited: str) -> None:
    assert Query(query).between(10, 20) == limited.replace("TIME", "time >= 10 AND time < 20")


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("", "begins with SELECT"),
        ("DROP DATABASE plant", "begins with SELECT"),
        ("SHOW TAG KEYS", "begins with SELECT"),
        ("SELECT v INTO copy FROM m", "INTO"),
        ("SELECT v FROM m; DROP DATABASE plant", "only one"),
        ("SELECT v FROM m ORDER BY time DESC", "order of time"),
    ],
)
def test_other_statements_are_refused(query: str, problem: str) -> None:
    with pytest.raises(QueryError, match=problem):
        Query(query)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT v FROM m WHERE time > now() - 1h",
        "SELECT v FROM m WHERE a = 'x' AND \"time\" > 5",
        "SELECT v FROM m WHERE (TIME<5)",
    ],
)
def test_two_conditions_on_the_time_are_refused(text: str) -> None:
    query = Query(text)
    with pytest.raises(QueryError, match="leave it out"):
        query.between(1, 2)


@pytest.mark.parametrize(
    ("query", "by_time", "one_series"),
    [
        ("SELECT v FROM m", False, True),
        ("SELECT v, w FROM m WHERE a = 'x,y'", False, True),
        ("SELECT mean(v) FROM m GROUP BY time(1m, 10s) fill(0)", True, True),
        ("SELECT mean(v) FROM m GROUP BY host, time(1m)", True, False),
        ("SELECT v FROM m GROUP BY *", False, False),
        ("SELECT v FROM m GROUP BY /h/", False, False),
        ('SELECT v FROM m GROUP BY "time"', False, False),
        ("SELECT v FROM m, n", False, False),
        ('SELECT v FROM "rp"./m.*/', False, False),
    ],
)  # fmt: skip
def test_what_groups_a_query(query: str, by_time: bool, one_series: bool) -> None:  # noqa: FBT001 - of a table
    read = Query(query)
    assert (read.grouped_by_time, read.has_one_series) == (by_time, one_series)
