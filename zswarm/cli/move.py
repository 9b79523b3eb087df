"""The body of `zswarm move`: ask the trainer to let a worker go on in another stage, and say what it answers."""

from __future__ import annotations

from time import monotonic

from zswarm.errors import RunFailed, UserError
from zswarm.ids import Address, NodeId, Stage
from zswarm.membership import RUNLESS
from zswarm.messages import Move, Moved, Reject
from zswarm.swarm_key import SwarmKey
from zswarm.transport import Switchboard

ANSWER_S = 5.0
"""How long an answer is waited for."""
AGAIN_S = 1.0
"""After how long the trainer is asked again."""


def move(*, node: NodeId, stage: Stage, coordinator: Address, key: SwarmKey | None) -> str:
    """Return what the trainer says that it will do.

    Raises:
        UserError: the address or the key cannot be used, or the trainer refuses, or it speaks another version.
        RunFailed: nobody answers.

    """
    order = Move(**RUNLESS, node=node, stage=stage)
    with Switchboard(key=key) as switchboard:
        switchboard.dial(coordinator, is_first=True)
        ends_at_s = monotonic() + ANSWER_S
        asked_at_s = float("-inf")
        while (now := monotonic()) < ends_at_s:
            if now - asked_at_s >= AGAIN_S:
                switchboard.send(coordinator, order)
                asked_at_s = now
            for received in switchboard.poll(min(AGAIN_S, ends_at_s - now)):
                match received.message:
                    case Moved() as answer if (answer.node, answer.stage) == (node, stage):
                        if not answer.is_accepted:
                            raise UserError(answer.text)
                        return answer.text
                    case Reject() as answer:
                        raise UserError(f"--coordinator {coordinator}: {answer.text}")
    raise RunFailed(f"--coordinator {coordinator}: no trainer has answered within {ANSWER_S:g} s")
