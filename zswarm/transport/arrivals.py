"""What arrives on a connection and never becomes a message.

libzmq hands over a multipart when its last frame is there, and until then collects the frames in memory of its own:
neither the bound of a frame nor the high-water mark, which counts whole messages, bounds it. A member who sends frame
after frame and no end makes a process grow as long as its memory lasts. libzmq tells nobody of it; the system does:

    bytes that TCP has received - bytes that wait in the kernel - the same when a message last came   = unfinished

Where that is more than any message of the protocol has, while the socket has no message to give, the connection is
shut down, and libzmq frees what it has collected. Whoever is honest dials again.

Only Linux counts the bytes of a connection; elsewhere, and for paths (ipc), whose users are this machine's own, there
is no such bound, and the service manager's limit of memory is what is left.
"""

from __future__ import annotations

import array
import fcntl
import os
import re
import socket
import struct
import sys
import termios
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from zswarm import limits
from zswarm.transport.addresses import Endpoint

DESCRIPTORS = "/proc/self/fd"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_INODE = re.compile(r"socket:\[([0-9]+)\]")
_RECEIVED_AT = 128
"""Where tcp_info has tcpi_bytes_received, a u64 (linux/tcp.h, since Linux 4.1)."""
_RECEIVED = struct.Struct("=Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A TCP connection of this process, and what has been read of it."""

    number: int
    """Its file descriptor."""
    inode: int
    """Unlike the number, never that of another connection at the same time or soon after."""
    local: Endpoint
    remote: Endpoint
    read_bytes: int
    """Received, and taken out of the kernel, since it was made."""


class Arrivals:
    """Decides which connections are to be cut off; `look` is called again and again."""

    def __init__(self) -> None:
        self._marks: dict[int, int] = {}
        """Of each connection by its inode, what had been read of it when a message of it was last known to have come."""

    def look(self, streams: Collection[Stream], spoken: Collection[int]) -> list[Stream]:
        """Return the connections with more unfinished than a message has; `spoken` are the file descriptors of those
        of which a message has come since the last look. What a connection has sent before its first look is not known.
        """
        marks = self._marks
        self._marks = {
            stream.inode: stream.read_bytes if stream.number in spoken else marks.get(stream.inode, stream.read_bytes)
            for stream in streams
        }
        return [
            stream for stream in streams if stream.read_bytes - self._marks[stream.inode] > limits.MAX_UNFINISHED_BYTES
        ]


class Streams:
    """This process's connections to or from some endpoints; none where Linux does not tell."""

    def __init__(self) -> None:
        self._ends: dict[int, tuple[Endpoint, Endpoint] | None] = {}
        """Both ends of each connection by its inode, None of what is no connection to look at: they do not change."""

    def between(self, local: Mapping[Endpoint, object], remote: Mapping[Endpoint, object]) -> list[Stream]:
        """Return the connections that there are now.

        Raises:
            OSError: the system does not tell now: all files that this process may have are open.

        """
        if sys.platform != "linux":
            return []
        before, self._ends = self._ends, {}
        found = []
        for number, inode in _sockets():
            if (ends := before.get(inode, ...)) is None:
                self._ends[inode] = None
                continue
            with suppress(OSError), _borrowed(number) as borrowed:
                if ends is ...:
                    ends = _ends_of(borrowed)
                if ends is not None and not (ends[0] in local or ends[1] in remote):
                    ends = None
                self._ends[inode] = ends
                if ends is not None:
                    read_bytes = _read_bytes(borrowed)
                    found.append(
                        Stream(number=number, inode=inode, remote=ends[1], local=ends[0], read_bytes=read_bytes)
                    )
        return found


def shut_down(stream: Stream) -> bool:
    """Cut a connection off; False if it is gone already."""
    if dict(_sockets()).get(stream.number) != stream.inode:
        return False
    try:
        with _borrowed(stream.number) as borrowed:
            borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True


def resident_bytes() -> int:
    """Return how much memory this process has; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - a Path would cost as much again
            return int(file.read(256).split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _sockets() -> Iterator[tuple[int, int]]:
    """Yield the file descriptors of this process's sockets, each with its inode."""
    for name in os.listdir(DESCRIPTORS):  # noqa: PTH208 - a Path for each would cost more than the rest
        try:
            match = _INODE.fullmatch(os.readlink(f"{DESCRIPTORS}/{name}"))  # noqa: PTH115 - as above
        except OSError:
            continue  # closed meanwhile
        if match is not None:
            yield int(name), int(match[1])


@contextmanager
def _borrowed(number: int) -> Iterator[socket.socket]:
    """Use a descriptor that libzmq owns, and leave it open."""
    borrowed = socket.socket(fileno=number)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _ends_of(borrowed: socket.socket) -> tuple[Endpoint, Endpoint] | None:
    """Return the near and the far end of a TCP connection, None of another socket; OSError while it is none yet."""
    if borrowed.family not in (socket.AF_INET, socket.AF_INET6) or borrowed.type != socket.SOCK_STREAM:
        return None
    return borrowed.getsockname()[:2], borrowed.getpeername()[:2]


def _read_bytes(borrowed: socket.socket) -> int:
    info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + _RECEIVED.size)
    if len(info) < _RECEIVED_AT + _RECEIVED.size:
        return 0  # an older kernel
    waiting = array.array("i", [0])
    fcntl.ioctl(borrowed.fileno(), termios.FIONREAD, waiting)
    return max(0, int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0]) - waiting[0])
