"""Rules of the protocol, broken on purpose: a simulator that does not notice proves nothing.

A mutant replaces one or two methods of the real machines while it is in force. Where the breach of a rule is mended by
another one, only breaking both shows; such a pair is one mutant here. What is mended altogether is no mutant, because
no schedule could notice it; these rules save time, or are a second wall:

    workers' reports in any order        the next report mends it, and Prepared carries the ledger once more
    a round's ledger is not looked at    a complete stage counts nothing more; Prepared is compared with what was asked
    a commit without its result (R7)     it is told only to those who report that they hold the result
    a chunk of an all-reduce sent once   whoever waits for its acknowledgement accuses, and the round is begun anew
    Register is not idempotent           each repetition costs a life, until one Welcome arrives in time
    Fence is sent once                   the same: it is sent to whatever a session says that is void
    Abort is sent once                   it is: the Prepare of the next round ends the one before, and is repeated
    a broker knows who has counted what  it is asked only when that one leaves: what the coordinator admits again has a
                                         mask and is a new attempt
    no excuse for an own stall           everybody is given up, begins a new life, and does the step again
    an older generation is believed      whatever it orders is of an older view, round or attempt
    a gradient for a home that is in no view yet is dropped, what is kept is not done again
                                         nobody reports the microbatch, so that it is admitted again
    what is kept of a void attempt       workers refuse it, those that were there when it became void
    what an heir holds outlives a Void   nothing is voided that an heir has got, unless it has not been heard for two heartbeats;
                                         tests/stages/test_heir.py looks at the rule itself
    a Forward for an earlier life        that life has left the view, and with it all that was meant for it
    a hung process ends with a state that is not safe, again and again, or at the first task of a sort
                                         a rollback, or time: no promise is broken; tests/trainer/test_coordinator_losses.py
                                         and tests/stages/test_worker_lives.py look at the rules themselves
    two workers have counted the same    the coordinator gives one of them up (`Committer.is_conflict`); the simulator
                                         looks at the ledgers themselves, so that it sees this before
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zswarm.errors import UserError
from zswarm.simulation import mutants_broker, mutants_trainer, mutants_worker
from zswarm.simulation.surgery import Mutant

MUTANTS: dict[str, Mutant] = mutants_worker.MUTANTS | mutants_broker.MUTANTS | mutants_trainer.MUTANTS


@contextlib.contextmanager
def in_force(name: str | None) -> Iterator[None]:
    """Break the rule of that name inside the block; nothing with None.

    Raises:
        UserError: there is no such mutant.

    """
    if name is not None and name not in MUTANTS:
        raise UserError(f"--mutant {name}: there is no such mutant; choose one of {', '.join(sorted(MUTANTS))}")
    with contextlib.ExitStack() as stack:
        for (cls, method), mutated in (MUTANTS[name].patches() if name is not None else {}).items():
            stack.callback(setattr, cls, method, cls.__dict__[method])
            setattr(cls, method, mutated)
        yield
