"""Two processes that go by the same name, each of which ends the other's life for ever: a cloned disk, or one name given
twice.

    A registers --> B registers: a new life of the node, A is fenced --> A registers as a new life: B is fenced --> ...

That B comes is what a process looks like that was killed and started again. That A comes back, which B has ended,
shows that both live: one comeback may be a process that was frozen while its supervisor started another one, several
within a minute are a feud that nobody can win. Then both are refused, with both addresses, for as long as it takes that
both have heard it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from zswarm import limits
from zswarm.ids import NodeId


@dataclass(slots=True)
class _Feud:
    """One name."""

    comebacks_at_s: deque[float] = field(default_factory=lambda: deque(maxlen=limits.MAX_COMEBACKS + 1))
    refused_until_s: float = float("-inf")
    text: str = ""


class Feuds:
    """See the module. Names are remembered by their last comeback, MAX_ENDED_NODES of them."""

    def __init__(self) -> None:
        self._feuds: dict[NodeId, _Feud] = {}

    def came_back(self, node: NodeId, places: tuple[str, str], now: float) -> str:
        """Note that a life which another one of its name had ended is there again, and ends that one now.

        Return why the name is refused from here on, which names the `places` of both; nothing as long as it is not.
        """
        feud = self._feuds.pop(node, None) or _Feud()
        self._feuds[node] = feud
        if len(self._feuds) > limits.MAX_ENDED_NODES:
            del self._feuds[next(iter(self._feuds))]
        comebacks = feud.comebacks_at_s
        comebacks.append(now)
        if len(comebacks) <= limits.MAX_COMEBACKS or now - comebacks[0] > limits.FEUD_S:
            return ""
        feud.refused_until_s = now + limits.FEUD_S
        feud.text = (
            f"two processes call themselves {node}, at {places[0]} and at {places[1]}, and end each other: a cloned disk, "
            f"or one --name given twice; end one of them, or give each a --name of its own, and start again after "
            f"{limits.FEUD_S:.0f} s"
        )
        return feud.text

    def refusal(self, node: NodeId, now: float) -> str:
        """Return why nobody of this name is let in now; nothing if that is not so."""
        feud = self._feuds.get(node)
        return feud.text if feud is not None and now < feud.refused_until_s else ""
