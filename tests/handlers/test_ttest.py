"""The handler `ttest`: its results, its history and its points."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from kapudf_handlers.ttest import TTest, TTestOptions
from scipy import special

from kapudf_cli import BATCH, STREAM, Point
from kapudf_cli.handler.batches import Batch
from kapudf_cli.testing import StartTask, Task, TaskFailedError
from tests.examples import examples
from tests.handlers import recordings
from tests.plugins.distributions import environment
from tests.run_kapudf import run_kapudf

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


ORDINARY = [20.0, 21.0, 19.0, 20.5, 19.5, 20.25]
STRANGE = [40.0, 41.0, 39.0, 40.5]

SAMPLES = st.lists(
    st.floats(min_value=-1e6, max_value=1e6).map(lambda value: round(value, 3)),
    min_size=2,
    max_size=30,
)


def options(*, size: int = 100, alpha: float = 0.01) -> TTestOptions:
    return TTestOptions(field="value", size=size, alpha=alpha)


def batch_of(values: Sequence[float], *, host: str = "a", tmax_ns: int = 1000) -> Batch:
    """Return a batch with a point for each value, in the group of a host."""
    points = [
        Point(time=time, group=f"host={host}", tags={"host": host}, fieldsDouble={"value": value})
        for time, value in enumerate(values)
    ]
    return Batch("temperature", points, {"host": host}, f"host={host}", tmax_ns)


def welch(history: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return t, p and the degrees of freedom, by Welch's formulas."""
    first = statistics.variance(history) / len(history)
    second = statistics.variance(values) / len(values)
    t = (statistics.fmean(history) - statistics.fmean(values)) / math.sqrt(first + second)
    df = (first + second) ** 2 / (first**2 / (len(history) - 1) + second**2 / (len(values) - 1))
    # The distribution of t, by the incomplete beta function.
    return {"t": t, "p": float(special.betainc(df / 2, 0.5, df / (df + t * t))), "df": df}


def figures(point: Point) -> dict[str, float]:
    return dict(point.fieldsDouble)


def test_a_batch_that_differs_gives_t_p_and_df(udf: StartTask) -> None:
    # Wikipedia, "Welch's t-test", example 1: t = -2.46, df = 25.0, p = 0.021.
    first = [
        27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4,
    ]  # fmt: skip
    second = [
        27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4,
    ]  # fmt: skip
    task = udf(TTest, options(alpha=0.05))
    (point,) = task.send(batch_of(first), batch_of(second)).points
    assert figures(point) == pytest.approx(welch(first, second), rel=1e-9)
    assert figures(point) == pytest.approx({"t": -2.46, "p": 0.021, "df": 25.0}, rel=0.02)


@given(history=SAMPLES, values=SAMPLES)
@examples(0.6)
def test_the_figures_are_welch_s(history: list[float], values: list[float]) -> None:
    spread = max(statistics.stdev(history), statistics.stdev(values))
    assume(min(statistics.stdev(history), statistics.stdev(values)) > 1e-3 * spread > 0)
    # Else scipy itself warns of a loss of precision.
    assume(spread > 1e-6 * max(map(abs, history + values)))
    wanted = welch(history, values)
    with Task.of(TTest) as task:
        task.init(options(alpha=0.999))
        out = task.send(batch_of(history), batch_of(values)).points
    if wanted["p"] < 0.99:
        assert figures(out[0]) == pytest.approx(wanted, rel=1e-6)
    elif wanted["p"] > 0.9991:
        assert out == []


def test_the_first_batch_gives_nothing(udf: StartTask) -> None:
    out = udf(TTest, options(alpha=0.999)).send(batch_of(STRANGE))
    assert (out.points, out.batches) == ([], [])


def test_an_ordinary_batch_gives_nothing(udf: StartTask) -> None:
    assert udf(TTest, options()).send(*[batch_of(ORDINARY)] * 5).points == []


def test_a_batch_that_differs_does_not_join_the_history(udf: StartTask) -> None:
    task = udf(TTest, options())
    out = task.send(batch_of(ORDINARY), *[batch_of(STRANGE)] * 3).points
    assert [figures(point) for point in out] == [figures(out[0])] * 3
    assert figures(out[0]) == pytest.approx(welch(ORDINARY, STRANGE), rel=1e-9)


def test_an_ordinary_batch_joins_the_history(udf: StartTask) -> None:
    more = [value + 0.125 for value in ORDINARY]
    (point,) = udf(TTest, options()).send(*map(batch_of, (ORDINARY, more, STRANGE))).points
    assert figures(point) == pytest.approx(welch(ORDINARY + more, STRANGE), rel=1e-9)


@pytest.mark.parametrize("size", [2, 3, 5, 6, 7, 11])
def test_the_history_has_the_last_values_only(udf: StartTask, size: int) -> None:
    task = udf(TTest, options(size=size, alpha=0.05))
    more = [value + 0.125 for value in ORDINARY]
    out = task.send(batch_of(ORDINARY), batch_of(more), batch_of(STRANGE)).points
    remembered = (ORDINARY + more)[-size:]
    assert figures(out[0]) == pytest.approx(welch(remembered, STRANGE), rel=1e-9)
    ((_, _, content),) = json.loads(task.snapshot())["state"]["groups"]
    assert content["values"] == remembered


def test_groups_have_histories_of_their_own(udf: StartTask) -> None:
    task = udf(TTest, options())
    task.send(batch_of(ORDINARY, host="a"), batch_of(STRANGE, host="b"))
    out = task.send(
        batch_of(ORDINARY, host="b"),
        batch_of(STRANGE, host="b"),
        batch_of(ORDINARY, host="a"),
        batch_of(STRANGE, host="a"),
    ).points
    assert [point.tags["host"] for point in out] == ["b", "a"]
    assert figures(out[0]) == pytest.approx(welch(STRANGE, ORDINARY), rel=1e-9)
    assert figures(out[1]) == pytest.approx(welch(ORDINARY * 2, STRANGE), rel=1e-9)


def test_the_point_belongs_where_the_batch_did(udf: StartTask) -> None:
    task = udf(TTest, options())
    strange = batch_of(STRANGE, tmax_ns=1_600_000_000_000_000_001)
    strange.tags, strange.by_name = {"rack": "1", "host": "a"}, True
    (point,) = task.send(batch_of(ORDINARY), strange).points
    assert point.time == 1_600_000_000_000_000_001
    assert point.name == "temperature"
    assert dict(point.tags) == {"rack": "1", "host": "a"}
    assert list(point.dimensions) == ["host", "rack"]
    assert point.byName
    assert sorted(point.fieldsDouble) == ["df", "p", "t"]
    assert not point.fieldsInt
    assert not point.fieldsString


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_an_alpha_that_is_no_probability_is_refused_in_words(udf: StartTask, alpha: float) -> None:
    with pytest.raises(TaskFailedError) as failure:
        udf(TTest, options(alpha=alpha))
    assert str(failure.value) == f".alpha() expects a float, above 0.0 and below 1.0, got {alpha}"


@pytest.mark.parametrize("size", [1, 0, -1, 1_000_001])
def test_a_size_that_is_no_history_is_refused_in_words(udf: StartTask, size: int) -> None:
    with pytest.raises(TaskFailedError) as failure:
        udf(TTest, options(size=size))
    assert str(failure.value) == (
        f".size() expects a whole number, at least 2 and at most 1000000, got {size}"
    )


def test_alpha_is_where_a_batch_begins_to_differ(udf: StartTask) -> None:
    shifted = [value + 0.5 for value in ORDINARY]
    p = welch(ORDINARY, shifted)["p"]
    batches = (batch_of(ORDINARY), batch_of(shifted))
    assert len(udf(TTest, options(alpha=p * 1.001)).send(*batches).points) == 1
    assert udf(TTest, options(alpha=p * 0.999)).send(*batches).points == []


@given(
    value=st.floats(min_value=-1e12, max_value=1e12),
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=4),
)
@example(value=-46.7, counts=[20, 5])
@example(value=67.516, counts=[22, 5])
@example(value=0.1, counts=[3, 5])
@examples(0.6)
def test_constants_that_are_equal_do_not_differ(value: float, counts: list[int]) -> None:
    with Task.of(TTest) as task:
        task.init(options(alpha=0.999))
        assert task.send(*(batch_of([value] * count) for count in counts)).points == []


def test_constants_that_differ_do_so_surely(udf: StartTask) -> None:
    (point,) = udf(TTest, options()).send(batch_of([1.0] * 4), batch_of([2.0] * 4)).points
    assert figures(point)["p"] == 0.0
    assert "t" not in figures(point)


def test_a_constant_differs_from_a_history_that_varies(udf: StartTask) -> None:
    (point,) = udf(TTest, options()).send(batch_of(ORDINARY), batch_of([40.0] * 4)).points
    assert figures(point) == pytest.approx(welch(ORDINARY, [40.0] * 4), rel=1e-9)


def test_values_too_large_to_square_fail_no_task(udf: StartTask) -> None:
    huge = [1e308, -1e308, 1e308]
    assert udf(TTest, options()).send(batch_of(huge), batch_of(huge)).points == []


@pytest.mark.parametrize("values", [[], [40.0]])
def test_a_batch_of_fewer_than_two_values_is_not_tested(
    udf: StartTask, values: list[float]
) -> None:
    task = udf(TTest, options(alpha=0.999))
    assert task.send(batch_of(ORDINARY), batch_of(values)).points == []
    (point,) = task.send(batch_of(STRANGE)).points
    assert figures(point) == pytest.approx(welch(ORDINARY + values, STRANGE), rel=1e-9)


def test_a_history_grows_from_single_values(udf: StartTask) -> None:
    task = udf(TTest, options(alpha=0.5))
    assert task.send(batch_of([20.0]), batch_of([21.0])).points == []
    (point,) = task.send(batch_of(STRANGE)).points
    assert figures(point) == pytest.approx(welch([20.0, 21.0], STRANGE), rel=1e-9)


def test_points_without_a_finite_number_take_no_part(udf: StartTask) -> None:
    history = batch_of([*ORDINARY, math.nan, math.inf, -math.inf])
    history.points += [
        Point(fieldsString={"value": "7"}),
        Point(fieldsBool={"value": True}),
        Point(fieldsDouble={"other": 1e9}),
    ]
    strange = batch_of([])
    strange.points = [Point(fieldsInt={"value": number}) for number in (40, 41, 39)]
    (point,) = udf(TTest, options()).send(history, strange).points
    assert figures(point) == pytest.approx(welch(ORDINARY, [40.0, 41.0, 39.0]), rel=1e-9)


@pytest.mark.parametrize("cut", range(13))
def test_a_restored_task_goes_on_as_an_undisturbed_one(udf: StartTask, cut: int) -> None:
    chance = random.Random(3)  # noqa: S311 - it need not be a secret
    batches = [
        batch_of(
            [chance.gauss(30.0 if number % 5 == 4 else 20.0) for _ in range(8)],
            host="ab"[number % 2],
            tmax_ns=number,
        )
        for number in range(12)
    ]
    undisturbed = udf(TTest, options(size=20)).send(*batches).points
    assert {point.time for point in undisturbed} >= {4, 9}
    first, second = udf(TTest, options(size=20)), udf(TTest, options(size=20))
    before = first.send(*batches[:cut]).points
    second.restore(first.snapshot())
    assert before + second.send(*batches[cut:]).points == undisturbed


def test_a_smaller_size_keeps_the_last_values_of_a_snapshot(udf: StartTask) -> None:
    first = udf(TTest, options(size=100))
    first.send(batch_of(ORDINARY))
    second = udf(TTest, options(size=3))
    second.restore(first.snapshot())
    (point,) = second.send(batch_of(ORDINARY[:2]), batch_of(STRANGE)).points
    remembered = [*ORDINARY, *ORDINARY[:2]][-3:]
    assert figures(point) == pytest.approx(welch(remembered, STRANGE), rel=1e-9)


def test_the_batches_of_the_recording_are_tested(udf: StartTask) -> None:
    histories: dict[str, list[float]] = {}
    wanted: list[tuple[str, int | None, dict[str, float]]] = []
    for batch in recordings.read_batches(recordings.BATCH):
        values = [point.fieldsDouble["usage_idle"] for point in batch.points]
        history = histories.setdefault(batch.group, [])
        found = welch(history, values) if history else {"p": 1.0}
        if found["p"] < 0.5:
            wanted.append((batch.tags["host"], batch.tmax_ns, found))
        else:
            histories[batch.group] = [*history, *values][-50:]
    assert 0 < len(wanted) < 27

    task = udf(TTest, TTestOptions(field="usage_idle", size=50, alpha=0.5))
    out = task.send(*recordings.read_batches(recordings.BATCH)).points
    assert [(point.tags["host"], point.time) for point in out] == [each[:2] for each in wanted]
    for point, (_, _, found) in zip(out, wanted, strict=True):
        assert figures(point) == pytest.approx(found, rel=1e-9)


def test_it_declares_its_edges_and_options(udf: StartTask) -> None:
    info = udf(TTest, options()).info()
    assert (info.wants, info.provides) == (BATCH, STREAM)
    assert sorted(info.options) == ["alpha", "field", "size"]


def without_scipy(folder: Path) -> dict[str, str]:
    """Return the environment of a process in which scipy cannot be imported."""
    package = folder / "scipy"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'scipy'\", name='scipy')\n", encoding="utf-8"
    )
    return environment(folder)


def test_without_scipy_the_list_says_what_to_install(tmp_path: Path) -> None:
    result = run_kapudf("list-handlers", "--json", env=without_scipy(tmp_path), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(result.stdout)}
    assert "it needs scipy: pip install 'kapudf[stats]'" in rows["ttest"]["error"]
    assert [name for name, row in rows.items() if row["error"]] == ["ttest"]


def test_without_scipy_the_text_says_what_to_install(tmp_path: Path) -> None:
    result = run_kapudf("list-handlers", env=without_scipy(tmp_path), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "it needs scipy: pip install 'kapudf[stats]'" in " ".join(result.stdout.split())


def test_without_scipy_serving_it_says_what_to_install(tmp_path: Path) -> None:
    socket = os.path.join(tmp_path, "udf.sock")
    arguments = ("serve", "--socket", socket, "--handler", "ttest")
    result = run_kapudf(*arguments, env=without_scipy(tmp_path), cwd=tmp_path)
    assert result.returncode != 0
    assert "pip install 'kapudf[stats]'" in result.stderr
    assert not os.path.exists(socket)
