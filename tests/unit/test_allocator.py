from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from zswarm.allocator import keep_freed_memory

CODE = """
import resource, threading
from zswarm.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [bytearray(1 << 20) for _ in range(100)]
    del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def print_last_faults():
    print([faults() for _ in range(5)][-1])

print(keep_freed_memory(one_arena=True))
print_last_faults()
thread = threading.Thread(target=print_last_faults)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_taken_once():
    """Payloads of 100 MiB, taken and dropped again and again, cost no page faults once there was one, by any thread."""
    found = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout.split()
    assert found[0] == "True"
    assert max(int(count) for count in found[1:]) < 100


def test_another_c_library_is_left_alone(monkeypatch):
    """Where there is no mallopt, nothing is told and nothing fails."""
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
