"""A real broker process with a swarm key, and those who mean it harm: strangers first, then members."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
import zmq

from tests.wire.mutation import Enemy
from zswarm import limits
from zswarm.benchmarks import attack
from zswarm.benchmarks.attack import MIB, Target, target
from zswarm.benchmarks.strangers import ATTACKS, flood
from zswarm.benchmarks.traffic import RUN
from zswarm.errors import RemoteProtocolError
from zswarm.transport import Switchboard
from zswarm.transport.curve import Curve
from zswarm.transport.handshake import HandshakeWatch, Outcome
from zswarm.wire import decode_untrusted

GROWTH_BYTES = 64 * MIB
"""Most memory that strangers may cost."""
NUM_MUTANTS = 3000
DEADLINE_S = 60.0
"""Far more than anything here takes."""
ENDLESS_FRAMES = 1024
"""Of one message: a gigabyte, of which a part is taken."""


def serve_somebody_new(broker: Target) -> None:
    """Have an honest peer come and be told its credit; RunFailed if that takes a minute."""
    with Switchboard(key=broker.key) as comer:
        broker.serve(comer)


@pytest.fixture
def broker():
    with target() as running:
        running.note_memory()
        yield running


def test_strangers_get_nothing_in(broker):
    """No key, another one, noise, lies in plain words, a handshake of half a gigabyte: no byte comes to be looked at."""
    with Switchboard(key=broker.key) as early:
        broker.serve(early)
        for each in ATTACKS:
            each(broker.victim)
            broker.serve(early)
            serve_somebody_new(broker)
    assert broker.growth_bytes() < GROWTH_BYTES
    heard = broker.end()
    assert (heard.strangers_bytes, heard.num_malformed, heard.num_cut_off) == (0, 0, 0)


def test_after_a_flood_honest_peers_are_served_again():
    """With all files taken by connections that say nothing and stay open; who was in is served all the time."""
    with target(open_files=64) as broker, Switchboard(key=broker.key) as early, ExitStack() as held:
        broker.serve(early)
        broker.note_memory()
        flood(broker.victim, held, num_connections=100, duration_s=0.2)
        broker.serve(early)
        serve_somebody_new(broker)
        assert broker.growth_bytes() < GROWTH_BYTES
        assert broker.end().strangers_bytes == 0


def member_of(broker: Target, stack: ExitStack) -> zmq.Socket[bytes]:
    """Return a socket that has the swarm's key, not connected yet, and may say anything with it."""
    context = stack.enter_context(zmq.Context())
    rude = stack.enter_context(context.socket(zmq.DEALER))
    rude.linger = 0
    rude.sndhwm = NUM_MUTANTS
    Curve.of(broker.key).secure(rude)
    return rude


def test_a_member_that_sends_without_end_is_cut_off(broker):
    """The broker's loop goes on meanwhile, and a gigabyte is not collected."""
    with ExitStack() as stack:
        rude = member_of(broker, stack)
        watch = stack.enter_context(HandshakeWatch(rude))
        rude.connect(broker.work)
        one_frame = bytes(limits.MAX_FRAME_BYTES)
        for _ in range(ENDLESS_FRAMES):
            rude.send(one_frame, zmq.SNDMORE, copy=False)
        rude.send(b"")
        until_s = time.monotonic() + DEADLINE_S
        while Outcome.HUNG_UP not in watch.outcomes():
            assert time.monotonic() < until_s
            serve_somebody_new(broker)
    assert broker.growth_bytes() < ENDLESS_FRAMES // 2 * limits.MAX_FRAME_BYTES
    heard = broker.end()
    assert (heard.num_cut_off, heard.num_malformed) == (1, 0)


def test_changed_messages_behind_a_valid_key_are_dropped(broker):
    """On both of its sockets; what a member could say of this very run in good faith is left out."""
    enemy, num_sent = Enemy(4), 0
    with ExitStack() as stack:
        members = [member_of(broker, stack) for _ in range(2)]
        members[0].connect(broker.work)
        members[1].connect(broker.control)
        for number in range(NUM_MUTANTS):
            mutant = enemy.mutant()
            try:
                if decode_untrusted(mutant).message.run == RUN:
                    continue
            except RemoteProtocolError:
                pass
            members[number % 2].send_multipart(mutant)
            num_sent += 1
            if number % 500 == 0:
                serve_somebody_new(broker)
        serve_somebody_new(broker)
        assert broker.growth_bytes() < GROWTH_BYTES
    heard = broker.end()
    assert num_sent > NUM_MUTANTS // 2
    assert NUM_MUTANTS // 4 < heard.num_malformed <= num_sent
    assert heard.strangers_bytes > 0, "what gets through is noticed"


def test_figures_stand_beside_their_targets(monkeypatch, tmp_path, capsys):
    """A byte that gets through is a target missed."""
    found = {attack.DELIVERED: 1.0, attack.GROWTH: 2.0, attack.MEANWHILE: 0.1, attack.AFTER: 5.0}
    monkeypatch.setattr(attack, "measure", lambda: found)
    attack.main(rounds=2, json_file=tmp_path / "found.json")
    met = {figure.name: figure.is_met for figure in attack.figures_of({name: [value] for name, value in found.items()})}
    assert met == {attack.DELIVERED: False, attack.GROWTH: True, attack.MEANWHILE: None, attack.AFTER: True}
    assert "MISSED" in capsys.readouterr().out
    assert (tmp_path / "found.json").exists()
