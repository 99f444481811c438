"""What a search of prompts asks: a score of a string, counted, remembered and shown while it grows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuelight.errors import ConfigError
from cuelight.progress import Bar

__all__ = ["Objective", "Trial"]

Function = Callable[[Sequence[str], float | None], Iterable[float]]
"""Scores of prompts in their order; of a prompt that can not reach the floor a part of its rows is enough."""


@dataclass(frozen=True)
class Trial:
    """A prompt and its score; ``number`` counts what was scored, from 0."""

    number: int
    prompt: str
    score: float


class Objective:
    """Scores prompts; a prompt that was scored before costs nothing.

    Args:
        function: takes prompts and a floor (None: no floor), returns or yields their scores.
        progress: name of a bar; None shows none.
        most: how many prompts the search will score at most, for the bar.
        file: where every score is written down when it is known, a line of JSON each; what it holds is not asked again.

    Attributes:
        history: everything that was scored, in order.
    """

    def __init__(
        self,
        function: Function,
        *,
        progress: str | None = None,
        most: int | None = None,
        file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.function = function
        self.file = None if file is None else Path(file).expanduser()
        self._before = {} if self.file is None else _read(self.file)
        self.history: list[Trial] = []
        self._known: dict[str, float] = {}
        self._bar = Bar(progress, most)

    def __call__(self, prompts: Sequence[str], floor: float | None = None) -> list[float]:
        """Scores of ``prompts``.

        Raises:
            ConfigError: the function gave what is no number, or too few of them.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        asked = [prompt for prompt in new if prompt not in self._before]
        scores = iter(self.function(asked, floor) if asked else ())
        for prompt in new:
            score = self._before[prompt] if prompt in self._before else next(scores, None)
            if score is None or isinstance(score, str) or not math.isfinite(score):
                raise ConfigError(f"objective: gave {score!r} for {prompt[:60]!r}; return a finite number")
            self._known[prompt] = float(score)
            self.history.append(Trial(len(self.history), prompt, float(score)))
            if self.file is not None and prompt not in self._before:
                with self.file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"prompt": prompt, "score": float(score)}) + "\n")
            self._bar.advance(f"best {self.best.score:.4g}")
        return [self._known[prompt] for prompt in prompts]

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._known

    def __len__(self) -> int:
        return len(self.history)

    @property
    def best(self) -> Trial:
        """The first trial with the highest score."""
        return max(self.history, key=lambda trial: trial.score)

    def close(self) -> None:
        """Take the bar off the terminal."""
        self._bar.close()


def _read(file: Path) -> dict[str, float]:
    """Scores that were written down; a last line that was cut off by a kill is dropped.

    Raises:
        ConfigError: the file can not be read or written, or holds something else.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole, encoding="utf-8")
        entries = [json.loads(line) for line in whole.splitlines()]
        return {str(entry["prompt"]): float(entry["score"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it holds other things than scores"
        raise ConfigError(f"history: {file} can not be used ({reason}); give another file") from error
