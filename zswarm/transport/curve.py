"""What a swarm key makes of sockets: encrypted, and open to its holders alone.

Two pairs of keys are derived from the secret: listening sockets prove that they have the one, dialling sockets the
other. A stranger knows neither public key: he fails at the first message of CURVE's handshake, before ZeroMQ asks
anybody. That a dialling socket has the swarm's own pair and not just any is decided by the Gatekeeper, whom ZeroMQ asks
on a socket of this context (ZAP, ZeroMQ's RFC 27). ZeroMQ lets everybody in if no domain is set, or if nobody
answers while it is not told to insist: hence both options, and a self-test.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace
from typing import Self

import zmq
from zmq.utils import z85

from zswarm import limits
from zswarm.errors import UserError
from zswarm.swarm_key import SwarmKey

DOMAIN = b"zswarm"
ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
NUM_REQUEST_FRAMES = 7
"""Version, request, domain, address, routing id, mechanism, and CURVE's only credential, the public key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The pairs of keys of one swarm, in ZeroMQ's text form; none is ever shown."""

    server_public: bytes = field(repr=False)
    server_secret: bytes = field(repr=False)
    client_public: bytes = field(repr=False)
    client_secret: bytes = field(repr=False)

    @classmethod
    def of(cls, key: SwarmKey) -> Self:
        """Derive them.

        Raises:
            UserError: this libzmq cannot encrypt.

        """
        if not zmq.has("curve"):
            raise UserError("this libzmq lacks CURVE, so that no swarm key can be used: install pyzmq's own wheel")
        server, client = (z85.encode(key.derive(purpose)) for purpose in ("curve server", "curve client"))
        return cls(
            server_public=zmq.curve_public(server),
            server_secret=server,
            client_public=zmq.curve_public(client),
            client_secret=client,
        )

    def with_random_client(self) -> Self:
        """Return the keys of somebody who knows the server's public key and is no member: for the self-test."""
        public, secret = zmq.curve_keypair()
        return replace(self, client_public=public, client_secret=secret)

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Make a ROUTER a server, any other socket a client; before it binds or connects."""
        if socket.type == zmq.ROUTER:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self.server_secret)
            socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        else:
            socket.setsockopt(zmq.CURVE_SERVERKEY, self.server_public)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self.client_public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self.client_secret)


class Gatekeeper:
    """Answers ZeroMQ's question whether somebody who dials may come in; whoever polls its socket calls `answer`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], curve: Curve) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ENDPOINT)
        self._allowed = z85.decode(curve.client_public)

    def answer(self) -> None:
        """Answer what has been asked; the rest of many waits for the next turn."""
        for _ in range(limits.TURN_MESSAGES):
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(self._verdict(request))

    def _verdict(self, request: list[bytes]) -> list[bytes]:
        """Allow the swarm's client key, over CURVE, in our domain, and nothing else."""
        request_id = request[1] if len(request) > 1 else b""
        is_member = (
            len(request) == NUM_REQUEST_FRAMES
            and (request[0], request[2], request[5]) == (VERSION, DOMAIN, b"CURVE")
            and hmac.compare_digest(request[6], self._allowed)
        )
        status, text = (b"200", b"OK") if is_member else (b"400", b"no member of this swarm")
        return [VERSION, request_id, status, text, b"", b""]
