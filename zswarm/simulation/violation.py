"""What the simulator raises when a promise of the protocol is broken."""

from __future__ import annotations


class Violation(Exception):
    """A machine broke an invariant: `rule` is its short name (protocol, section B), the text says how."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text

    def __reduce__(self) -> tuple[type[Violation], tuple[str, str]]:
        """Let it go from one process to another."""
        return Violation, (self.rule, self.text)


def require(condition: object, rule: str, text: str) -> None:
    """Raise Violation unless `condition` holds."""
    if not condition:
        raise Violation(rule, text)
