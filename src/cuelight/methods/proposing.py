"""The loop of LLM-BBO: a language model is shown good and bad strings, writes new ones, and these are scored.

Two methods have it: `llm-bbo` for class templates of vision-language models, `llm-bbo-text` for instructions of language
models; `cuelight.search` runs it for any score.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.lm import LM, Meter, connect
from cuelight.methods.base import MethodConfig
from cuelight.methods.searching import SelectionConfig, SpendingConfig, Start
from cuelight.tasks.objective import Objective

__all__ = ["Climb", "ClimbConfig", "ProposingConfig", "calls", "climb", "parsed", "read_pool", "writer"]

_TOO_LONG = 4
"""Times what was asked for: a proposal with more words than that is no template."""
_FIELD = re.compile(r"\{\w*\}")


class ClimbConfig(MethodConfig):
    start_size: int = Field(80, ge=1, description="Prompts of the pool that are scored at the start.")
    shown: int = Field(3, ge=0, description="Good prompts that are shown, and as many bad ones.")
    feedback: Literal["good-bad", "good", "none", "shuffled"] = Field(
        "good-bad", description="What the writing model sees; none and shuffled scores are controls."
    )
    steps_of_search: int = Field(10, ge=1, description="Times the writing model is asked after each reset.")
    proposals: int = Field(1, ge=1, description="Prompts it is asked for at a time.")
    form: Literal["lists", "conversation", "paraphrase"] = Field(
        "lists",
        description="Two lists in one message; a conversation that tells what each proposal scored; or paraphrases of the "
        "best.",
    )
    restarts: int = Field(1, ge=1, description="How often the search begins with another draw of the pool.")
    resets: int = Field(
        1, ge=1, description="How often in a restart the pool falls back to what it began with."
    )
    most_words: int = Field(15, ge=1, description="Longest proposal that is asked for, in words.")
    retries: int = Field(15, ge=0, description="How often a reply that can not be used is asked for again.")
    temperature: float = Field(1.0, ge=0, description="Of the writing model.")


class ProposingConfig(SpendingConfig, SelectionConfig, ClimbConfig):
    """The loop on a task."""

    lm: str | None = Field(
        None,
        description="Model that writes: a name, folder, or URL#model (default: a language backbone itself).",
    )
    pool: str | None = Field(
        None, description="File with a string a line to start from (default: the method's own)."
    )
    best: float = Field(
        5, gt=0, description="What is ranked again: a share of all that was scored (below 1), or a number."
    )


def climb(objective: Objective, start: Start, config: Any) -> str:
    """All of the search, restarts included; returns the first of the best.

    Raises:
        ConfigError: no pool or no model that writes.
    """
    if not start.pool:
        raise ConfigError("pool: llm-bbo needs strings to begin with; give some (pool=[...], --pool FILE)")
    if start.model is None:
        raise ConfigError("lm: llm-bbo needs a model that writes; give one (lm=..., --lm)")
    loop = Climb(objective, start.model, config, start)
    for _ in range(config.restarts):
        loop.restart()
    return objective.best.prompt


def writer(config: ProposingConfig, meter: Meter) -> LM:
    """The model that ``config.lm`` names, counted by ``meter``."""
    return connect(
        config.lm,
        meter=meter,
        cache=config.cache,
        ledger=config.ledger,
        concurrency=config.concurrency,
        prices=config.prices,
    )


def calls(config: ProposingConfig, pool: int) -> tuple[int, int]:
    """How many strings are scored at most, and how often the model that writes is asked if it keeps the form."""
    steps = config.restarts * config.resets * config.steps_of_search
    return config.restarts * min(config.start_size, pool) + steps * config.proposals, steps


class Climb:
    """The loop, and what it keeps: how many replies it asked for, and how many steps came to nothing.

    Attributes:
        wanted: fields in braces that every prompt must have, those all of the pool have.
        asked: replies the writing model gave.
        skipped: steps whose replies all failed to parse.
    """

    def __init__(self, objective: Objective, model: LM, config: ClimbConfig, start: Start) -> None:
        self.objective, self.model, self.config, self.seed = objective, model, config, start.seed
        self.pool = tuple(dict.fromkeys(start.pool))
        self.generator = np.random.default_rng(start.seed)
        self.wanted = set.intersection(*(set(_FIELD.findall(prompt)) for prompt in self.pool))
        self.asked = self.skipped = 0

    def restart(self) -> None:
        """Draw a start, and climb from it."""
        size = min(self.config.start_size, len(self.pool))
        places = self.generator.choice(len(self.pool), size=size, replace=False)
        drawn = [self.pool[int(k)] for k in places]
        known = dict(zip(drawn, self.objective(drawn), strict=True))
        begun = dict(known)
        for _ in range(self.config.resets):
            working = dict(begun)
            self.iterate(working)
            known |= working

    def iterate(self, scored: dict[str, float]) -> None:
        """Ask for proposals step after step; those that are new are scored and join ``scored``."""
        talk: list[dict[str, str]] = []
        for _ in range(self.config.steps_of_search):
            if not talk or self.config.form != "conversation":
                talk = [{"role": "user", "content": self.question(scored)}]
            reply, found = self.proposals(talk)
            if found is None:
                self.skipped += 1
                continue
            new = [prompt for prompt in dict.fromkeys(found) if prompt not in scored]
            best = max(scored.values())
            scored |= dict(zip(new, self.objective(new), strict=True))
            if self.config.form == "conversation":
                told = "\n".join(_verdict(p, scored[p], best) for p in dict.fromkeys(found))
                more = f"{told}\n{self.wish()}"
                talk = [
                    *talk,
                    {"role": "assistant", "content": reply},
                    {"role": "user", "content": more},
                ]

    def lists(self, scored: dict[str, float]) -> tuple[list[str], list[str]]:
        """What is shown as good and as bad: the best and the worst, of equals the earlier first."""
        config, values = self.config, list(scored.values())
        if config.feedback == "shuffled":
            values = [values[int(k)] for k in self.generator.permutation(len(values))]
        ranked = [p for p, _ in sorted(zip(scored, values, strict=True), key=lambda entry: -entry[1])]
        good = [] if config.feedback == "none" else ranked[: config.shown]
        bad = ranked[len(good) :][-config.shown :] if config.shown else []
        return good, bad if config.feedback in ("good-bad", "shuffled") else []

    def question(self, scored: dict[str, float]) -> str:
        """What the writing model is asked."""
        good, bad = self.lists(scored)
        if self.config.form == "paraphrase":
            return f"Here is a prompt:\n- {max(scored, key=scored.__getitem__)}\n\nSay the same in other words. {self.wish()}"
        parts = []
        if good:
            parts.append("These prompts work well:\n" + "\n".join(f"- {prompt}" for prompt in good))
        if bad:
            parts.append("These prompts work badly:\n" + "\n".join(f"- {prompt}" for prompt in bad))
        if good and bad:
            parts.append("Find out what the good ones have that the bad ones lack.")
        return "\n\n".join([*parts, self.wish()])

    def wish(self) -> str:
        """The form of the answer."""
        count = self.config.proposals
        keep = " and ".join(sorted(self.wanted))
        return (
            f"Write {'a new prompt' if count == 1 else f'{count} new prompts'} that should work even better, in the same "
            f"style, each of less than {self.config.most_words} words"
            + (f" and with {keep} in it" if keep else "")
            + '. Answer with nothing else, each prompt on a line of its own that begins with "- ".'
        )

    def proposals(self, talk: Sequence[dict[str, str]]) -> tuple[str, list[str] | None]:
        """A reply and the prompts in it; None when no reply could be used."""
        room = 16 + 4 * self.config.most_words * self.config.proposals
        for _ in range(self.config.retries + 1):
            options: dict[str, Any] = {
                "max_tokens": room,
                "temperature": self.config.temperature,
                "seed": self.seed,
                "draw": self.asked,
            }
            self.asked += 1
            if self.model.can_chat:
                reply = self.model.chat(list(talk), **options).text
            else:  # a model without a chat format goes on with the list
                said = "\n\n".join(turn["content"] for turn in talk) + "\n\n- "
                reply = "- " + self.model.complete(said, stop=("\n",), **options).text
            found = parsed(reply, self.wanted)
            if found and max(len(prompt.split()) for prompt in found) <= _TOO_LONG * self.config.most_words:
                return reply, found[: self.config.proposals]
            if self.config.temperature == 0:
                break  # it would say the same again
        return "", None


def parsed(reply: str, wanted: set[str]) -> list[str] | None:
    """The prompts of a reply, its lines that begin with "- "; None if there are none, or one has not the fields wanted."""
    lines = [line.strip()[2:].strip() for line in reply.splitlines() if line.strip().startswith("- ")]
    found = [line.strip("\"'`").strip() if line[:1] in "\"'`" else line for line in lines]
    found = [line for line in found if line]
    if not found or any(sorted(_FIELD.findall(line)) != sorted(wanted) for line in found):
        return None
    return found


def read_pool(file: str) -> tuple[str, ...]:
    """The lines of ``file`` that are not empty.

    Raises:
        ConfigError: it can not be read, or has none.
    """
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(
            f"pool: {file} can not be read ({reason}); give a text file, a prompt a line"
        ) from error
    found = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise ConfigError(f"pool: {file} is empty; give a prompt a line")
    return found


def _verdict(prompt: str, score: float, best: float) -> str:
    change = "improves to" if score > best else "drops to" if score < best else "stays at"
    return f'"{prompt}": {change} {score:.3g}.'
