"""What the agent model is asked for, and how its answers are read.

Every request has a form, and an answer that can not be read is a normal event: it is asked for once more, then there is
none and the failure is counted.  What comes back is a suggestion; the caller keeps what it had where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cuelight.conversation.state import SLOTS, State, Version, shown_values
from cuelight.tasks.parts import Parts, compose, items, literal, prompt_defect, read_parts

if TYPE_CHECKING:
    from cuelight.lm import LM

__all__ = ["Writer", "answers_of", "count", "own_line", "own_parts", "own_prompt", "uncovered", "usable"]

T = TypeVar("T")

CHECKLIST = ("clarity", "completeness", "format", "fields")

_PARENT = "You help a designer to write a prompt for a language model. Be brief and concrete, and keep to the form asked."
_FORM = (
    "Answer in this form:\nInstruction: <role and task, one or two sentences>\nActions:\n- <what to do with the input>\n"
    "- <what to answer with>\nFacts:\n- <what is always so>"
)
_ITEM = re.compile(rf"^\W*({'|'.join(CHECKLIST)})\b[^\d\n]*([1-5])\b", re.IGNORECASE | re.MULTILINE)
_STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        "and are for from has have its not only our that the their them they this use used what who will with you",
    )
)


class Writer:
    """The agent model behind its requests.

    Args:
        lm: the model.  Its calls and failures are counted in the state.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    # ---- step 1: engage --------------------------------------------------------------------------------

    def quotes(self, state: State, answer: str) -> dict[str, str]:
        """Other slots that the first answer fills: only words that stand in it count, whatever the model claims."""
        if len(answer.split()) < 8:
            return {}
        others = [slot for slot in SLOTS if slot != "goals"]
        form = "\n".join(f"{slot}: <words from the text, or none>" for slot in others)
        request = (
            f"Text: {answer}\n\nWhat does the text say about the {', '.join(others)}? Copy the exact words from the "
            f"text, change nothing, and write none where it says nothing. Answer in this form:\n{form}"
        )

        def read(text: str) -> dict[str, str] | None:
            found = re.findall(rf"^\W*({'|'.join(others)})\W*:\s*(.+)$", text, re.IGNORECASE | re.MULTILINE)
            return {slot.lower(): quote.strip(" \"'<>*.") for slot, quote in found} or None

        said = " ".join(answer.lower().split())
        claimed = self._ask(state, "extract", request, read, temperature=0.0) or {}
        return {
            slot: quote
            for slot, quote in claimed.items()
            if len(quote.split()) > 1 and " ".join(quote.lower().split()) in said and quote != answer
        }

    def suggestions(self, state: State) -> list[str]:
        """Answers the designer could give to the question that is asked; the program's own if the model has none."""
        request = (
            f"{_brief(state)}\n\nQuestion to the designer: {state.question}\n"
            "Give three different short answers the designer could choose, one a line."
        )

        def read(text: str) -> list[str] | None:
            found = [line for line in items(text) if len(line) <= 120 and not line.endswith(":")]
            return found[:3] if len(found) > 1 else None

        return self._ask(state, "suggest", request, read) or list(SLOTS[state.slot].options)

    def question(self, state: State) -> str:
        """The question about the slot in the model's words, or the program's."""
        fixed = SLOTS[state.slot].question
        request = f"{_brief(state)}\n\nAsk the designer one short question about this, fitting what is known: {fixed}"

        def read(text: str) -> str | None:
            line = next((" ".join(s.split()) for s in text.splitlines() if s.strip()), "").strip("\"'")
            return line if line.endswith("?") and 3 < len(line.split()) < 40 else None

        return self._ask(state, "question", request, read) or fixed

    def inputs(self, state: State) -> list[str]:
        """Up to four inputs such as users could type, one of them unusual."""
        request = (
            f"{_brief(state)}\n\nWrite four different inputs that such a user could type, one a line, the last one "
            "unusual. Write the inputs only."
        )

        def read(text: str) -> list[str] | None:
            return [line.strip("\"'") for line in items(text) if not line.endswith(":")][:4] or None

        return self._ask(state, "invent", request, read) or []

    # ---- steps 2 and 5: draft and refine ---------------------------------------------------------------

    def draft(self, state: State) -> str | None:
        """A first prompt."""
        request = f"{_brief(state)}\n\nWrite a prompt that makes a language model do this. {_places(state)}\n{_FORM}"
        return self._written(state, "draft", request)

    def rewrite(self, state: State, best: Version) -> str | None:
        """A better prompt than ``best``, by its failed tests, its defects and the designer's last remarks."""
        figures = {n: best.scores.get(n, float(best.marks.get(n, True))) for n in best.outputs}
        failed = [
            f"Input: {shown_values(state.cases[n].values)}\nAnswered: {best.outputs[n][:200]}"
            + (f"\nWanted: {state.cases[n].wanted}" if state.cases[n].wanted is not None else "")
            for n in sorted(figures, key=lambda n: figures[n])
            if figures[n] < 1
        ]
        told = [f"The designer says: {remark}" for remark in state.remarks[-3:]]
        told += [f"Defect: {defect}" for defect in best.defects[:4]]
        parts = [
            f"{_brief(state)}\n\nThe prompt now:\n{best.text}",
            *(["Where it failed:\n" + "\n\n".join(failed[:3])] if failed else []),
            *(["\n".join(told)] if told else []),
            f"Write a better prompt. Do not copy the inputs above. {_places(state)}\n{_FORM}",
        ]
        return self._written(state, "rewrite", "\n\n".join(parts))

    def _written(self, state: State, task: str, request: str) -> str | None:
        """A prompt that can be used; where the model leaves a part out, the brief's own words stand there."""
        own = own_parts(state)

        def read(text: str) -> tuple[str, str] | None:
            parts = read_parts(text)
            if parts is None or _echoes(parts.instruction, request):
                return None
            whole = Parts(parts.instruction, parts.actions or own.actions, parts.facts or own.facts)
            prompt = compose(whole, state.config.fields, _examples(state))
            return prompt, usable(state, prompt)

        found = self._ask(state, task, request, read)
        if found is not None and found[1]:
            mend = f"{request}\n\nYour last prompt can not be used: {found[1]}. Mend it."
            found = self._ask(state, "repair", mend, read, tries=1)
        if found is None or found[1]:
            count(state.failures, f"{task} not usable")
            return None
        return found[0]

    # ---- step 3: criticise -----------------------------------------------------------------------------

    def criticism(self, state: State, version: Version) -> tuple[dict[str, int], list[str]]:
        """Figures from 1 to 5 on the checklist and defects; both empty if the model gave none."""
        request = (
            f"{_brief(state)}\n\nThe prompt:\n{version.text}\n\nScore it from 1 to 5 and list its defects. Answer in this "
            "form:\nclarity: <1-5>\ncompleteness: <1-5>\nformat: <1-5>\nfields: <1-5>\nDefects:\n- <defect, or none>"
        )

        def read(text: str) -> tuple[dict[str, int], list[str]] | None:
            figures = {name.lower(): int(figure) for name, figure in _ITEM.findall(text)}
            _, *listed = re.split(r"^\W*defects?\W*:", text, flags=re.IGNORECASE | re.MULTILINE)
            defects = [line for line in items("\n".join(listed)) if not re.match(r"\W*no(ne)?\b", line, re.I)]
            return (figures, defects[:4]) if figures else None

        return self._ask(state, "criticise", request, read, temperature=0.0) or ({}, [])

    def _ask(
        self,
        state: State,
        task: str,
        request: str,
        read: Callable[[str], T | None],
        *,
        temperature: float | None = None,
        tries: int = 2,
    ) -> T | None:
        """What ``read`` makes of the model's answer; None, and failures counted, if it can read none."""
        warm = state.config.temperature if temperature is None else temperature
        messages = [{"role": "system", "content": _PARENT}, {"role": "user", "content": request}]
        for attempt in range(tries):
            draw = state.calls.get(task, 0)
            count(state.calls, task)
            answer = answers_of(
                self.lm,
                [messages],
                max_tokens=state.config.writing_tokens,
                temperature=max(warm, 0.7) if attempt else warm,  # the same answer again would be of no use
                seed=state.config.seed,
                draw=draw,
            )[0]
            found = read(answer)
            if found is not None:
                return found
            count(state.failures, task)
        return None


def answers_of(model: LM, talks: Sequence[Sequence[Mapping[str, str]]], **how: Any) -> list[str]:
    """Answers to conversations, all asked at once; a model that takes none goes on from their text."""
    if model.can_chat:
        found = model.chat(talks, **how)
    else:
        texts = ["\n\n".join(turn["content"] for turn in talk) for talk in talks]
        found = model.complete(texts, stop=("\n\n\n",), **how)
    return [completion.text.strip() for completion in found]


def count(counts: dict[str, int], name: str, by: int = 1) -> None:
    """Add to one of the state's counts."""
    counts[name] = counts.get(name, 0) + by


# ---- the designer's own words ------------------------------------------------------------------------------------


def own_line(state: State) -> str:
    """The goal as a prompt."""
    return compose(Parts(literal(state.brief["goals"])), state.config.fields).removeprefix("Instruction: ")


def own_parts(state: State) -> Parts:
    """The brief in the four parts."""
    said = {slot: literal(text) for slot, text in state.brief.items() if text}
    facts = [f"{SLOTS[slot].title}: {said[slot]}" for slot in ("users", "data", "context") if slot in said]
    return Parts(said["goals"], (said["output"],) if "output" in said else (), tuple(facts))


def own_prompt(state: State) -> str:
    """The brief in the four parts as a prompt, without facts or examples where they make it too long."""
    parts, fields = own_parts(state), state.config.fields
    for part, examples in ((parts, _examples(state)), (parts, []), (Parts(parts.instruction), [])):
        prompt = compose(part, fields, examples)
        if len(prompt) <= state.config.longest:
            break
    return prompt


def _examples(state: State) -> list[tuple[dict[str, str], str]]:
    """Examples for a prompt, as long as they take no more than a third of it."""
    kept, room = [], state.config.longest // 3
    for case in state.cases:
        if case.use == "show" and case.wanted is not None:
            room -= sum(len(value) for value in case.values.values()) + len(case.wanted)
            if room >= 0:
                kept.append((case.values, case.wanted))
    return kept


# ---- what prompts must and should hold -----------------------------------------------------------------------------


def usable(state: State, prompt: str) -> str:
    """What keeps a prompt from being used, empty if nothing does: tests, and whole sentences wanted there, are hidden."""
    unseen = [case for case in state.cases if case.use != "show"]
    hidden = [value for case in unseen for value in case.values.values()]
    hidden += [case.wanted for case in unseen if case.wanted is not None and len(case.wanted.split()) > 3]
    return prompt_defect(prompt, state.config.fields, longest=state.config.longest, hidden=hidden)


def uncovered(state: State, prompt: str) -> list[str]:
    """Slots of which no telling word stands in the prompt."""
    words = set(_words(prompt))
    return [
        f"it says nothing of the {SLOTS[slot].title.lower()}: {said[:80]}"
        for slot, said in state.brief.items()
        if slot != "goals" and (own := set(_words(said))) and not own & words
    ]


def _echoes(instruction: str, request: str) -> bool:
    """Whether a sentence of the instruction is one of what the model was told to do: small models repeat it."""
    order = request.split("Write a ", 1)[-1]
    told = {" ".join(_words(part)) for part in re.split(r"[.:\n]+", order)}
    return any(
        len(words := _words(part)) > 2 and " ".join(words) in told for part in re.split(r"[.:]+", instruction)
    )


def _words(text: str) -> list[str]:
    """The telling words of a text."""
    return [w for w in re.findall(r"[^\W_]+", text.lower()) if len(w) > 2 and w not in _STOPWORDS]


def _brief(state: State) -> str:
    said = [f"{SLOTS[slot].title}: {text}" for slot, text in state.brief.items() if text]
    return "What the designer wants:\n" + ("\n".join(said) or "not known yet")


def _places(state: State) -> str:
    names = " and ".join(f"{{{name}}}" for name in state.config.fields)
    return f"Do not write the input itself: {names} is put behind what you write."
