"""Resource limits: checks, and errors that name them."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from kapudf_cli.config import FunctionSettings, Settings
from kapudf_cli.errors import ConfigError
from kapudf_cli.journal import journal
from kapudf_cli.system import processes

SETTINGS = Settings(functions={"f": FunctionSettings(handler="mirror", socket="/x")})


@pytest.fixture(params=[1_000_000, resource.RLIM_INFINITY], ids=["limited", "unlimited"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Set the soft limit of all resources."""
    soft: int = request.param
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    return soft


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "RLIMIT_AS"),
        (MemoryError(), "RLIMIT_AS"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "RLIMIT_FSIZE"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "RLIMIT_NOFILE"),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), None),
        (RuntimeError("can't start new thread"), None),
    ],
)
def test_an_error_names_the_limit_that_may_have_caused_it(
    limit: int, error: Exception, name: str | None
) -> None:
    text = processes.explain_limit(error)
    is_named = name is not None and limit != resource.RLIM_INFINITY
    assert text.startswith(str(error) or "MemoryError") or type(error).__name__ in text
    assert ("RLIMIT_" in text) == is_named
    if is_named:
        assert f"({name} is 1000000 " in text


def test_journals_are_checked_against_both_limits(limit: int) -> None:
    if limit == resource.RLIM_INFINITY:
        journal.check_journals(SETTINGS, source="file")
        return
    with pytest.raises(ConfigError) as caught:
        journal.check_journals(SETTINGS, source="file")
    assert [fault.split()[1] for fault in caught.value.faults] == ["RLIMIT_FSIZE", "RLIMIT_AS"]
