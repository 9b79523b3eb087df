from __future__ import annotations

import pytest

from tests.letters import broker_heartbeat, heartbeat, register
from tests.trainer.settings import recovered_member
from zswarm import limits
from zswarm.ids import Address, Role
from zswarm.trainer.roster import Roster

AT = Address("sim://link")


@pytest.fixture
def roster():
    return Roster(num_stages=3, first_session=10)


def join(roster, node, *, nonce=1, role=Role.WORKER, now=0.0, stage=None, place=None):
    return roster.register(register(node, nonce=nonce, role=role, stage=stage), AT, now, place=place)


# -- lives -------------------------------------------------------------------------------------------


def test_the_same_life_gets_the_same_session_however_often_it_asks(roster):
    first, is_new = join(roster, "a")
    first.gone_at_s = 3.0
    again, is_new_again = join(roster, "a", now=5.0)
    assert (is_new, is_new_again) == (True, False)
    assert again is first
    assert (first.session, first.heard_at_s, first.gone_at_s, roster.view) == (10, 0.0, None, 2), (
        "that it asks again is no word of a member"
    )


def test_another_nonce_of_a_node_is_not_the_life_that_is_known(roster):
    old, _ = join(roster, "a")
    assert roster.known(register("a", nonce=1)) is old
    assert roster.known(register("a", nonce=2)) is None
    assert roster.life_of("a") is old
    assert roster.life_of("b") is None


def test_a_new_life_gets_a_session_that_nobody_ever_had(roster):
    old, _ = join(roster, "a")
    roster.remove(old.session, 1.0)
    new, is_new = join(roster, "a", nonce=2)
    assert (is_new, new.session, roster.view) == (True, old.session + 1, 4)
    assert list(roster.records) == [new.session]
    assert roster.life_of("a") is new


def test_a_late_copy_of_a_register_is_told_from_a_new_life(roster):
    """It would end the present life, and its own process would get no Welcome that it takes."""
    for nonce in (1, 2):
        record, _ = join(roster, "a", nonce=nonce)
        roster.remove(record.session, float(nonce))
    assert not roster.is_late_copy(register("a", nonce=1)), "the node lives no other life"
    join(roster, "a", nonce=3)
    late = {nonce: roster.is_late_copy(register("a", nonce=nonce)) for nonce in range(1, 5)}
    assert late == {1: True, 2: True, 3: False, 4: False}
    assert not roster.is_late_copy(register("b", nonce=1))


def test_the_lives_that_are_remembered_are_bounded(roster):
    for nonce in range(1, limits.MAX_ENDED_LIVES + 2):
        record, _ = join(roster, "a", nonce=nonce)
        roster.remove(record.session, 0.0)
    join(roster, "a", nonce=99)
    assert not roster.is_late_copy(register("a", nonce=1))
    assert roster.is_late_copy(register("a", nonce=2))


def test_the_nodes_whose_lives_are_remembered_are_bounded(monkeypatch, roster):
    """`zswarm worker` without --name has another name in each life: the roster of a long run grew for ever."""
    monkeypatch.setattr(limits, "MAX_ENDED_NODES", 2)
    for node, nonce in (("a", 1), ("b", 1), ("a", 2), ("c", 1)):
        roster.remove(join(roster, node, nonce=nonce)[0].session, 0.0)
    for node in ("a", "b", "c"):
        join(roster, node, nonce=9)
    remembered = [
        (node, nonce) for node in "abc" for nonce in (1, 2) if roster.is_late_copy(register(node, nonce=nonce))
    ]
    assert remembered == [("a", 1), ("a", 2), ("c", 1)], "of b a life has ended before those of a and c"


def test_who_has_left_is_in_no_view(roster):
    joined = [join(roster, node)[0] for node in ("a", "b")]
    before = roster.view
    assert roster.remove(joined[0].session, 7.0) is joined[0]
    assert [member.node for member in roster.members()] == ["b"]
    assert [worker.node for worker in roster.workers()] == ["b"]
    assert roster.of(Role.WORKER, 0) == ()
    assert roster.view == before + 1
    assert (roster.lost_view, roster.lost_at_s) == (roster.view, 7.0)


def test_a_session_of_the_log_is_silent_until_it_speaks(roster):
    roster.take_over(recovered_member(4, "a", stage=2), 50.0)
    (record,) = roster.of(Role.WORKER, 2)
    assert (record.session, record.is_silent, record.heard_at_s, record.peer) == (4, True, 50.0, "sim://a/a")
    assert (record.is_ready, record.report, record.ledger) == (False, 0, 0)
    assert join(roster, "a", now=51.0) == (record, False), "the life that is known asks again"
    assert join(roster, "b")[0].session == 10, "numbers go on above those of the log"
    assert [member.node for member in roster.members()] == ["a", "b"]


# -- places ------------------------------------------------------------------------------------------


def test_each_role_fills_the_emptiest_stage_first(roster):
    workers = [join(roster, f"w{index}")[0].stage for index in range(7)]
    brokers = [join(roster, f"b{index}", role=Role.BROKER)[0].stage for index in range(3)]
    assert (workers, brokers) == ([0, 1, 2, 0, 1, 2, 0], [0, 1, 2])


def test_a_process_that_comes_back_keeps_its_place(roster):
    assert join(roster, "a", stage=2)[0].stage == 2, "it holds the parameters of 2"
    assert join(roster, "b", stage=7)[0].stage == 0, "there is no such stage in this run"
    join(roster, "c")
    assert join(roster, "d", stage=2)[0].stage == 2, "every stage has somebody"


def test_a_worker_that_comes_back_goes_where_it_belongs_but_first_where_nobody_is(monkeypatch, roster):
    for node in ("a", "b", "c"):
        join(roster, node)
    assert join(roster, "d", stage=2, place=1)[0].stage == 1
    roster.remove(10, 0.0)
    assert join(roster, "e", stage=2, place=1)[0].stage == 0
    monkeypatch.setattr(limits, "MAX_PARTICIPANTS", 2)
    assert join(roster, "f", stage=2, place=1)[0].stage == 2, "there is no room"


def test_a_broker_that_comes_back_goes_where_the_fewest_are(roster):
    """It has nothing of its stage; the only broker of another one was lost soon after, and everybody waited."""
    for node in ("a", "b", "c", "d"):
        join(roster, node, role=Role.BROKER)
    assert join(roster, "e", role=Role.BROKER, stage=0)[0].stage == 1
    assert join(roster, "f", role=Role.BROKER, stage=2)[0].stage == 2, "as few as anywhere"
    assert join(roster, "g", role=Role.BROKER, stage=2)[0].stage == 2


@pytest.mark.parametrize("role", list(Role))
def test_a_process_that_comes_back_to_a_place_that_is_taken_goes_where_nobody_is(roster, role):
    """A new one had got its place meanwhile, whose own stage then had nobody for ever: nobody ever moves."""
    for node in ("a", "b", "c"):
        join(roster, node, role=role)
    for session in (10, 11):
        roster.remove(session, 0.0)
    assert join(roster, "b", nonce=2, role=role)[0].stage == 0, "it has started again and knows of no stage"
    assert join(roster, "a", nonce=2, role=role, stage=0)[0].stage == 1
    assert join(roster, "d", role=role, stage=0)[0].stage == 0, "now every stage has somebody"


def test_it_is_known_when_a_stages_brokers_were_last_heard(roster):
    first, second = (join(roster, node, role=Role.BROKER, place=0)[0] for node in ("a", "b"))
    first.heard_at_s, second.heard_at_s = 4.0, 2.0
    roster.remove(first.session, 9.0)
    roster.remove(second.session, 9.0)
    assert roster.broker_heard_at_s == {0: 4.0}
    roster.excuse(100.0)
    assert roster.broker_heard_at_s == {0: 104.0}


def test_a_stage_has_a_largest_size():
    roster = Roster(num_stages=1, first_session=1)
    for index in range(limits.MAX_PARTICIPANTS):
        assert not roster.is_full(Role.WORKER)
        join(roster, f"w{index}")
    assert roster.is_full(Role.WORKER)
    assert not roster.is_full(Role.BROKER)


def test_a_view_has_a_largest_size(monkeypatch, roster):
    monkeypatch.setattr(limits, "MAX_MEMBERS", 2)
    join(roster, "a")
    assert not roster.is_full(Role.BROKER)
    join(roster, "b")
    assert roster.is_full(Role.BROKER)


def test_it_has_enough_when_every_stage_has(roster):
    for index in range(6):
        worker, _ = join(roster, f"w{index}")
        worker.is_ready = index != 5
    for index in range(3):
        join(roster, f"b{index}", role=Role.BROKER)
    assert roster.has(workers=1, brokers=1)
    assert not roster.has(workers=2, brokers=1), "one is not ready"
    assert not roster.has(workers=1, brokers=2)


def test_enough_need_not_be_dealt_evenly(roster):
    """With four in one stage and two in another, and nobody left to come, the run never began."""
    for index in range(3):
        join(roster, f"b{index}", role=Role.BROKER)
    workers = [join(roster, node, stage=stage)[0] for node, stage in (("a", 0), ("b", 1), ("c", 2), ("d", 0))]
    for worker in workers:
        worker.is_ready = worker.node != "c"
    assert not roster.has(workers=1, brokers=1), "three are ready, and none of stage 2"
    workers[2].is_ready = True
    assert roster.has(workers=1, brokers=1)
    workers[0].is_ready = False
    assert roster.has(workers=1, brokers=1)
    workers[3].is_ready = False
    assert not roster.has(workers=1, brokers=1)


def test_the_content_of_a_view_is_made_once(roster):
    """Made anew for everybody it was sent to, it took minutes to gather some hundred workers."""
    join(roster, "a")
    content = roster.members()
    assert roster.members() is content
    join(roster, "b")
    assert [member.node for member in roster.members()] == ["a", "b"]


# -- reports -----------------------------------------------------------------------------------------


def test_only_newer_reports_count(roster):
    worker, _ = join(roster, "a")
    assert worker.note(heartbeat(10, 5, step=2, counted=0b11, pending=0b100, voided=7, accused=(8,)), 1.0)
    assert not worker.note(heartbeat(10, 5, step=3, counted=0b111), 2.0)
    assert not worker.note(heartbeat(10, 4, step=1, counted=0), 3.0)
    assert (worker.version, worker.ledger, worker.pending, worker.is_ready) == ((0, 2), 0b11, 0b100, True)
    assert (worker.voided, worker.accused, worker.reported_at_s, worker.reported_view) == (7, (8,), 1.0, 99)
    assert worker.note(heartbeat(10, 6, step=3, counted=0, ready=False, view=3), 4.0)
    assert (worker.version, worker.ledger, worker.pending, worker.is_ready) == ((0, 3), 0, 0, False)
    assert (worker.reported_at_s, worker.reported_view) == (4.0, 3)


def test_a_brokers_report_says_what_is_in_its_queue(roster):
    broker, _ = join(roster, "b", role=Role.BROKER)
    assert broker.note(broker_heartbeat(10, 1, step=2, branch=1, active=0b11, ahead=0b100, voided=5), 1.0)
    assert (broker.version, broker.pending, broker.ahead, broker.voided) == ((1, 2), 0b11, 0b100, 5)
    assert not broker.is_ready


def test_bytes_of_the_departed_are_in_the_sum(roster):
    joined = [join(roster, node)[0] for node in ("a", "b")]
    joined[0].note(heartbeat(10, 1, sent_bytes=100), 0.0)
    joined[0].note(heartbeat(10, 1, sent_bytes=50), 0.0)
    joined[1].note(heartbeat(11, 1, sent_bytes=7), 0.0)
    assert roster.sent_bytes == 107
    roster.remove(10, 0.0)
    assert roster.sent_bytes == 107
    roster.remove(11, 0.0)
    assert roster.sent_bytes == 107
    assert roster.num_workers == 2, "lives, not processes that are there"


def test_an_own_stall_is_nobodys_silence(roster):
    """Every time is moved: who had been gone for a while before is still gone for that while."""
    first, second = (join(roster, node, now=10.0)[0] for node in ("a", "b"))
    third, _ = join(roster, "c")
    roster.remove(third.session, 11.0)
    second.gone_at_s = 11.5
    roster.excuse(100.0)
    assert (first.heard_at_s, first.gone_at_s) == (110.0, None)
    assert (second.heard_at_s, second.gone_at_s) == (110.0, 111.5)
    assert roster.lost_at_s == 111.0
