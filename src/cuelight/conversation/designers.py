"""Designers that are programs: who answers what `Promptor` asks when no person does."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cuelight.conversation.state import SLOTS, Case, Turn, Verdict, load_cases
from cuelight.errors import ConfigError, nearest

if TYPE_CHECKING:
    from cuelight.conversation.promptor import Promptor

__all__ = ["Answers", "Designer", "Reply"]

Reply = str | Sequence[Case | Mapping[str, Any]] | Verdict
"""Text, examples, or a verdict."""


class Designer(Protocol):
    """Who answers."""

    def __call__(self, turn: Turn, agent: Promptor) -> Reply:
        """The reply to what is asked."""
        ...


class Answers:
    """A designer who answers from a list: slots by name, examples, remarks for the rounds, and when to accept.

    Args:
        answers: ``goals`` and other slots (left open where not given), ``examples`` (rows with the fields and
            ``wanted``, or a file), ``remarks`` (said in turn, after each round), ``accept`` (the least score to accept;
            1 by default); or a ``.toml`` or ``.json`` file with these.

    Raises:
        ConfigError: no goal, an unknown name, or a file that can not be read.
    """

    def __init__(self, answers: Mapping[str, Any] | str | Path) -> None:
        place = Path()
        if isinstance(answers, str | Path):
            place, answers = Path(answers).parent, _read(Path(answers))
        known = (*SLOTS, "examples", "remarks", "accept")
        for name in answers:
            if name not in known:
                raise ConfigError(
                    f"answers: '{name}' is unknown{nearest(name, known)}; there are {', '.join(known)}"
                )
        if not str(answers.get("goals") or "").strip():
            raise ConfigError("answers: 'goals' is missing; say what the prompt is for")
        self.slots = {slot: str(answers.get(slot) or "").strip() for slot in SLOTS}
        self.examples: Any = answers.get("examples") or []
        if isinstance(self.examples, str):
            self.examples = place / self.examples
        remarks = answers.get("remarks") or []
        self.remarks = [remarks] if isinstance(remarks, str) else [str(r) for r in remarks]
        try:
            self.accept = float(answers.get("accept", 1.0))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"answers: accept is {answers['accept']!r}; give a score between 0 and 1"
            ) from error

    def __call__(self, turn: Turn, agent: Promptor) -> Reply:
        if turn.kind == "answer":
            return self.slots[turn.slot] or "skip"
        if turn.kind == "examples":
            if isinstance(self.examples, Path):
                return load_cases(self.examples, agent.config.fields)
            return list(self.examples) or "none"
        said = len(agent.state.remarks)
        if said < len(self.remarks) and agent.state.round < agent.state.rounds_allowed:
            return Verdict(remarks=self.remarks[said])
        score = agent.best.score if agent.best else None
        return Verdict(accept=score is None or score >= self.accept)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(
            f"answers: {path} can not be read ({reason}); give a .toml or .json file"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"answers: {path} holds a {type(found).__name__}; give names with values, as goals = '...'"
        )
    return found
