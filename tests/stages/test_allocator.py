from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from zswarm.allocator import keep_freed_memory
told = keep_freed_memory()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(told, faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_taken_once():
    """Tensors of 4 MiB, made and dropped again and again, cost no page faults once there was one."""
    found = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout.split()
    assert found[0] == "True"
    assert int(found[1]) < 100
