"""Descriptors that outlive this process, because another one keeps duplicates of them.

systemd does so for its services (FileDescriptorStoreMax=), and `keeper` elsewhere. Both use the
same messages, and pass the descriptors to the next process of the service under their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.system import systemd

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

#: The names are passed on in one environment variable, which may have 128 KiB.
_NAMES_BYTES: Final = 120_000


class DescriptorStore:
    """The descriptors that the next process of this service gets, by name."""

    def __init__(self, *, keeps: bool, log: BoundLogger) -> None:
        """Begin with what an earlier process has left.

        Args:
            keeps: whether another process keeps duplicates. If not, the descriptors are lost with
                this process, unless it replaces itself by exec.
            log: where failures go.
        """
        self._keeps = keeps
        self._log = log
        self._descriptors: dict[str, int] = {}
        self._names_bytes = 0
        self._has_failed = False
        self._found: dict[str, int] = {}
        for name, descriptor in systemd.take_descriptors():
            # Of sockets that systemd listens on, several may have the same name.
            place = 1
            unique = name
            while unique in self._found:
                place += 1
                unique = f"{name}-{place}"
            self._found[unique] = descriptor

    def take_found(self) -> dict[str, int]:
        """Return what an earlier process has left; only the first call returns it.

        The descriptors become the caller's, who closes them. What is to be kept further is to be
        passed to `keep`, everything else to `remove`.
        """
        found, self._found = self._found, {}
        return found

    def put(self, name: str, descriptor: int) -> None:
        """Keep a descriptor, which must stay open until `remove`.

        Args:
            name: not used for another one; without ":" and control characters.
            descriptor: which.
        """
        self.keep(name, descriptor)
        if not self._keeps:
            return
        if self._names_bytes > _NAMES_BYTES:
            self._fail("there are too many; tasks beyond that fail if kapudf is restarted")
        elif not systemd.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [descriptor]):
            self._fail("the process that keeps them does not take them")

    def keep(self, name: str, descriptor: int) -> None:
        """Note a descriptor that is kept already."""
        self._descriptors[name] = descriptor
        self._names_bytes += len(name) + 1

    def remove(self, *names: str) -> None:
        """Keep descriptors no longer."""
        for name in names:
            if self._descriptors.pop(name, None) is not None:
                self._names_bytes -= len(name) + 1
            if self._keeps:
                systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def unused(self, name: str) -> str:
        """Return a name like this one that is not used."""
        place = 1
        unique = name
        while unique in self._descriptors:
            place += 1
            unique = f"{name}-{place}"
        return unique

    def pass_on(self) -> dict[str, str]:
        """Prepare the descriptors for the program that this process is about to become by exec.

        Returns:
            The environment variables that tell it of them.
        """
        return systemd.pass_descriptors(self._descriptors)

    def _fail(self, problem: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._log.error(
                "descriptors are not kept",
                descriptors=len(self._descriptors),
                error=problem,
            )
