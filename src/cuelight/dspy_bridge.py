"""For users of DSPy: our searches as an optimiser of theirs, and our prompts as programs of theirs.

    from cuelight.dspy_bridge import Optimiser
    better = Optimiser(metric=my_metric, lm="http://127.0.0.1:8000/v1#writer").compile(student, trainset=..., valset=...)

    from cuelight.dspy_bridge import Program
    program = Program("prompt.json"); program(text="...").answer       # the exported string, byte for byte

The optimiser changes instructions only.  It returns the best that was seen, never the last: of the few that did best on
``trainset`` the one that does best on ``valset``, the student's own instruction among them, which wins a tie.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cuelight.errors import ArtifactError, ConfigError
from cuelight.searching import Found, search, searchers
from cuelight.text_export import TextPrompt, text_prompt

try:
    import dspy
    from dspy.teleprompt import Teleprompter
except ImportError as error:
    raise ConfigError("dspy: is not installed; pip install dspy") from error

__all__ = ["Optimiser", "Program", "instructions", "messages"]


class Optimiser(Teleprompter):
    """Finds better instructions for a DSPy program.

    Args:
        metric: as everywhere in DSPy: ``metric(example, prediction, trace=None)``, higher is better.
        method: a search of `cuelight.search`: ``llm-bbo`` (``lm`` writes), ``promptquine`` (prunes the instruction).
        lm: for ``llm-bbo``, the model that writes, as for `cuelight.lm.connect`.
        pool: more instructions to start from.
        choose_among: how many of the best on ``trainset`` are compared on ``valset``.
        num_threads, max_errors: as for ``dspy.Evaluate``.
        seed: decides every draw; 0 is a seed like any other.
        options: of the method, and budgets of the writing model, as for `cuelight.search`.
    """

    def __init__(
        self,
        metric: Callable[..., Any],
        *,
        method: str = "llm-bbo",
        lm: Any = None,
        pool: Sequence[str] = (),
        choose_among: int = 5,
        num_threads: int | None = None,
        max_errors: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if method not in searchers():
            raise ConfigError(f"method: '{method}' is no search; there are {', '.join(searchers())}")
        if method == "llm-bbo" and lm is None:
            raise ConfigError("lm: llm-bbo needs a model that writes; give lm, or method='promptquine'")
        if choose_among < 1:
            raise ConfigError(f"choose_among: is {choose_among}; give 1 or more")
        self.metric, self.method, self.lm, self.pool = metric, method, lm, tuple(pool)
        self.choose_among, self.seed, self.options = choose_among, seed, options
        self.evaluation = {"metric": metric, "num_threads": num_threads, "max_errors": max_errors}

    def compile(
        self,
        student: Any,
        *,
        trainset: list[Any],
        teacher: Any = None,
        valset: list[Any] | None = None,
        **more: Any,
    ) -> Any:
        """A copy of ``student`` with the best instructions found.

        Args:
            student: a program; it stays as it is.
            trainset: examples that instructions are scored on.
            valset: examples that the last choice is made on; without it, it is made on ``trainset``.
            teacher: not used.

        Returns:
            The copy.  Its ``cuelight`` says what came of each predictor: the instruction before and after, their scores
            (0 to 1), what was scored, and what it cost.
        """
        if more:
            raise ConfigError(
                f"{next(iter(more))}: no such argument of compile; there are trainset, valset, teacher"
            )
        if not trainset:
            raise ConfigError("trainset: is empty; give examples to score instructions on")
        program, record = student.deepcopy(), {}
        for name, predictor in program.named_predictors():
            record[name] = self._improved(program, predictor, trainset, valset or trainset)
        program.cuelight = record
        return program

    def _improved(
        self, program: Any, predictor: Any, trainset: list[Any], valset: list[Any]
    ) -> dict[str, Any]:
        """Give ``predictor`` of ``program`` the best instruction found."""
        own = predictor.signature.instructions

        def score(instruction: str, examples: list[Any]) -> float:
            predictor.signature = predictor.signature.with_instructions(instruction)
            done = dspy.Evaluate(devset=examples, **self.evaluation)(program)
            return float(getattr(done, "score", done)) / 100

        try:
            found: Found = search(
                self.method,
                lambda instruction: score(instruction, trainset),
                prompt=own,
                pool=(own, *self.pool),
                fields=(),
                lm=self.lm,
                seed=self.seed,
                **self.options,
            )
            known = {trial.prompt: trial.score for trial in found.history}
            if own not in known:
                known[own] = score(own, trainset)
            best = sorted((p for p in known if p != own), key=lambda p: -known[p])[: self.choose_among]
            again = {p: known[p] if valset is trainset else score(p, valset) for p in [own, *best]}
            chosen = max(again, key=lambda p: again[p])  # the first of equals, and that is its own
        except BaseException:
            predictor.signature = predictor.signature.with_instructions(own)
            raise
        predictor.signature = predictor.signature.with_instructions(chosen)
        return {
            "before": {"instruction": own, "trainset": known[own], "valset": again[own]},
            "after": {"instruction": chosen, "trainset": known[chosen], "valset": again[chosen]},
            "scored": {p: known[p] for p in known},
            "spent": found.spent,
            "ended_by": found.ended_by,
        }


class Program(dspy.Module):
    """A text prompt as a DSPy program: it sends the string itself, past DSPy's adapters, and returns the answer.

    ``dspy.Module.save`` and ``load`` keep the string.

    Args:
        source: as for `cuelight.text_prompt`, or a file that `TextPrompt.save` wrote as ``dspy``.
        options: for every call of the model (``temperature``, ``max_tokens``...).
    """

    def __init__(self, source: Any = None, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.prompt: TextPrompt | None = None
        if (
            isinstance(source, str | os.PathLike)
            and Path(source).suffix == ".json"
            and Path(source).is_file()
        ):
            self.load_state(json.loads(Path(source).read_text(encoding="utf-8")))
        elif source is not None:
            self.prompt = text_prompt(source)

    def forward(self, **row: Any) -> Any:
        """Answer a row: keyword arguments are the prompt's fields.

        Returns:
            A prediction with ``answer``, the text, and ``sent``, the string that was sent.
        """
        if self.prompt is None:
            raise ConfigError("prompt: there is none yet; give one to Program, or load a saved one")
        text, model = self.prompt.sent(row), getattr(self, "lm", None) or dspy.settings.lm
        if model is None:
            raise ConfigError("lm: DSPy has no model yet; call dspy.configure(lm=...)")
        said = model(text, **self.options)[0]
        return dspy.Prediction(answer=said if isinstance(said, str) else said["text"], sent=text)

    def dump_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The prompt as data."""
        return {} if self.prompt is None else self.prompt.state()

    def load_state(self, state: dict[str, Any], *_: Any, **__: Any) -> None:
        """Take a prompt that was saved.

        Raises:
            ArtifactError: it is not one.
        """
        try:
            self.prompt = TextPrompt(state["template"], tuple(state["fields"]), bool(state["chat"]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                "program: is not one that cuelight exported; give a file of form dspy"
            ) from error


def instructions(program: Any) -> dict[str, str]:
    """The instruction of every predictor of a DSPy program."""
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}


def messages(program: Any, predictor: str | None = None, **row: Any) -> list[dict[str, Any]]:
    """What a DSPy program sends for ``row``, as messages in OpenAI's form, to be used outside DSPy.

    Args:
        predictor: which of its predictors; the first without a name.
    """
    known = dict(program.named_predictors())
    name = next(iter(known)) if predictor is None else predictor
    if name not in known:
        raise ConfigError(f"predictor: '{name}' is unknown; there are {', '.join(known)}")
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    found: list[dict[str, Any]] = adapter.format(known[name].signature, known[name].demos, row)
    return found
