from __future__ import annotations

import pytest

from tests.letters import heartbeat, register
from zswarm.ids import Address, Role
from zswarm.limits import MAX_PARTICIPANTS
from zswarm.trainer.roster import Roster

AT = Address("sim://link")


@pytest.fixture
def roster():
    return Roster(num_stages=3, first_session=10)


def join(roster, node, nonce=1, role=Role.WORKER, now=0.0):
    return roster.register(register(node, nonce=nonce, role=role), AT, now)


def test_the_same_life_gets_the_same_session_however_often_it_asks(roster):
    first, is_new = join(roster, "a")
    again, is_new_again = join(roster, "a", now=5.0)
    assert (is_new, is_new_again) == (True, False)
    assert again is first
    assert (first.session, first.heard_at_s, roster.view) == (10, 5.0, 2)


def test_a_new_life_gets_a_new_session(roster):
    old, _ = join(roster, "a")
    new, is_new = join(roster, "a", nonce=2)
    assert (is_new, new.session, roster.view) == (True, old.session + 1, 3)
    assert roster.known(register("a", nonce=1)) is old
    assert roster.known(register("a", nonce=3)) is None


def test_each_role_fills_the_emptiest_stage_first(roster):
    workers = [join(roster, f"w{index}")[0].stage for index in range(7)]
    brokers = [join(roster, f"b{index}", role=Role.BROKER)[0].stage for index in range(3)]
    assert (workers, brokers) == ([0, 1, 2, 0, 1, 2, 0], [0, 1, 2])


def test_only_newer_reports_count(roster):
    worker, _ = join(roster, "a")
    assert worker.note(heartbeat(10, 5, step=2, counted=0b11))
    assert not worker.note(heartbeat(10, 5, step=3, counted=0b111))
    assert not worker.note(heartbeat(10, 4, step=1, counted=0))
    assert (worker.version, worker.ledger, worker.is_ready) == ((0, 2), 0b11, True)
    assert worker.note(heartbeat(10, 6, step=3, counted=0, ready=False))
    assert (worker.version, worker.ledger, worker.is_ready) == ((0, 3), 0, False)


def test_it_has_enough_when_every_stage_has(roster):
    for index in range(6):
        worker, _ = join(roster, f"w{index}")
        worker.is_ready = index != 5
    for index in range(3):
        join(roster, f"b{index}", role=Role.BROKER)
    assert roster.has(workers=1, brokers=1)
    assert not roster.has(workers=2, brokers=1), "one is not ready"
    assert not roster.has(workers=1, brokers=2)


def test_who_is_sent_away_is_in_no_view(roster):
    joined = [join(roster, node)[0] for node in ("a", "b")]
    before = roster.view
    roster.send_away(joined[0].session, "too late")
    assert [member.node for member in roster.members()] == ["b"]
    assert [worker.node for worker in roster.workers()] == ["b"]
    assert roster.of(Role.WORKER, 0) == []
    assert (roster.view, joined[0].refusal) == (before + 1, "too late")


def test_the_content_of_a_view_is_made_once(roster):
    """Made anew for everybody it was sent to, it took minutes to gather some hundred workers."""
    join(roster, "a")
    content = roster.members()
    assert roster.members() is content
    join(roster, "b")
    assert [member.node for member in roster.members()] == ["a", "b"]


def test_a_stage_has_a_largest_size():
    roster = Roster(num_stages=1, first_session=1)
    for index in range(MAX_PARTICIPANTS):
        assert not roster.is_full(Role.WORKER)
        join(roster, f"w{index}")
    assert roster.is_full(Role.WORKER)
    assert not roster.is_full(Role.BROKER)
