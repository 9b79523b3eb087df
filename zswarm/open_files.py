"""The system's limit of open files: each connection of a process is one."""

from __future__ import annotations

import resource

ENOUGH = 65_536
"""Of connections, for every process of the largest swarm and a flood of strangers, each for 3 seconds."""
FEW = 1_024
"""With fewer, 500 strangers keep everybody else out for as long as they come."""


def raise_limit() -> str:
    """Let this process and its children have as many open files as the system allows it, ENOUGH at most.

    Return what is to be told to the user; nothing if the limit will do.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            wanted = soft
        soft = wanted
    if soft == resource.RLIM_INFINITY or soft >= FEW:
        return ""
    return (
        f"this process may have {soft} open files, and each connection is one: in a large swarm, or under a flood of "
        f"strangers, others will not get through; raise the hard limit (`ulimit -Hn {ENOUGH}`, LimitNOFILE={ENOUGH})"
    )
