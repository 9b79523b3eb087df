"""The part of a symbolic compute thread that reduces: shares, sums and the result, as `stages.compute` makes them."""

from __future__ import annotations

from collections.abc import Iterable

from stages import tasks
from zswarm.ids import Round, Stage
from zswarm.messages import Load
from zswarm.simulation.symbols import Contribution, Part, Share, fingerprint, is_finite, load, square_norm
from zswarm.simulation.violation import Violation, require

PART_BYTES = 64


class Rounds:
    """Copies and results of the rounds of one stage. What belongs to two rounds at once is a Violation."""

    def __init__(self, stage: Stage, *, seed: int) -> None:
        self.assembled: dict[Round, tuple[Contribution, ...]] = {}
        """The result of the newest round, if it has one: there is room for one."""
        self._stage = stage
        self._seed = seed
        self._snapshots: dict[Round, Share] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._snapshots.clear()
        self.assembled.clear()

    def discard(self, round_: Round) -> None:
        """Forget a round."""
        self._snapshots.pop(round_, None)
        self.assembled.pop(round_, None)

    def _num_chunks(self, shard: int, num_shards: int) -> int:
        return 1 + (shard + num_shards + self._stage) % 3

    def _parts(self, round_: Round, shard: int, num_shards: int, shares: tuple[Share, ...]) -> tuple[Load, ...]:
        num_chunks = self._num_chunks(shard, num_shards)
        return tuple(
            load(Part(round_, shard, num_shards, chunk, num_chunks, shares), PART_BYTES) for chunk in range(num_chunks)
        )

    def snapshot(self, task: tasks.Snapshot, accumulated: Iterable[Contribution]) -> tasks.Snapshotted:
        """Copy the accumulator."""
        contributions = tuple(sorted(accumulated))
        share = Share(contributions, fingerprint(contributions))
        self._snapshots[task.round] = share
        shards = tuple(self._parts(task.round, shard, task.num_shards, (share,)) for shard in range(task.num_shards))
        return tasks.Snapshotted(round=task.round, shards=shards)

    def sum(self, task: tasks.Sum) -> tasks.Summed:
        """Add the participants' shares of one shard."""
        num_shards = len(task.contributions)
        shares: list[Share] = []
        for chunks in task.contributions:
            shares += self._check_parts(task.round, task.shard, num_shards, chunks)
        require(
            len(shares) == num_shards,
            "I1",
            f"{num_shards} participants send {len(shares)} shares of shard {task.shard}",
        )
        return tasks.Summed(
            round=task.round, shard=task.shard, chunks=self._parts(task.round, task.shard, num_shards, tuple(shares))
        )

    def assemble(self, task: tasks.Assemble) -> tasks.Assembled:
        """Put the summed shards together."""
        num_shards = len(task.shards)
        sums = [self._check_parts(task.round, shard, num_shards, chunks) for shard, chunks in enumerate(task.shards)]
        require(
            all(shares == sums[0] for shares in sums), "I3", f"the shards of round {task.round} are of different sums"
        )
        contributions = tuple(sorted(c for share in sums[0] for c in share.contributions))
        self.assembled = {task.round: contributions}
        finite = is_finite(self._seed, self._stage, contributions)
        return tasks.Assembled(
            round=task.round,
            digest=fingerprint([share.digest for share in sums[0]]),
            finite=finite,
            square_norm=square_norm(self._stage, contributions) if finite else 0.0,
        )

    def _check_parts(self, round_: Round, shard: int, num_shards: int, chunks: tuple[Load, ...]) -> tuple[Share, ...]:
        """Return the shares that the chunks of one shard hold, after checking that they belong together."""
        parts = [chunk.frames[0] for chunk in chunks]
        expected = self._num_chunks(shard, num_shards)
        if len(parts) != expected or not all(
            isinstance(part, Part)
            and part[:5] == (round_, shard, num_shards, place, expected)
            and part.shares == parts[0].shares
            for place, part in enumerate(parts)
        ):
            text = f"shard {shard} of {num_shards} of round {round_} was put together from {parts}"
            raise Violation("I3", text)
        shares: tuple[Share, ...] = parts[0].shares
        return shares
