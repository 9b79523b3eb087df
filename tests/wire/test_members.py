"""The members of a view."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.mutation import Enemy
from tests.wire.strategies import structures
from zswarm import limits
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.ids import Address, NodeId, Role, Session, Stage
from zswarm.messages import Member
from zswarm.wire import pack_members, unpack_members_untrusted

MEMBER = Member(
    member=Session(7),
    node=NodeId("worker-3"),
    role=Role.WORKER,
    stage=Stage(2),
    addresses=(Address("tcp://127.0.0.1:4711"),),
)


@given(st.lists(structures(Member), max_size=5))
def test_members_come_out_as_they_went_in(members: list[Member]) -> None:
    """In their order."""
    assert unpack_members_untrusted(pack_members(members)) == tuple(members)


def test_a_full_swarm_fits() -> None:
    """As many members as a view may have, of the usual kind."""
    members = tuple(dataclasses.replace(MEMBER, member=Session(i)) for i in range(limits.MAX_MEMBERS))
    assert unpack_members_untrusted(memoryview(pack_members(members))) == members
    with pytest.raises(LocalProtocolError, match="4097 members"):
        pack_members([*members, MEMBER])
    with pytest.raises(LocalProtocolError, match="bytes"):
        pack_members([dataclasses.replace(MEMBER, node=NodeId("x" * 512))] * limits.MAX_MEMBERS)
    with pytest.raises(LocalProtocolError, match="stage"):
        pack_members([dataclasses.replace(MEMBER, stage=Stage(256))])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        msgpack.packb({}),
        msgpack.packb([1]),
        msgpack.packb([{}]),
        msgpack.packb([{"member": 1}]),
        msgpack.packb([]) + b"\0",
        msgpack.packb([0] * (limits.MAX_MEMBERS + 1)),
        b"\xdc\x10\x00" * 4000,
        bytes(limits.MAX_VIEW_BYTES + 1),
        pack_members([MEMBER]).replace(b"worker", b"wo\xffker"),
        pack_members([MEMBER])[:-1],
    ],
)
def test_what_is_no_list_of_members_is_refused(content: bytes) -> None:
    """Whatever it is, only RemoteProtocolError comes out."""
    with pytest.raises(RemoteProtocolError):
        unpack_members_untrusted(content)


def test_changed_members_are_refused_or_within_bounds() -> None:
    """What passes is something that we could say ourselves."""
    enemy = Enemy(0)
    packed = pack_members([MEMBER, MEMBER])
    num_accepted = 0
    for _ in range(20_000):
        try:
            members = unpack_members_untrusted(enemy.scribbled(packed))
        except RemoteProtocolError:
            continue
        num_accepted += 1
        assert unpack_members_untrusted(pack_members(members)) == members
    assert 100 < num_accepted < 10_000
