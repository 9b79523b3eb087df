"""What an advert must be to be believed that somebody may be there."""

from __future__ import annotations

import ipaddress
import threading

import pytest
from zeroconf import ServiceInfo

from zswarm.beacon.machine import Sighted
from zswarm.beacon.mdns import SERVICE, Multicast, advert_tag
from zswarm.swarm_key import SwarmKey

KEY, OTHER = SwarmKey(bytes(32)), SwarmKey(bytes(31) + b"\1")
HOST, PORT = "127.0.0.1", 4710


def advert(*, key=KEY, host=HOST, port=PORT, said_port=None, tag=None, hosts=None):
    tag = advert_tag(key, host, port) if tag is None else tag
    addresses = [ipaddress.IPv4Address(h).packed for h in (hosts or [host])]
    return ServiceInfo(SERVICE, f"a.{SERVICE}", addresses=addresses, port=said_port or port, properties={b"tag": tag})


@pytest.fixture(scope="module")
def multicast():
    try:
        made = Multicast(KEY, host=HOST, wake=lambda: None)
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")
    with made:
        yield made


@pytest.mark.parametrize(
    "forged",
    [
        advert(key=OTHER),
        advert(said_port=PORT + 1),
        advert(tag=b""),
        advert(tag=b"\xff" * 32),
        advert(hosts=[HOST, "10.0.0.1"]),
        advert(hosts=["10.0.0.9"]),
        ServiceInfo(SERVICE, f"a.{SERVICE}", addresses=[b"\x7f\0\0\1"], port=PORT),
    ],
    ids=["another key", "another port", "no tag", "garbage", "two addresses", "another address", "no properties"],
)
def test_only_holders_of_the_key_are_believed(multicast, forged):
    assert multicast._checked_untrusted(forged) is None


def test_a_member_is_believed(multicast):
    assert multicast._checked_untrusted(advert()) == f"tcp://{HOST}:{PORT}"


def test_an_advert_is_seen_by_another_process_of_the_network(multicast):
    """Two instances on one interface stand for two machines."""
    bell = threading.Event()
    try:
        other = Multicast(KEY, host=HOST, wake=bell.set)
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")
    with other:
        multicast.advertise("lab ü 2", HOST, 4712, boot_nonce=7)
        assert bell.wait(10.0), "an advert on the same interface was not seen"
        assert Sighted(address="tcp://127.0.0.1:4712") in other.sightings()


def test_an_advert_is_not_waited_for():
    """A beacon was deaf until its advert was up, which took more than a second of `zswarm join`."""
    try:
        made = Multicast(KEY, host=HOST, wake=lambda: None)
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")
    may_go_on = threading.Event()
    with made:
        # Zeroconf's own thread is held up: nothing can be put up until we let it.
        made._zeroconf.loop.call_soon_threadsafe(may_go_on.wait, 60.0)
        made.advertise("lab2", HOST, 4713, boot_nonce=8)
        assert not made._advertising.done()
        may_go_on.set()
        made._advertising.result(60.0)
        assert [info.port for info in made._zeroconf.registry.async_get_service_infos()] == [4713]


def test_an_advert_that_is_not_up_yet_is_given_up_at_the_end():
    try:
        made = Multicast(KEY, host=HOST, wake=lambda: None)
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")
    with made:
        made.advertise("lab2", HOST, 4714, boot_nonce=9)
    assert made._advertising.cancelled()
