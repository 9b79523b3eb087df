"""The hostile network: what it may do to a message, and that a seed brings it back."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from zswarm.errors import LocalProtocolError
from zswarm.ids import Address, Link
from zswarm.simulation.network import Delivery, Network, Weather

SERVER = Address("sim://server")
OTHER = Address("sim://other")


def network(weather: Weather, seed: int = 0) -> Network:
    made = Network(weather, Random(seed))
    made.attach(0, SERVER)
    return made


def burst(made: Network, count: int = 500, now_s: float = 0.0) -> list[Delivery]:
    return [d for _ in range(count) for d in made.send(1, SERVER, now_s, has_payload=False)]


def test_the_receiver_sees_a_link_and_may_answer_it() -> None:
    """The dialler sees the answer come from the address that it dialled."""
    made = network(Weather())
    (there,) = made.send(1, SERVER, 0.0, has_payload=False)
    assert there.receiver == 0
    assert isinstance(there.peer, bytes)
    (back,) = made.send(0, there.peer, 1.0, has_payload=False)
    assert (back.receiver, back.peer) == (1, SERVER)


def test_each_socket_and_each_dialler_has_a_link_of_its_own() -> None:
    made = network(Weather())
    made.attach(0, OTHER)
    links = [made.send(node, to, 0.0, has_payload=False)[0].peer for node in (1, 2) for to in (SERVER, OTHER)]
    assert len(set(links)) == 4
    assert made.send(1, SERVER, 1.0, has_payload=False)[0].peer == links[0]


def test_nobody_answers_the_link_of_somebody_else() -> None:
    made = network(Weather())
    (there,) = made.send(1, SERVER, 0.0, has_payload=False)
    with pytest.raises(LocalProtocolError, match="node 2 answers a link"):
        made.send(2, there.peer, 0.0, has_payload=False)


def test_an_address_has_one_owner() -> None:
    made = network(Weather())
    with pytest.raises(LocalProtocolError, match="in use"):
        made.attach(1, SERVER)


def test_what_cannot_be_reached_gets_nothing() -> None:
    """An address without a socket, the link of a node that has gone, and a blocked way."""
    made = network(Weather())
    assert made.send(1, OTHER, 0.0, has_payload=False) == []
    assert made.send(0, Link(b"nobody's"), 0.0, has_payload=False) == []
    (there,) = made.send(1, SERVER, 0.0, has_payload=False)
    made.blocked[0, 1] = inf
    assert made.send(0, there.peer, 0.0, has_payload=False) == []
    assert len(made.send(1, SERVER, 0.0, has_payload=False)) == 1
    made.blocked.clear()
    made.detach(1)
    assert made.send(0, there.peer, 0.0, has_payload=False) == []
    made.detach(0)
    assert made.send(1, SERVER, 0.0, has_payload=False) == []
    assert (made.counters["unreachable"], made.counters["blocked"]) == (4, 1)


def test_what_is_sent_into_a_cut_that_heals_comes_when_it_has_healed_and_in_order() -> None:
    """TCP sends again until the way is free."""
    made = network(Weather())
    made.blocked[1, 0] = 5.0
    times_s = [made.send(1, SERVER, now_s, has_payload=False)[0].time_s for now_s in (1.0, 2.0, 4.9)]
    assert 5.0 < times_s[0] <= times_s[1] <= times_s[2] < 5.2


def test_connections_that_were_reset_are_made_anew() -> None:
    """The old link reaches nobody and says so; both ends live, and the next message comes over a new one."""
    made = network(Weather())
    (before,) = made.send(1, SERVER, 0.0, has_payload=False)
    (other,) = made.send(2, SERVER, 0.0, has_payload=False)
    made.reset(0, 1)
    assert made.is_gone(before.peer)
    assert not made.is_gone(other.peer)
    assert made.send(0, before.peer, 0.0, has_payload=False) == []
    (after,) = made.send(1, SERVER, 0.0, has_payload=False)
    assert after.peer != before.peer
    assert not made.is_gone(after.peer)


def test_a_node_that_is_started_again_has_new_links_at_its_old_address() -> None:
    made = network(Weather())
    (before,) = made.send(1, SERVER, 0.0, has_payload=False)
    made.detach(0)
    assert made.is_gone(before.peer)
    made.attach(0, SERVER)
    (after,) = made.send(1, SERVER, 0.0, has_payload=False)
    assert after.peer != before.peer


def test_equal_seeds_make_equal_weather() -> None:
    rough = Weather(loss=0.1, duplication=0.1, straggling=0.1, in_order=False, fair_from_s=9.0)
    assert burst(network(rough, seed=3)) == burst(network(rough, seed=3))
    assert burst(network(rough, seed=3)) != burst(network(rough, seed=4))


def test_messages_are_lost_repeated_late_and_overtaken_about_as_often_as_asked() -> None:
    rough = Weather(loss=0.2, duplication=0.1, straggling=0.1, straggle_s=5.0, in_order=False, fair_from_s=9.0)
    made = network(rough)
    came = burst(made, 2000)
    assert made.counters["lost"] == pytest.approx(400, rel=0.25)
    assert made.counters["duplicated"] == pytest.approx(200, rel=0.35)
    assert made.counters["straggling"] == pytest.approx(160, rel=0.35)
    assert made.counters["reordered"] > 500
    assert len(came) == 2000 - made.counters["lost"] + made.counters["duplicated"]
    assert max(d.time_s for d in came) > 4.0


def test_what_is_corrupted_is_lost_with_its_connection() -> None:
    made = network(Weather(corruption=0.1, fair_from_s=9.0))
    came = burst(made, 1000)
    assert made.counters["corrupted"] == pytest.approx(100, rel=0.35)
    assert len(came) == 1000 - made.counters["corrupted"]
    first, last = came[0].peer, came[-1].peer
    assert first != last
    assert made.is_gone(first)


def test_one_direction_keeps_its_order_if_asked() -> None:
    came = burst(network(Weather(jitter=5.0, straggling=0.1, fair_from_s=9.0, in_order=True)))
    assert [d.time_s for d in came] == sorted(d.time_s for d in came)


def test_the_network_becomes_fair() -> None:
    made = network(Weather(loss=1.0, fair_from_s=5.0))
    assert burst(made, 10, now_s=4.9) == []
    assert len(burst(made, 10, now_s=5.0)) == 10
    earlier = network(Weather(loss=1.0, fair_from_s=5.0))
    earlier.make_fair(1.0)
    assert len(burst(earlier, 10, now_s=1.0)) == 10


def test_latency_stays_within_its_range_and_payloads_take_longer() -> None:
    calm = Weather(latency_low_s=0.01, latency_high_s=0.02, jitter=0.0, payload_factor=10.0)
    (control,) = network(calm).send(1, SERVER, 0.0, has_payload=False)
    (payload,) = network(calm).send(1, SERVER, 0.0, has_payload=True)
    assert 0.01 <= control.time_s <= 0.02
    assert payload.time_s == pytest.approx(10 * control.time_s)
