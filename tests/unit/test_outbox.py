from __future__ import annotations

import pytest

from tests.letters import SIZE_BYTES, ack, backward, evaluated, forward, key, nack, room
from zswarm.ids import TRAINER, Address, Direction, NackCode, Purpose
from zswarm.outbox import Outbox
from zswarm.wiring import make_wiring

ME = 11
RESEND_S = 1.0
A, B = 41, 42
HOME = 40
FORTH, BACK, LOSS = Direction.FORWARD, Direction.BACKWARD, Direction.LOSS


def address(broker: int) -> Address:
    return Address(f"sim://{broker}")


class Fixture:
    """An outbox whose policy takes the first broker with credit, and its clock."""

    def __init__(self, *brokers: int) -> None:
        self.outbox = Outbox(wiring=make_wiring("uniform", lambda: 0.0), resend_s=RESEND_S, me=ME, trainer=0)
        self.outbox.set_brokers({broker: address(broker) for broker in brokers})
        self.now_s = 0.0

    def put(self, microbatch: int, **of):
        return self.outbox.put_forward(forward(ME, microbatch, route=(HOME,), **of), (f"y{microbatch}",), self.now_s)

    def put_back(self, microbatch: int, peer: str | None = "sim://home", **of):
        message = backward(ME, microbatch, **of)
        return self.outbox.put_to(peer, message, broker=HOME, frames=(f"dx{microbatch}",), now=self.now_s)

    def grant(self, broker: int, units: int, **about):
        return self.outbox.update_room(broker, room(units * SIZE_BYTES, producer=ME, **about), self.now_s)

    def acknowledge(self, *of, **more):
        return self.outbox.acknowledge(ack(*of, **more), self.now_s)

    def refuse(self, *of, **more):
        return self.outbox.refuse(nack(*of, **more), self.now_s)

    def resend(self, now_s: float):
        self.now_s = now_s
        return self.outbox.resend_due(now_s)


@pytest.fixture
def box():
    return Fixture(A, B)


def held(box) -> list[tuple[Direction, int]]:
    return [(direction, key[3]) for direction, key in box.outbox.pending()]


def sent(sends) -> list[tuple[str, int]]:
    return [(send.peer, send.message.microbatch) for send in sends]


def test_a_forward_waits_for_credit(box):
    assert box.put(0) == []
    assert (box.outbox.num_waiting, held(box), box.outbox.next_deadline_s()) == (1, [(FORTH, 0)], None)
    (send,) = box.grant(B, 1)
    assert (send.peer, send.message.route, send.frames) == (address(B), (HOME, B), ("y0",))
    assert (box.outbox.num_waiting, box.outbox.next_deadline_s()) == (0, RESEND_S)


def test_the_oldest_goes_first_as_far_as_credit_goes(box):
    box.grant(A, 2)
    assert sent(box.put(0) + box.put(1) + box.put(2)) == [(address(A), 0), (address(A), 1)]
    assert sent(box.grant(A, 3)) == [(address(A), 2)]


@pytest.mark.parametrize("grants", [(3, 3), (3, 1), (3, 2, 3)], ids=["repeated", "reordered", "both"])
def test_credit_counts_once(box, grants):
    for units in grants:
        box.grant(A, units)
    assert len([send for microbatch in range(5) for send in box.put(microbatch)]) == 3


def test_credit_of_unknown_brokers_is_ignored(box):
    box.put(0)
    assert box.grant(99, 5) == []


def test_what_a_broker_says_of_itself_is_kept_for_the_wiring(box):
    box.grant(A, 2, free_bytes=7, depth=3, response_s=0.5)
    (state, _) = box.outbox.brokers()
    assert (state.free_bytes, state.depth, state.response_s) == (7, 3, 0.5)
    box.put(0)
    assert (state.depth, state.sent_bytes, state.credit_bytes) == (4, SIZE_BYTES, SIZE_BYTES)


def test_what_is_smaller_than_a_unit_costs_a_unit(box):
    """Tokens are small, and the gradient that comes back to stage 0 is not."""
    unit_bytes = 3 * SIZE_BYTES
    box.grant(A, 5, unit_bytes=unit_bytes)
    assert len(box.put(0) + box.put(1)) == 1, "5 of 6 units"
    (state, _) = box.outbox.brokers()
    assert (state.sent_bytes, box.outbox.unanswered_bytes(A)) == (unit_bytes, unit_bytes)
    assert len(box.grant(A, 6, unit_bytes=unit_bytes)) == 1
    assert state.sent_bytes == 2 * unit_bytes


def test_it_is_sent_again_to_the_same_broker_until_acknowledged(box):
    box.grant(A, 1)
    box.grant(B, 9)
    (first,) = box.put(0)
    assert box.resend(0.9) == []
    assert box.resend(1.0) == [first]
    assert box.resend(2.9) == []
    assert box.outbox.next_deadline_s() == 3.0
    assert box.resend(3.0) == [first]
    box.acknowledge(A, 0, FORTH)
    assert box.resend(99.0) == []
    assert held(box) == []


def test_acknowledging_brings_credit(box):
    box.grant(A, 1)
    box.put(0)
    box.put(1)
    assert sent(box.acknowledge(A, 0, FORTH, room=room(2 * SIZE_BYTES, producer=ME))) == [(address(A), 1)]


@pytest.mark.parametrize(
    ("broker", "microbatch", "direction", "of"),
    [
        (B, 0, FORTH, {}),
        (A, 1, FORTH, {}),
        (A, 0, BACK, {}),
        (A, 0, LOSS, {}),
        (A, 0, FORTH, {"attempt": 1}),
        (A, 0, FORTH, {"step": 1}),
        (A, 0, FORTH, {"branch": 1}),
    ],
    ids=["broker", "microbatch", "backward", "loss", "attempt", "step", "branch"],
)
def test_an_ack_of_something_else_or_by_somebody_else_does_not_count(box, broker, microbatch, direction, of):
    """A broker's late Ack once removed an output that was on its way to another broker."""
    box.grant(A, 1)
    box.put(0)
    box.acknowledge(broker, microbatch, direction, **of)
    assert sent(box.resend(1.0)) == [(address(A), 0)]


def test_busy_stays_with_its_broker_and_is_sent_again(box):
    """It went to another broker, and a late copy was taken by the first: one attempt had two homes, and counted twice."""
    box.grant(A, 1)
    (first,) = box.put(0)
    assert box.refuse(A, 0, NackCode.BUSY) == []
    (state, _) = box.outbox.brokers()
    assert (box.outbox.num_waiting, state.sent_bytes, held(box)) == (0, SIZE_BYTES, [(FORTH, 0)])
    assert box.grant(B, 9) == []
    assert box.resend(0.9) == []
    assert box.resend(1.0) == [first]
    box.acknowledge(A, 0, FORTH)
    assert held(box) == []


def test_who_is_busy_is_asked_again_as_soon_as_the_first_time(box):
    """It has answered: the waits for one that does not answer, each twice the one before, are not for it."""
    box.grant(A, 1)
    box.put(0)
    for now_s in (1.0, 3.0):
        assert sent(box.resend(now_s)) == [(address(A), 0)]
    assert box.outbox.next_deadline_s() == 7.0
    box.now_s = 3.5
    box.refuse(A, 0, NackCode.BUSY)
    assert box.outbox.next_deadline_s() == 4.5
    assert len(box.resend(4.5)) == 1
    assert box.outbox.next_deadline_s() == 6.5


def test_a_busy_broker_tells_its_room(box):
    box.grant(A, 1)
    box.put(0)
    box.put(1)
    assert sent(box.refuse(A, 0, NackCode.BUSY, room=room(2 * SIZE_BYTES, producer=ME))) == [(address(A), 1)]


def test_what_a_busy_broker_takes_with_it_goes_to_nobody_else(box):
    box.grant(A, 1)
    box.put(0)
    box.refuse(A, 0, NackCode.BUSY)
    box.outbox.set_brokers({B: address(B)})
    assert box.grant(B, 9) == []
    assert (held(box), box.outbox.num_waiting) == ([], 0)


def test_stale_is_forgotten_and_gives_its_credit_back(box):
    box.grant(A, 1)
    box.put(0)
    box.refuse(A, 0, NackCode.STALE)
    assert box.outbox.brokers()[0].credit_bytes == SIZE_BYTES
    assert held(box) == []


@pytest.mark.parametrize("code", list(NackCode))
@pytest.mark.parametrize(("broker", "microbatch"), [(B, 0), (A, 1)])
def test_a_nack_of_something_else_or_by_somebody_else_is_ignored(box, code, broker, microbatch):
    box.grant(A, 1)
    box.put(0)
    assert box.refuse(broker, microbatch, code) == []
    assert list(box.outbox.pending()) == [(FORTH, key(0))]
    assert box.outbox.num_waiting == 0


def test_a_backward_goes_where_it_is_told_without_credit(box):
    (send,) = box.put_back(0)
    assert (send.peer, send.frames) == ("sim://home", ("dx0",))
    assert box.resend(1.0) == [send]
    box.acknowledge(HOME, 0, BACK)
    assert held(box) == []


def test_a_backward_waits_for_its_brokers_address(box):
    """It once was dropped when the view that names the broker had not come: its microbatch never ended."""
    assert box.put_back(0, peer=None) == []
    assert (box.outbox.next_deadline_s(), box.resend(9.0)) == (None, [])
    assert box.outbox.introduce({77: address(77)}, 9.0) == []
    (send,) = box.outbox.introduce({HOME: address(HOME)}, 9.0)
    assert (send.peer, box.outbox.next_deadline_s()) == (address(HOME), 10.0)
    assert box.outbox.introduce({HOME: address(HOME)}, 9.5) == []


def test_a_loss_goes_to_the_trainer(box):
    (send,) = box.outbox.put_to("sim://trainer", evaluated(ME, 0), broker=0, now=0.0)
    assert send.frames == ()
    box.acknowledge(0, 0, LOSS, purpose=send.message.purpose)
    assert held(box) == []


def test_forward_and_backward_of_one_microbatch_are_two_outputs(box):
    box.grant(A, 1)
    box.put(0)
    box.put_back(0)
    box.acknowledge(A, 0, FORTH)
    assert list(box.outbox.pending()) == [(BACK, key(0))]


def test_older_steps_are_dropped(box):
    box.grant(A, 2)
    for microbatch, step in enumerate((0, 1, 0, 1)):
        box.put(microbatch, step=step)
    box.put_back(9, step=0)
    box.outbox.drop_before(0, 1)
    assert held(box) == [(FORTH, 1), (FORTH, 3)]
    box.outbox.drop_before(1, 0)
    assert held(box) == []
    assert box.outbox.num_waiting == 0


@pytest.mark.parametrize(
    ("microbatch", "of", "is_void"),
    [
        (0, {"attempt": 4}, True),
        (2, {"attempt": 0}, True),
        (0, {"attempt": 5}, False),
        (1, {}, False),
        (0, {"step": 1}, False),
        (0, {"branch": 1}, False),
        (0, {"purpose": Purpose.EVALUATE}, False),
    ],
)
@pytest.mark.parametrize("place", ["waiting", "sent", "backward"])
def test_void_attempts_are_dropped(box, place, microbatch, of, is_void):
    if place == "backward":
        box.put_back(microbatch, **of)
    else:
        box.grant(A, 1 if place == "sent" else 0)
        box.put(microbatch, **of)
    assert len(held(box)) == 1
    box.outbox.drop_void((0, 0), 5, 0b101)
    assert held(box) == ([] if is_void else [(BACK if place == "backward" else FORTH, microbatch)])
    assert len(box.resend(1.0)) == (place == "sent" or (place == "backward" and not is_void))


@pytest.mark.parametrize(
    ("answer", "credit_units"), [(None, 0), (NackCode.BUSY, 1), (NackCode.STALE, 1)], ids=["Ack", "BUSY", "STALE"]
)
@pytest.mark.parametrize("drop", ["void", "before"])
def test_what_is_given_up_is_sent_until_its_broker_says_whether_it_took_the_credit(box, drop, answer, credit_units):
    """It would otherwise have less and less of it: whether a lost Forward had come nobody would ever know."""
    box.grant(A, 1)
    (first,) = box.put(0)
    if drop == "void":
        box.outbox.drop_void((0, 0), 5, 1)
    else:
        box.outbox.drop_before(0, 1)
    assert held(box) == []
    assert box.outbox.pending_ledger(0, 0) == 0
    assert box.resend(1.0) == [first]
    if answer is None:
        box.acknowledge(A, 0, FORTH)
    else:
        box.refuse(A, 0, answer)
    assert box.outbox.brokers()[0].credit_bytes == credit_units * SIZE_BYTES
    assert box.resend(99.0) == []
    assert box.outbox.num_waiting == 0, "nobody else shall get it"


# -- brokers that leave --------------------------------------------------------------------------------


def test_what_was_sent_to_a_broker_that_left_is_dropped_and_what_waits_stays(box):
    """Sent to another one, too, it could have two homes, and be counted twice."""
    box.grant(A, 1)
    box.put(0)
    box.put(1)
    box.put_back(2)
    box.outbox.set_brokers({B: address(B)})
    assert held(box) == [(BACK, 2), (FORTH, 1)]
    assert sent(box.resend(1.0)) == [("sim://home", 2)]
    assert sent(box.grant(B, 2)) == [(address(B), 1)]


@pytest.mark.parametrize(
    ("broker", "peer", "stays"),
    [
        (HOME, "sim://home", False),
        (HOME, None, False),
        (99, "sim://99", False),
        (99, None, True),
        (41, "sim://41", True),
        (TRAINER, "sim://trainer", True),
    ],
    ids=["left", "left unseen", "left, the newest", "still to come", "live", "the trainer"],
)
def test_what_is_for_a_broker_that_left_is_dropped(box, broker, peer, stays):
    box.outbox.put_to(peer, backward(ME, 0), broker=broker, now=0.0)
    box.outbox.forget_brokers({ME, A, B})
    assert held(box) == ([(BACK, 0)] if stays else [])


def test_what_comes_too_late_for_its_broker_is_not_kept(box):
    box.outbox.forget_brokers({ME, A, B})
    box.outbox.forget_brokers({ME, A})
    assert box.put_back(0, peer=None) == []
    assert box.outbox.put_to(None, backward(ME, 1), broker=B, now=0.0) == []
    assert held(box) == []


# -- what the coordinator is told ----------------------------------------------------------------------


@pytest.mark.parametrize("purpose", list(Purpose))
def test_whether_a_step_waits_for_credit(box, purpose):
    box.grant(A, 1)
    box.put(0)
    box.put_back(1)
    assert not box.outbox.waits(0, 0), "all of it is on its way"
    box.put(2, step=1, purpose=purpose)
    assert [box.outbox.waits(*version) for version in ((0, 0), (0, 1), (1, 1))] == [False, True, False]
    box.grant(A, 2)
    assert not box.outbox.waits(0, 1)


def test_what_is_pending_is_a_ledger(box):
    box.grant(A, 1)
    box.put(0)
    box.put(3)
    box.put_back(4)
    box.put(5, step=1)
    box.put(6, branch=1)
    box.outbox.put_to("sim://trainer", evaluated(ME, 7), broker=TRAINER, now=0.0)
    assert box.outbox.pending_ledger(0, 0) == 0b11001
    assert box.outbox.pending_ledger(0, 1) == 0b100000


def test_what_waits_for_a_broker_that_may_never_come_is_not_pending(box):
    box.put_back(0, peer=None)
    assert box.outbox.pending_ledger(0, 0) == 0
    box.outbox.introduce({HOME: address(HOME)}, 0.0)
    assert box.outbox.pending_ledger(0, 0) == 1


def test_who_owes_an_acknowledgement_and_says_nothing_is_silent(box):
    box.grant(A, 1)
    box.put(0)
    box.put_back(1)
    box.put_back(2, peer=None)
    assert box.outbox.silent(3.0, 3.0) == []
    assert box.outbox.silent(3.1, 3.0) == [HOME, A]
    box.resend(2.0)
    assert box.outbox.silent(3.1, 3.0) == [HOME, A], "that it was sent again excuses nobody"
    box.now_s = 2.0
    box.grant(A, 1)
    assert box.outbox.silent(5.0, 3.0) == [HOME]
    assert box.outbox.silent(5.1, 3.0) == [HOME, A]


@pytest.mark.parametrize("speak", ["acknowledge", "refuse"])
def test_an_answer_to_anything_breaks_the_silence(box, speak):
    box.put_back(0)
    box.now_s = 2.0
    if speak == "acknowledge":
        box.acknowledge(HOME, 7, BACK)
    else:
        box.refuse(HOME, 7, NackCode.STALE)
    assert box.outbox.silent(4.0, 3.0) == []
    assert box.outbox.silent(5.1, 3.0) == [HOME]


def test_who_owes_nothing_is_not_silent(box):
    box.grant(A, 1)
    box.put_back(0)
    box.acknowledge(HOME, 0, BACK)
    box.outbox.put_to("sim://trainer", evaluated(ME, 7), broker=TRAINER, now=0.0)
    assert box.outbox.silent(99.0, 3.0) == []


def test_the_time_without_an_address_does_not_count(box):
    box.put_back(0, peer=None)
    box.outbox.introduce({HOME: address(HOME)}, 5.0)
    assert box.outbox.silent(8.0, 3.0) == []
    assert box.outbox.silent(8.1, 3.0) == [HOME]


def test_a_broker_that_leaves_is_not_chosen_and_one_that_stays_keeps_its_credit(box):
    box.grant(A, 1)
    box.grant(B, 1)
    box.outbox.set_brokers({B: address(B)})
    assert sent(box.put(0)) == [(address(B), 0)]
    box.outbox.set_brokers({A: address(A), B: address(B)})
    assert box.put(1) == []


def test_a_policy_that_waits_holds_everything_back():
    box = Fixture(A, B)
    box.outbox = Outbox(wiring=make_wiring("fixed", lambda: 0.9), resend_s=RESEND_S, me=ME, trainer=0)
    box.outbox.set_brokers({A: address(A), B: address(B)})
    box.grant(A, 5)
    assert box.put(0) == []
    assert sent(box.grant(B, 1)) == [(address(B), 0)]


def test_who_owes_an_answer_gets_nothing_new_while_somebody_else_would_take_it(box):
    """What goes to a broker that is frozen fills the pipeline until it is given up."""
    box.grant(A, 9)
    box.grant(B, 9)
    assert sent(box.put(0)) == [(address(A), 0)]
    box.now_s = 0.4
    assert sent(box.put(1)) == [(address(A), 1)], "it may be on its way"
    box.now_s = 0.6
    assert sent(box.put(2)) == [(address(B), 2)]
    box.acknowledge(A, 0, FORTH)
    assert sent(box.put(3)) == [(address(A), 3)]


def test_where_nobody_answers_the_policy_chooses(box):
    box.grant(A, 9)
    box.put(0)
    box.now_s = 9.0
    assert sent(box.put(1)) == [(address(A), 1)]
