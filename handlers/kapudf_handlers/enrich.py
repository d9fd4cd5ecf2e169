"""Tags and fields that a web service has for the value of a tag.

stream
    |from()
        .measurement('cpu')
        .groupBy('host')
    @enrich()
        .by('host')
        .url('http://localhost:8080/hosts/{}')
        .tag('owner')
        .field('limit')
    |alert()
        .details('for {{ index .Tags "owner" }}')
        .crit(lambda: isPresent("limit") AND "usage_user" > "limit")
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from logging import getLogger
from typing import TYPE_CHECKING, Annotated

from kapudf_cli import Handler, Meta, Name, Options, OptionsError, Point, get_tag, set_field

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = getLogger(__name__)

#: How many requests a task makes at once. More would only queue at most services.
_REQUESTS = 16
#: How long no request is made after the service has failed, and how often that is logged.
_PAUSE_S = 10.0
#: The longest answer: memory is bounded by this times `keys`.
_MAX_ANSWER_BYTES = 65_536
#: The service answered that it does not know the key.
_UNKNOWN = frozenset({404, 410})
_SERVER_ERRORS = 500
_TOO_MANY_REQUESTS = 429


class EnrichOptions(Options):
    """The tag, the web service, and what to take from its answer."""

    by: Annotated[Name, Meta(description="the tag whose value is looked up")]
    url: Annotated[str, Meta(description="the address, with {} for the tag's value")]
    tag: Annotated[
        list[Name], Meta(description="a tag to take from the answer, replacing one of that name")
    ] = []
    field: Annotated[
        list[Name], Meta(description="a field to take from the answer, replacing one of that name")
    ] = []
    ttl: Annotated[dt.timedelta, Meta(description="how long an answer is used")] = dt.timedelta(
        minutes=10
    )
    timeout: Annotated[dt.timedelta, Meta(description="how long the service may take")] = (
        dt.timedelta(seconds=5)
    )
    keys: Annotated[int, Meta(ge=1, le=1_000_000, description="how many values are kept")] = 10_000


@dataclass(frozen=True)
class Found:
    """What is set on the points of a key; nothing for a key that the service does not know."""

    tags: Mapping[str, str]
    fields: Mapping[str, str | float | bool]


_NOTHING = Found({}, {})


class Enrich(Handler):
    """Adds tags and fields that a web service has for the value of a tag."""

    options: EnrichOptions
    concurrency = 4 * _REQUESTS

    # `teardown` may be called without `setup`.
    threads: ThreadPoolExecutor | None = None

    async def setup(self) -> None:
        """Check the options, and create an empty cache.

        Raises:
            OptionsError: the URL, a duration or the choice of tags and fields is invalid.
        """
        self.check_options()
        # What was found for each key, and when that is out of date; the most recently used is last.
        self.cache: OrderedDict[str, tuple[Found, float]] = OrderedDict()
        self.requests: dict[str, asyncio.Task[Found]] = {}
        self.paused_until_s = -math.inf
        self.failures = 0
        self.reported_s = -math.inf
        self.threads = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="enrich")
        # Points wait here for a thread, so that this time does not count as the service's.
        self.free = asyncio.Semaphore(_REQUESTS)

    def check_options(self) -> None:
        """Raise OptionsError for options that cannot work."""
        chosen = self.options
        if not re.match(r"https?://[^/?#{]", chosen.url) or "{}" not in chosen.url:
            expected = "a URL such as 'http://localhost:8080/hosts/{}', with {} for the tag's value"
            raise OptionsError(f".url() expects {expected}, got '{chosen.url}'")
        if not chosen.tag and not chosen.field:
            raise OptionsError(
                "call .tag() or .field() with a name that the service's answers have"
            )
        if chosen.ttl < dt.timedelta(0) or chosen.timeout <= dt.timedelta(0):
            raise OptionsError(".ttl() expects a duration of 0s or more, .timeout() one above 0s")

    async def point(self, point: Point, /) -> Point:
        """Set what the service has for a point's tag; without the tag, the point is unchanged."""
        key = get_tag(point, self.options.by)
        if key:
            found = await self.find(key)
            point.tags.update(found.tags)
            for name, value in found.fields.items():
                set_field(point, name, value)
        return point

    async def find(self, key: str) -> Found:
        """Return what the cache or the service has for a key."""
        now_s = asyncio.get_running_loop().time()
        found, expires_s = self.cache.get(key, (_NOTHING, -math.inf))
        if now_s < expires_s:
            self.cache.move_to_end(key)
            return found
        if key not in self.requests:
            if now_s < self.paused_until_s:
                return found
            self.requests[key] = asyncio.create_task(self.request(key, found))
        # Points of one key wait for one request, which goes on if one of these calls is canceled.
        return await asyncio.shield(self.requests[key])

    async def request(self, key: str, old: Found) -> Found:
        """Ask the service, and keep the answer; after a failure, keep the old one for a while."""
        loop = asyncio.get_running_loop()
        lasts_s = self.options.ttl.total_seconds()
        try:
            async with self.free:
                if loop.time() < self.paused_until_s:
                    return old
                async with asyncio.timeout(self.options.timeout.total_seconds()):
                    found = await loop.run_in_executor(self.threads, self.ask, key)
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            found, lasts_s = old, min(lasts_s, _PAUSE_S)
            if _is_down(error):
                self.paused_until_s = loop.time() + _PAUSE_S
            self.report(key, error, loop.time())
        finally:
            del self.requests[key]
        self.cache[key] = found, loop.time() + lasts_s
        self.cache.move_to_end(key)
        if len(self.cache) > self.options.keys:
            self.cache.popitem(last=False)
        return found

    def ask(self, key: str) -> Found:
        """Ask the service for a key, in a thread."""
        url = self.options.url.replace("{}", urllib.parse.quote(key, safe=""))
        timeout_s = self.options.timeout.total_seconds()
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - see setup
                text = answer.read(_MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _UNKNOWN:
                    return _NOTHING
                raise
        if len(text) > _MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {_MAX_ANSWER_BYTES} bytes")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("the answer is not a JSON object")  # noqa: TRY004 - as other bad answers
        tags = {name: _tag(content.get(name)) for name in self.options.tag}
        fields = {name: _field(content.get(name)) for name in self.options.field}
        return Found(
            {name: text for name, text in tags.items() if text},
            {name: value for name, value in fields.items() if value is not None},
        )

    def report(self, key: str, error: BaseException, now_s: float) -> None:
        """Log a failure, unless one was logged a short time ago."""
        self.failures += 1
        if now_s - self.reported_s >= _PAUSE_S:
            cause = str(error) or type(error).__name__
            _log.warning("failed requests: %d, the last for %r: %s", self.failures, key, cause)
            self.failures, self.reported_s = 0, now_s

    def teardown(self) -> None:
        """End the threads."""
        if self.threads is not None:
            self.threads.shutdown(wait=False, cancel_futures=True)


def _is_down(error: BaseException) -> bool:
    """Return whether the service, not its answer for one key, is the cause."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= _SERVER_ERRORS or error.code == _TOO_MANY_REQUESTS
    return isinstance(error, OSError | HTTPException)


def _tag(value: object) -> str:
    """Return a value of JSON as the text of a tag; empty if it cannot be one."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else ""


def _field(value: object) -> str | float | bool | None:
    """Return a value of JSON as a field, numbers as floats; None if it cannot be one."""
    if isinstance(value, str | bool):
        return value
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
