"""What the rules say: about what they rewrote, and why they left something alone."""

from __future__ import annotations

from dataclasses import dataclass


class Refusal(Exception):
    """Why a rule leaves a node alone: one sentence."""


@dataclass(frozen=True)
class Note:
    """One rule's word about one node: what it became, or why it was left alone."""

    rule: str
    node: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.node}: {self.sentence}"
