from __future__ import annotations

import pytest

from tests.letters import OTHER_RUN, RUN, broker_at, fence, reject, stop, view, welcome, worker_at
from zswarm.ids import Address, NodeId, Role
from zswarm.membership import Membership


def membership() -> Membership:
    return Membership(
        node=NodeId("worker-1"),
        boot_nonce=1,
        role=Role.WORKER,
        addresses=(Address("sim://w"),),
        coordinator=Address("sim://trainer"),
    )


@pytest.fixture
def me():
    me = membership()
    me.welcome(welcome(30, stage=1, step=4))
    return me


def test_a_register_is_the_same_each_time():
    me = membership()
    first, second = me.register(), me.register()
    assert first == second
    assert (first.peer, first.message.boot_nonce, first.message.run) == ("sim://trainer", 1, 0)


def test_a_welcome_gives_a_place(me):
    assert me.header() == {"run": RUN, "generation": 1, "session": 30}
    assert (me.stage, me.num_stages, me.step, me.is_welcome) == (1, 3, 4, True)


def test_only_the_first_welcome_counts(me):
    assert me.welcome(welcome(31, stage=2)) is False
    assert (me.session, me.stage) == (30, 1)


def test_a_welcome_of_an_earlier_life_or_generation_gives_nothing():
    me = membership()
    assert me.welcome(welcome(30, nonce=2)) is False
    assert me.welcome(welcome(30, stage=1, generation=2))
    me.begin_new_life()
    assert me.welcome(welcome(31, nonce=1, generation=2)) is False
    assert me.welcome(welcome(31, nonce=2, generation=1)) is False
    assert me.welcome(welcome(31, stage=1, nonce=2, generation=2))


def test_a_new_life_asks_for_the_place_that_it_had(me):
    me.see(view(5), (worker_at(30, 1),))
    me.begin_new_life()
    asked = me.register().message
    assert (asked.boot_nonce, asked.stage, asked.session, asked.run) == (2, 1, 30, RUN)
    assert (me.is_welcome, me.view, me.members) == (False, 0, ())
    assert membership().register().message.stage is None


def test_a_fence_concerns_the_session_that_it_names(me):
    assert me.is_fenced(fence(30))
    assert not me.is_fenced(fence(29))
    assert not me.is_fenced(fence(30, generation=0))
    me.begin_new_life()
    assert not me.is_fenced(fence(30))


@pytest.mark.parametrize(
    ("header", "foreign"),
    [({}, False), ({"generation": 2}, False), ({"generation": 0}, True), ({"run": OTHER_RUN}, True)],
)
def test_what_is_foreign(me, header, foreign):
    assert me.is_foreign(stop(**header)) is foreign


@pytest.mark.parametrize(
    ("header", "refused"),
    [({}, True), ({"generation": 0}, False), ({"run": OTHER_RUN}, False), ({"run": 0}, True)],
)
def test_whom_a_reject_concerns(me, header, refused):
    assert me.is_refused(reject(**header), me.coordinator) is refused
    assert membership().is_refused(reject(**header), me.coordinator)


@pytest.mark.parametrize("header", [{}, {"run": 0}])
def test_nobody_but_the_coordinator_refuses(me, header):
    """Any member could end any broker or worker: a Reject without a run needs to know nothing of the run."""
    for peer in ("sim://broker-40/work", b"\0link"):
        assert not me.is_refused(reject(**header), peer)
        assert not membership().is_refused(reject(**header), peer)


def test_views_only_become_newer(me):
    old, new = (worker_at(30, 1),), (worker_at(30, 1), worker_at(31, 1))
    assert me.see(view(2), new)
    assert not me.see(view(1), old)
    assert not me.see(view(2), old)
    assert me.members == new
    assert me.see(view(1, generation=2), old)
    assert (me.generation, me.view, me.members) == (2, 1, old)


def test_who_is_where(me):
    me.see(view(1), (worker_at(30, 1), worker_at(31, 2), broker_at(40, 1), broker_at(41, 2)))
    assert me.peers() == {30: "sim://worker-30"}
    assert me.brokers(2) == {41: ("sim://broker-41/control", "sim://broker-41/work")}
    assert me.brokers(0) == {}
