"""Every socket of a process, owned by one thread.

              +-- ROUTER "control" --+
    peers --> |   ROUTER "work"      | --> poll() --> Received(peer, message, frames)
              +-- DEALER per address-+ <-- send(peer, message, frames)
    other threads, signals, pipes ----> waker(), watch()

A peer is an Address that we dial, or the Link of a connection that somebody else dialled: one byte that
names our listening socket, then the routing id that ZeroMQ gave the connection.

Sending never blocks and never fails loudly: a message that cannot be handed over now is lost, and the
machines count on nothing else. One exception keeps start-up fast: the last few messages to an address
that has never been reached wait for the connection, because a lost first Register would cost a whole
heartbeat. Once a connection has been up, nothing waits for its return. A link that turns out to be dead is
remembered until somebody asks: who had dialled in has closed, or has been cut off.

With a swarm key every socket is encrypted and lets in nobody but members (curve.py); without one every address is of
this machine's loopback or a path.
"""

from __future__ import annotations

import errno
import math
import socket as posix
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import zmq

from zswarm import limits
from zswarm.errors import RemoteProtocolError, UserError
from zswarm.ids import Address, Link, Peer, RejectCode
from zswarm.logs import get_log
from zswarm.machine import Received
from zswarm.membership import RUNLESS
from zswarm.messages import Message, Reject
from zswarm.swarm_key import SwarmKey
from zswarm.transport.addresses import cannot_listen, checked_address, refuse_if_taken
from zswarm.transport.connections import Connections
from zswarm.transport.counters import Counters
from zswarm.transport.curve import Curve, Gatekeeper
from zswarm.transport.cutoff import Cutoff
from zswarm.transport.first_contact import FirstContact
from zswarm.transport.handshake import HandshakeWatch, check_listener
from zswarm.transport.options import set_options
from zswarm.wire import VersionMismatch, decode_untrusted, encode

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_SOCKETS = 2 * limits.MAX_MEMBERS
MAX_LISTENERS = 256
GREETING_MESSAGES = 8
"""Messages that wait for the first connection to an address; of more, the newest."""
COMPLAINT_INTERVAL_S = 60.0
TURN_FRAMES = 64 * limits.TURN_MESSAGES
"""Frames left out in one turn, of a message with too many: a million of them would take seconds."""
NOW = int(zmq.NOBLOCK)
NOW_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
"""Plain numbers: a flag of an enum makes a new member each time that it is combined."""


class Switchboard:
    """Listens, dials, sends and receives; all but `waker`'s callable belongs to one thread.

    A context manager: leaving it closes every socket without waiting for anything.
    """

    def __init__(self, *, key: SwarmKey | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a switchboard without sockets; `clock` limits the rate of complaints in the log.

        Raises:
            UserError: there is a key, and this libzmq cannot encrypt.

        """
        self._curve = None if key is None else Curve.of(key)
        self.counters = Counters()
        self._clock = clock
        self._log = get_log()
        self._context = zmq.Context()
        self._context.max_sockets = MAX_SOCKETS
        self._poller = zmq.Poller()
        self._listeners: list[zmq.Socket[bytes]] = []
        self._dialled: dict[Address, zmq.Socket[bytes]] = {}
        self._greetings: dict[Address, deque[list[Buffer]]] = {}
        self._origins: dict[zmq.Socket[bytes], bytes | Address] = {}
        self._connections = Connections()
        self._unreachable: dict[Link, None] = {}
        """Links found dead, in the order in which they were."""
        self._first_contact: FirstContact | None = None
        self._cutoff = Cutoff()
        self._overlong: set[zmq.Socket[bytes]] = set()
        """Sockets at which a message with too many frames is not at its end yet."""
        self._callbacks: dict[int | zmq.Socket[bytes], Callable[[], None]] = {}
        self._bell, self._clapper = posix.socketpair()
        self._bell.setblocking(False)
        self._clapper.setblocking(False)
        self.watch(self._bell.fileno(), self._silence)
        if self._curve is not None:
            self._gatekeeper = Gatekeeper(self._context, self._curve)
            self.watch(self._gatekeeper.socket, self._gatekeeper.answer)

    def __enter__(self) -> Self:
        """Return the switchboard."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def sent_bytes(self) -> int:
        """Everything this process has put on the wire."""
        return self.counters.sent_bytes

    def close(self, *, linger_s: float = 0.0) -> None:
        """Close every socket; wait at most `linger_s` for what has been sent to leave this machine."""
        if self._context.closed:
            return
        self._context.destroy(linger=round(linger_s * 1000))
        self._bell.close()
        self._clapper.close()

    # -- whom to talk to -----------------------------------------------------------------------------

    def bind(self, name: str, address: Address) -> Address:
        """Listen on `address` and return the real one, a port having been chosen for `*` or 0.

        `name` says what for: control, work, peer or coordinator.

        Raises:
            UserError: the address may not be used, somebody else listens there, or the self-test of a key failed.

        """
        checked_address(address, listening=True, has_key=self._curve is not None)
        assert len(self._listeners) < MAX_LISTENERS
        refuse_if_taken(address)
        socket = self._socket(zmq.ROUTER, address, self._curve, plane=name)
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            socket.close()
            raise cannot_listen(address, error.errno or 0) from None
        self._origins[socket] = bytes((len(self._listeners),))
        self._listeners.append(socket)
        self._poller.register(socket, zmq.POLLIN)
        bound = Address(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        self._cutoff.listens(bound, socket)
        if self._curve is not None:
            check_listener(bound, self._curve, self._gatekeeper, partial(self._socket, zmq.DEALER, bound))
        return bound

    def dial(self, address: Address, *, is_first: bool = False) -> None:
        """Begin to connect to `address`, unless that has been done; `send` does it by itself.

        The user of a process learns from its first address of all whether it has the right key, and the right address: a
        handshake there that fails is told in the log, or raises UserError from `poll` if there is no use in trying again.

        Raises:
            UserError: the address may not be used.

        """
        if address in self._dialled:
            return
        checked_address(address, has_key=self._curve is not None)
        socket = self._socket(zmq.DEALER, address, self._curve)
        if is_first:
            self._first_contact = FirstContact(address, HandshakeWatch(socket), has_key=self._curve is not None)
            self.watch(self._first_contact.watch.socket, self._follow_first_contact)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            socket.close()
            raise UserError(f"cannot dial {address}: {error.strerror}") from None
        self._dialled[address] = socket
        self._cutoff.dials(address, socket)
        self._origins[socket] = address
        self._greetings[address] = deque()
        self._poller.register(socket, zmq.POLLIN | zmq.POLLOUT)

    def hang_up(self, address: Address) -> None:
        """Drop the connection to `address` and what waits for it; nothing if there is none."""
        socket = self._dialled.pop(address, None)
        if socket is None:
            return
        self._poller.unregister(socket)
        del self._origins[socket]
        self.counters.num_lost += len(self._greetings.pop(address, ()))
        self._connections.forget(address)
        self._cutoff.hangs_up(address)
        self._overlong.discard(socket)
        socket.close(linger=0)

    # -- messages ------------------------------------------------------------------------------------

    def send(self, peer: Peer, message: Message, frames: Sequence[Buffer] = ()) -> bool:
        """Hand a message over; False if it is lost already. Never blocks.

        Large frames are not copied: they must not change until the peer has them.
        """
        connection = self._connections[peer]
        parts = encode(message, frames, sequence=connection.sequence)
        connection.sequence += 1
        if isinstance(peer, bytes):
            return self._answer(peer, parts)
        if peer not in self._dialled:
            try:
                self.dial(peer)
            except UserError as error:
                self._complain(peer, f"not sent: {error}")
                self.counters.num_lost += 1
                return False
        greeting = self._greetings.get(peer)
        if greeting is None:
            return self._hand_over(self._dialled[peer], parts)
        if len(greeting) == GREETING_MESSAGES:
            greeting.popleft()
            self.counters.num_lost += 1
        greeting.append(parts)
        return True

    def poll(self, timeout_s: float) -> list[Received]:
        """Wait until something happens, at most `timeout_s`, and return the messages that came.

        At most TURN_MESSAGES of each socket; callbacks of `watch` run in here, and who sends without end is cut off.
        """
        taken: list[Received] = []
        for stream in self._cutoff.look_if_due():
            self.counters.num_cut_off += 1
            self._complain(Address(f"tcp://{stream.remote[0]}"), "it sends a message without end", of="cut off")
        self._follow_first_contact()
        wait_s = min(timeout_s, self._cutoff.wait_s)
        for source, events in self._poller.poll(max(0, math.ceil(wait_s * 1000))):
            # A callback may have hung up on what is next in this list.
            if source in self._callbacks:
                self._callbacks[source]()
            elif source in self._origins:
                if events & zmq.POLLOUT:
                    self._greet(source)
                if events & zmq.POLLIN:
                    self._take_turn(source, taken)
        return taken

    def take_unreachable(self) -> list[Link]:
        """Return the links that sending has found dead since this was last asked, each once.

        A dead link stays dead: whoever had dialled comes back with another one.
        """
        if not self._unreachable:
            return []
        links, self._unreachable = list(self._unreachable), {}
        return links

    def _answer(self, link: Link, parts: list[Buffer]) -> bool:
        """Hand a message over to a connection that somebody else dialled."""
        socket = self._listeners[link[0]]
        try:
            socket.send(link[1:], NOW_AND_MORE)
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH and len(self._unreachable) < limits.MAX_REMEMBERED_PEERS:
                self._unreachable[link] = None
            return self._is_lost(error)
        return self._hand_over(socket, parts)

    def _is_lost(self, error: zmq.ZMQError) -> bool:
        """Count a message that could not be handed over, and return False; raise what is not a loss."""
        if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):
            raise error
        self.counters.num_lost += 1
        return False

    def _hand_over(self, socket: zmq.Socket[bytes], parts: list[Buffer]) -> bool:
        last = len(parts) - 1
        size_bytes = 0
        try:
            for index, part in enumerate(parts):
                # Received frames are passed on by reference; of others, pyzmq copies the small ones.
                socket.send(part, NOW if index == last else NOW_AND_MORE, copy=index == 0)
                size_bytes += memoryview(part).nbytes
        except zmq.ZMQError as error:
            return self._is_lost(error)
        self.counters.num_sent += 1
        self.counters.sent_bytes += size_bytes
        return True

    def _greet(self, socket: zmq.Socket[bytes]) -> None:
        """Send what waited for a connection that has just come up for the first time."""
        address = cast("Address", self._origins[socket])
        self._poller.register(socket, zmq.POLLIN)
        for parts in self._greetings.pop(address):
            self._hand_over(socket, parts)

    def _take_turn(self, socket: zmq.Socket[bytes], taken: list[Received]) -> None:
        if socket in self._overlong and not self._skip(socket):
            return
        origin = self._origins[socket]
        receive, heard = socket.recv, self._cutoff.heard
        for _ in range(limits.TURN_MESSAGES):
            try:
                peer = Link(origin + receive(NOW)) if isinstance(origin, bytes) else origin
                frame = receive(NOW, copy=False)
            except zmq.Again:
                return
            heard[peer] = frame
            head = frame.bytes
            frames: list[Any] = [head]
            size_bytes = len(head)
            while frame.more and len(frames) <= 1 + limits.MAX_FRAMES:
                frame = receive(NOW, copy=False)
                size_bytes += len(frame)
                frames.append(frame)
            if frame.more:
                self._overlong.add(socket)
            self.counters.num_received += 1
            self.counters.received_bytes += size_bytes
            received = self._opened(peer, frames)
            if received is not None:
                taken.append(received)
            if frame.more and not self._skip(socket):
                return

    def _skip(self, socket: zmq.Socket[bytes]) -> bool:
        """Go on with leaving out the rest of a message that has too many frames; False if there is more for later."""
        for _ in range(TURN_FRAMES):
            if not socket.recv(NOW, copy=False).more:
                self._overlong.discard(socket)
                return True
        return False

    def _opened(self, peer: Peer, frames: list[Buffer]) -> Received | None:
        """Return what a peer says, or None if there is no sense in it."""
        try:
            message, payload, sequence, _ = decode_untrusted(frames)
        except VersionMismatch as mismatch:
            self._complain(peer, str(mismatch))
            return self._disagree(peer, mismatch)
        except RemoteProtocolError as error:
            self.refuse(peer, error)
            return None
        self.counters.num_gaps += self._connections[peer].num_missing(sequence)
        return Received(peer=peer, message=message, frames=payload)

    def _disagree(self, peer: Peer, mismatch: VersionMismatch) -> Received | None:
        """Tell a peer once that it speaks another version; where we dialled, tell our own machine.

        The machine gets what the peer would have said if it could: Reject. It bears no run, since
        nothing is known of the peer's.
        """
        text = f"{mismatch}; install the same version of zswarm on both machines"
        reject = Reject(**RUNLESS, code=RejectCode.VERSION, text=text)
        if not isinstance(peer, bytes):
            return Received(peer=peer, message=replace(reject, text=f"{peer}: {text}"[: limits.MAX_TEXT_CHARS]))
        connection = self._connections[peer]
        if not connection.is_rejected:
            connection.is_rejected = True
            self.send(peer, reject)
        return None

    def refuse(self, peer: Peer, error: RemoteProtocolError) -> None:
        """Count a message without sense, and say in the log what is wrong with it."""
        self.counters.num_malformed += 1
        self._complain(peer, str(error))

    def _complain(self, peer: Peer, text: str, *, of: str = "message dropped") -> None:
        """Log what is wrong with a peer, at most once a minute for each."""
        connection = self._connections[peer]
        now = self._clock()
        if now - connection.complained_s >= COMPLAINT_INTERVAL_S:
            connection.complained_s = now
            name = peer.hex() if isinstance(peer, bytes) else peer
            self._log.warning(of, peer=name, reason=text)

    # -- other things to wait for --------------------------------------------------------------------

    def waker(self) -> Callable[[], None]:
        """Return a callable that makes `poll` return; any thread or signal handler may call it, at any time."""
        return self._ring

    def watch(self, source: int | zmq.Socket[bytes], callback: Callable[[], None]) -> None:
        """Call `callback` from `poll` whenever a file descriptor or socket is readable or at its end."""
        self._callbacks[source] = callback
        self._poller.register(source, zmq.POLLIN)

    def _ring(self) -> None:
        try:
            self._clapper.send(b"\0")
        except OSError:
            # Full: poll returns anyway. Closed: there is nobody left to wake.
            return

    def _silence(self) -> None:
        self._bell.recv(4096)

    def _follow_first_contact(self) -> None:
        """Tell the user what keeps this process from the first address of all."""
        contact = self._first_contact
        if contact is None:
            return
        if problem := contact.look():
            self._complain(contact.address, problem, of="no handshake")
        if contact.is_made:
            self._first_contact = None
            self._poller.unregister(contact.watch.socket)
            del self._callbacks[contact.watch.socket]
            contact.watch.close()

    def _socket(self, kind: int, address: Address, curve: Curve | None, *, plane: str = "") -> zmq.Socket[bytes]:
        try:
            socket = self._context.socket(kind)
        except zmq.ZMQError as error:
            raise UserError(f"no socket for {address}: {error.strerror}; raise the limit of open files") from None
        set_options(socket, plane=plane)
        if curve is not None:
            curve.secure(socket)
        if address.startswith("tcp://["):
            socket.setsockopt(zmq.IPV6, 1)
        return socket
