"""A Ray cluster: the connection to it, and the actors that it runs for a worker."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final, cast

from kapudf_cli.errors import MissingExtraError, describe
from kapudf_cli.ray_engine.actor import PartitionActor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from kapudf_cli.config import RayActor

# Ray writes hints about its own use to stderr otherwise.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

try:
    import ray
    from ray import exceptions
    from ray.util.placement_group import PlacementGroup, placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
except ImportError as error:
    raise MissingExtraError("engine: ray", "ray", "ray") from error

#: How many calls an actor may have at once: those of all of its connections, and the poll.
_MAX_CALLS: Final = 10_000
#: What a partition reserves by default: Ray spreads only what reserves anything. More would keep
#: the actors of a new worker from being created while those of the old one run.
_LEAST_CPUS: Final = 0.01
#: How much of an accelerator Ray itself reserves for its type.
_LEAST_ACCELERATOR: Final = 0.001
#: How long a connection to the head may take.
_CONNECT_S: Final = 3.0
#: Less than the worker waits for the end of the engine.
_DISCONNECT_S: Final = 0.8
#: So many digits of an id tell nodes apart.
_ID_DIGITS: Final = 6

#: Raised by calls of an actor that is lost, or whose cluster is; the second one by Ray's client.
LOST_ERRORS: Final = (exceptions.RayError, ConnectionError)


class UnreachableError(Exception):
    """There is no cluster at the address, at the moment."""


class MismatchError(Exception):
    """The cluster has another version of Ray or Python; trying again cannot help."""


def connect(address: str) -> None:
    """Connect this process to a cluster.

    Raises:
        UnreachableError: there is none, or it does not answer.
        MismatchError: it has another version.
    """
    _check_port(address)
    try:
        ray.init(
            address=address,
            namespace="kapudf",
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (OSError, TimeoutError, ValueError, exceptions.RayError) as error:
        raise UnreachableError(describe(error)) from error
    except RuntimeError as error:
        if "version" in str(error).lower():
            raise MismatchError(describe(error)) from error
        raise UnreachableError(describe(error)) from error


def _check_port(address: str) -> None:
    """Raise UnreachableError if nothing listens there; Ray would end this process for that."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        except OSError as error:
            raise UnreachableError(describe(error)) from error


def reserve(needs: RayActor, count: int) -> PlacementGroup:
    """Reserve what actors need, for as long as this process is connected.

    Raises:
        ValueError, TypeError: there is no such need.
    """
    bundle = {"CPU": _cpus(needs), "GPU": needs.num_gpus or 0, "memory": needs.memory or 0}
    bundle |= needs.resources or {}
    if needs.accelerator_type is not None:
        bundle[f"accelerator_type:{needs.accelerator_type}"] = _LEAST_ACCELERATOR
    bundle = {name: amount for name, amount in bundle.items() if amount}
    return placement_group([bundle or {"CPU": _LEAST_CPUS}] * count, strategy=needs.strategy)


def _cpus(needs: RayActor) -> float:
    return _LEAST_CPUS if needs.num_cpus is None else needs.num_cpus


def create_actors(needs: RayActor, group: PlacementGroup, count: int) -> list[Any]:
    """Create actors in what is reserved, and return their handles.

    Raises:
        ValueError, TypeError: `runtime_env` is not valid.
    """
    actor = ray.remote(PartitionActor)
    options: dict[str, Any] = {
        "num_cpus": _cpus(needs),
        "num_gpus": needs.num_gpus,
        "memory": needs.memory,
        "resources": needs.resources,
        "accelerator_type": needs.accelerator_type,
        "runtime_env": needs.runtime_env,
        "max_concurrency": _MAX_CALLS,
        "max_restarts": 0,
    }
    options = {name: value for name, value in options.items() if value is not None}
    return [
        actor.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=number
            ),
            **options,
        ).remote()
        for number in range(count)
    ]


def disconnect() -> None:
    """Disconnect from the cluster, within a limited time, so that it ends the actors at once.

    Otherwise, Ray's client server keeps them for half a minute, and the processors or GPUs that
    they have reserved.
    """
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(_DISCONNECT_S)


def name_of(node: str) -> str:
    """Return the address of a node, and the beginning of its id, which several may share."""
    nodes: list[dict[str, Any]] = ray.nodes()
    addresses = {each["NodeID"]: each["NodeManagerAddress"] for each in nodes}
    return f"{addresses.get(node, 'unknown')}/{node[:_ID_DIGITS]}"


def reason_of(error: Exception) -> str:
    """Return why a call has failed, in one line without Ray's general advice."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = (line for line in lines if line.startswith(("The actor is dead", "The actor died bec")))
    text = next(told, "")
    if not text or "creation task" in text:
        # It is a traceback, and its last line names what was raised.
        text = lines[-1] if lines else repr(error)
    return text.partition(" Some common causes")[0].strip()


def call(method: Any, *arguments: object, results: int = 1) -> Awaitable[bytes]:
    """Call a method of an actor; return its result, which it may give as several chunks.

    The call is sent at once.
    """
    if results == 1:
        return cast("Awaitable[bytes]", method.remote(*arguments))
    return _join(method.options(num_returns=results).remote(*arguments))


async def _join(parts: Sequence[Awaitable[bytes]]) -> bytes:
    return b"".join([await part for part in parts])
