"""Machines find each other from one seed, and runs from anybody."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.beacon.world import World, at, offer
from zswarm import limits
from zswarm.beacon.contacts import Origin
from zswarm.beacon.machine import Alone, Appeared, Beacon, BeaconSettings, Seeker, Vanished
from zswarm.ids import Address
from zswarm.machine import ASKED, Exit, Leave, Tick


def everybody_sees_everybody(world: World, numbers) -> bool:
    return all(world.heard_by(a) == set(numbers) - {a} for a in numbers)


def test_all_find_all_from_one_seed():
    """The seed hears of those that greet it, and tells the others; within a few intervals all are in touch."""
    world = World()
    for number in range(1, 7):
        world.add(number, seeds=[1])
    world.run(3 * limits.GREET_S)
    assert everybody_sees_everybody(world, range(1, 7))


def test_a_seed_may_come_last():
    """It is asked ever more rarely, and found within the longest wait."""
    world = World()
    world.add(2, seeds=[1])
    world.run(60.0)
    assert len(world.processes[2].contacts) == 1, "a seed is never forgotten"
    world.add(1)
    world.run(limits.GREET_LONGEST_S + limits.GREET_S)
    assert everybody_sees_everybody(world, (1, 2))


def test_whoever_is_sighted_is_greeted():
    world = World()
    world.add(1)
    world.add(2)
    world.sight(1, at(2))
    world.run(limits.GREET_S)
    assert everybody_sees_everybody(world, (1, 2))
    assert world.processes[2].contacts.get(at(1)).origin is Origin.CALLER


def test_a_process_that_meets_itself_keeps_no_company_with_itself():
    """Its own address is among the seeds of a machine that others use as theirs, or it has another address, too."""
    world = World()
    beacon = world.add(1, seeds=[1, 5])
    # Number 5 is the same process by another address.
    world.processes[5] = beacon
    world.run(2.0)
    assert world.heard_by(1) == set()
    assert len(beacon.contacts) == 0
    world.sight(1, at(5))
    assert len(beacon.contacts) == 0


def test_an_offer_reaches_whoever_asks_a_beacon_that_its_trainer_has_greeted():
    world = World()
    for number in (1, 2, 3):
        world.add(number, seeds=[1])
    world.run(2.0)
    world.add(90, seeds=[2], listens=False, offered=offer())
    seeker = world.add(91, seeds=[3], listens=False)
    world.run(3 * limits.GREET_S)
    assert seeker.offers(world.now) == [offer()]


def test_an_offer_ends_soon_after_its_trainer():
    world = World()
    for number in (1, 2):
        world.add(number, seeds=[1])
    world.add(90, seeds=[1], listens=False, offered=offer())
    seeker = world.add(91, seeds=[2], listens=False)
    world.run(3.0)
    assert seeker.offers(world.now)
    del world.processes[90]
    # The beacons tell of it for GREETED_S, and whoever they have told remembers it for as long again.
    world.run(2 * limits.GREETED_S + limits.GREET_S)
    assert not seeker.offers(world.now)
    assert not world.processes[1].offers(world.now)


def test_who_comes_and_goes_is_told_once():
    world = World()
    world.add(1)
    world.add(2, seeds=[1])
    world.run(5.0)
    (appeared,) = world.said_by(2, Appeared)
    assert (appeared.machine, appeared.address, appeared.namesake) == ("m1", at(1), None)
    assert appeared.round_trip_s == pytest.approx(0.002)
    del world.processes[1]
    world.run(30.0)
    (vanished,) = world.said_by(2, Vanished)
    assert vanished.address == at(1)
    world.add(1, nonce=77)
    world.run(limits.GREET_LONGEST_S + 0.1)
    assert len(world.said_by(2, Appeared)) == 2


def test_machines_of_one_name_are_told_of():
    """Their workers would take each other's place."""
    world = World()
    world.add(1, machine="debian")
    world.add(2, machine="debian", seeds=[1])
    world.add(3, seeds=[1])
    world.run(3.0)
    assert [a.namesake for a in world.said_by(2, Appeared) if a.machine == "debian"] == [at(2)]
    assert {a.namesake for a in world.said_by(3, Appeared)} == {None, at(1)} or {
        a.namesake for a in world.said_by(3, Appeared)
    } == {None, at(2)}


def test_whoever_finds_nobody_says_so_once_with_what_it_tried():
    world = World()
    world.add(1, seeds=[7, 8])
    world.add(2)
    world.add(3, seeds=[2])
    world.run(60.0)
    assert world.said_by(1, Alone) == [Alone(tried=(at(7), at(8)))]
    assert not world.said_by(3, Alone)


def test_a_candidate_that_never_answers_is_forgotten_and_asked_ever_more_rarely():
    world = World()
    beacon = world.add(1)
    world.sight(1, at(9))
    sent = world.num_sent
    world.run(limits.FORGET_S + limits.GREET_LONGEST_S)
    assert len(beacon.contacts) == 0
    assert world.num_sent - sent < 3 + limits.FORGET_S / limits.GREET_LONGEST_S + 1


def test_forged_addresses_push_out_nobody_that_answers():
    """However many there are, memory is bounded, and so is what is sent."""
    world = World()
    world.add(1, seeds=[2, 3])
    world.add(2)
    world.run(2.0)
    beacon = world.processes[1]
    for number in range(2 * limits.MAX_CONTACTS):
        world.sight(
            1, Address(f"tcp://10.1.{number // 256}.{number % 256}:4710")
        ) if number < 5 else beacon.contacts.add(
            Address(f"tcp://10.2.{number // 256}.{number % 256}:4710"), Origin.MDNS, world.now
        )
    assert len(beacon.contacts) == limits.MAX_CONTACTS
    assert beacon.contacts.get(at(2)).is_heard
    assert beacon.contacts.get(at(3)).origin is Origin.SEED


def test_after_its_own_stall_a_beacon_blames_nobody():
    world = World()
    world.add(1)
    beacon = world.add(2, seeds=[1])
    world.run(5.0)
    world._carry_out(2, beacon.handle(Tick(), world.now + 30.0))
    assert beacon.contacts.get(at(1)).is_heard


def test_a_seeker_leaves_with_the_first_run_that_it_may_take():
    settings = BeaconSettings(machine="m", boot_nonce=5, address=Address(""), release="1.0", seeds=(at(1),))
    world = World()
    world.add(1)
    for nonce in (1, 2):
        world.add(90 + nonce, seeds=[1], listens=False, offered=offer(nonce=nonce))
    beacon = Beacon(settings, choose=Random(0).randrange, now=0.0)
    seeker = Seeker(beacon, {offer(nonce=1): 20.0, offer(nonce=2): 10.0})
    world.processes[95] = seeker
    world.run(9.0)
    assert seeker.offer is None
    world.run(2.0)
    assert seeker.offer == offer(nonce=2)
    assert world.said_by(95, Exit)
    del world.processes[95]


def test_leaving():
    world = World()
    assert world.add(1).handle(Leave(), 0.0) == [Exit(code=0, text=ASKED)]


@given(
    st.integers(2, 5),
    st.data(),
)
def test_whatever_was_cut_all_find_all_once_the_network_is_whole(num_machines, data):
    """Liveness: seeds that connect all of them, links cut in any direction for a while, then none."""
    numbers = range(1, num_machines + 1)
    world = World(data.draw(st.integers(0, 99)))
    for number in numbers:
        world.add(number, seeds=[data.draw(st.integers(1, max(1, number - 1)))])
    pairs = [(a, b) for a in numbers for b in numbers if a != b]
    world.down = set(data.draw(st.lists(st.sampled_from(pairs), max_size=8)))
    world.run(data.draw(st.floats(0.0, 10.0)))
    world.down.clear()
    world.run(2 * limits.GREET_LONGEST_S + 4 * limits.GREET_S)
    assert everybody_sees_everybody(world, numbers)


def test_beacons_that_hear_each_other_say_little():
    """What they cost a machine is paid for as long as it is in the swarm."""
    world = World()
    for number in (1, 2, 3):
        world.add(number, seeds=[1])
    world.run(5.0)
    sent, interval_s = world.num_sent, 20.0
    world.run(interval_s)
    # Each of the six pairs, in both directions: a greeting and an answer.
    assert world.num_sent - sent <= 2 * 6 * (interval_s / limits.GREET_CALM_S + 1)
