"""Promptor: an agent that asks what a prompt is for, writes it, tests it on the target model, and keeps the best.

For designers who do not write prompts: six steps.  (1) *Engage*: the five slots of a brief (goals, users, data, context,
output) and examples are asked for.  (2) *Draft* a child prompt of four parts: instruction, actions, facts, examples, with
fields for what is typed.  (3) *Criticise* it against a checklist.  (4) *Test* it: the target model answers the designer's
examples.  (5) *Refine* by criticism, failed tests and the designer's remarks, then again from 3.  (6) *Finish*.

The program holds the conversation, so that it works with any model: slots are data, each is asked for until it is filled
or left open, and the agent model only adds suggestions, a draft, criticism and rewriting.  What it writes counts when it
can be read and holds its fields; otherwise it is asked once more, then the old value stays and the failure is counted.
Scores come from the target model's answers alone.  The version with the best score is returned, not the last one.

Learns: a string.  Costs: at most ``2 + max_questions + 2 * max_rounds`` calls of the agent model, one more for each answer
that has to be mended, and a call of the target model for every test and version; `Promptor.projected` says how many.

Source: Shen, Dudley, Zheng, Byrne, Kristensson, *Promptor: A Conversational and Autonomous Prompt Generation Agent for
Intelligent Text Entry Techniques*, arXiv 2310.08101.  No code was released; the slots, parts, steps and placeholders are
the paper's, all prompts, limits and defaults are ours.  Departures: the paper's agent is one long system prompt, which
only large models follow.  Ours: the designer's own words, as one line and put into the four parts, are versions that are
tested like the others; a rewrite starts from the best version; examples are divided into those that a prompt shows, those
that choose it, and those that are reported at the end; a prompt that holds a test input is refused.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cuelight.cache import atomic_write
from cuelight.config import build
from cuelight.conversation.designers import Answers, Designer, Reply
from cuelight.conversation.state import (
    LONGEST_ANSWER,
    SLOTS,
    Case,
    Line,
    PromptorConfig,
    State,
    Turn,
    Verdict,
    Version,
    best_version,
    check_fields,
    divide,
    left_open,
    load_state,
    make_case,
    no_examples,
    read_cases,
    shown_values,
    transcript,
)
from cuelight.conversation.writer import Writer, answers_of, count, own_line, own_prompt, uncovered, usable
from cuelight.errors import ConfigError, DataError
from cuelight.lm import LM, connect
from cuelight.tasks.answers import answer_scores
from cuelight.tasks.parts import fill

__all__ = ["Promptor", "promptor"]

STATE, PROMPT, TRANSCRIPT = "promptor.json", "prompt.txt", "transcript.md"
_FIXED = (
    *(
        "fields",
        "metric",
        "encoder",
        "shown",
        "tests",
        "report",
        "own_words",
        "target_temperature",
        "answer_tokens",
    ),
    "seed",
)
"""Options that scores depend on: they stay as a conversation began."""

_VAGUE = re.compile(
    r"\W*|(i )?(do ?n.?t|do not) (really )?know|not sure|no idea|idk|dunno|whatever|anything|suggest(ions?)?|help",
    re.IGNORECASE,
)
_ACCEPT = re.compile(r"accept(ed)?|ok(ay)?|yes|y|good|fine|done|perfect|great", re.IGNORECASE)
_AGAIN = re.compile(r"again|go on|continue|next|refine|improve|", re.IGNORECASE)
_USE = re.compile(r"use\s+(?:version\s+)?(\d+)", re.IGNORECASE)
_MARK = re.compile(r"(\d+)\s*[:=]?\s*(good|bad|right|wrong|\+|-)", re.IGNORECASE)


class Promptor:
    """A conversation that ends in a prompt.

    ``turn`` says what is asked, `reply` answers it; models are called within `reply` (and `run`, which goes on after an
    interrupt).  An error of a model leaves the state as it was before the step, so `run` tries again.

    Args:
        lm: the agent model, which suggests, writes and criticises: an `LM`, or what `cuelight.lm.connect` takes.
        target: the model the prompt is for, likewise; the agent model by default.
        output: folder for the state, the transcript and the best prompt so far; a conversation found there goes on.
        on_step: is told in a few words what is being done.
        options: fields of `PromptorConfig`.

    Raises:
        ConfigError: a wrong option, or one that contradicts the conversation in ``output``.
        ArtifactError: what is in ``output`` can not be read.
    """

    def __init__(
        self,
        lm: Any,
        target: Any = None,
        *,
        output: str | Path | None = None,
        on_step: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        self.lm: LM = connect(lm)
        self.target: LM = self.lm if target is None else connect(target, meter=self.lm.meter)
        self.writer = Writer(self.lm)
        self.folder = None if output is None else Path(output)
        self.on_step = on_step or (lambda text: None)
        found = load_state(self.folder / STATE) if self.folder else None
        if found is None:
            config = build(PromptorConfig, options)
            self.state = _opened(
                State(config=config, target=self.target.name, rounds_allowed=config.max_rounds)
            )
        else:
            self.state = self._joined(found, options)

    # ---- what users look at ----------------------------------------------------------------------------

    @property
    def config(self) -> PromptorConfig:
        """The options."""
        return self.state.config

    @property
    def turn(self) -> Turn:
        """What is asked of the designer now."""
        state = self.state
        if state.phase == "answer":
            return Turn(kind="answer", text=state.question, slot=state.slot, options=tuple(state.options))
        if state.phase == "examples":
            return Turn(kind="examples", text=_ask_for_examples(state))
        if state.phase == "done":
            return Turn(kind="done", text=_summary(state))
        return Turn(kind="verdict", text=_ask_for_verdict(state))

    @property
    def waiting(self) -> bool:
        """Whether the designer's reply is needed; if not, `run` goes on."""
        return self.state.phase in ("answer", "examples", "verdict", "done")

    @property
    def best(self) -> Version | None:
        """The version to use: the designer's choice, else the one with the best score.

        Of equal ones that which knew more of the designer's remarks, then the shorter, then the earlier.
        """
        number = best_version(self.state)
        return None if number is None else self.state.versions[number]

    @property
    def prompt(self) -> str:
        """The best prompt so far, with its fields; empty before there is one."""
        return self.best.text if self.best else ""

    def render(self, **values: str) -> str:
        """The string that the target model reads for these values of the fields.

        Raises:
            ConfigError: there is no prompt yet, or a field is missing or unknown.
        """
        if not self.prompt:
            raise ConfigError("prompt: there is none yet; answer what is asked first")
        check_fields(values, self.config.fields)
        return fill(self.prompt, values)

    def predict(self, rows: Sequence[str | Mapping[str, str]], *, prompt: str | None = None) -> list[str]:
        """The target model's answers with the best prompt, or with ``prompt``, in the order of the rows.

        A string is the value of the only field.
        """
        first = self.config.fields[0]
        values = [{first: row} if isinstance(row, str) else dict(row) for row in rows]
        for row in values:
            check_fields(row, self.config.fields)
        text = self.prompt if prompt is None else prompt
        if not text:
            raise ConfigError("prompt: there is none yet; answer what is asked first")
        return self._target(self.config, [fill(text, row) for row in values])

    def evaluate(self, cases: Sequence[Case | Mapping[str, Any]], *, prompt: str | None = None) -> float:
        """Mean score on cases with a wanted answer, by the conversation's metric.

        Raises:
            DataError: a case without a wanted answer.
        """
        rows = [make_case(case, self.config.fields) for case in cases]
        if not rows or any(row.wanted is None for row in rows):
            raise DataError("cases: each needs a wanted answer; give 'wanted'")
        answers = self.predict([row.values for row in rows], prompt=prompt)
        wanted = [str(row.wanted) for row in rows]
        return float(np.mean(answer_scores(self.state.metric, answers, wanted, encoder=self.config.encoder)))

    def projected(self) -> dict[str, int]:
        """The most calls still to come, of the agent and of the target model, beside answers that have to be mended."""
        state, config = self.state, self.config
        rounds = max(state.rounds_allowed - state.round, 0)
        known = [case.use for case in state.cases]
        tests = known.count("test") if known else config.tests
        report = known.count("report") if known else config.report
        if state.phase == "done":
            return {"agent": 0, "target": 0}
        if state.versions:
            untested = sum(tests - len(v.outputs) for v in state.versions)
            criticism = not state.versions[-1].criticised
            return {
                "agent": 2 * rounds + criticism,
                "target": untested + rounds * tests + 2 * report,
            }
        open_ = config.max_questions - state.asked if state.phase == "answer" else 0
        questions = open_ * (2 if config.wording == "model" else 1)
        written = 1 + 2 * config.own_words + rounds - 1
        agent = (not state.brief) + questions + (not known) + 1 + 2 * rounds - 1
        return {"agent": agent, "target": written * tests + 2 * report}

    # ---- the designer's side ---------------------------------------------------------------------------

    def reply(self, answer: Reply) -> Turn:
        """Answer what is asked; returns what is asked next.

        Text is understood everywhere.  For a question: the answer, the number of an option, ``?`` for suggestions,
        ``skip`` to leave it open.  For examples: lines ``typed => wanted`` (fields are separated by ``|``), or ``none``.
        For a verdict: ``accept``, ``again``, ``use 2``, ``1 bad``, more examples, ``goals: ...`` to change the brief, or
        any other remark.  Examples may also be given as `Case` or mappings, a verdict as `Verdict`.
        """
        if not self.waiting:
            self.run()
        with self._step() as state:
            if not isinstance(answer, str | Verdict):
                self._take_cases(state, answer)
            elif state.phase == "done":
                raise ConfigError("reply: the conversation is over; 'more' allows another round")
            elif isinstance(answer, Verdict):
                self._judge(state, answer)
            elif state.phase == "answer":
                self._answer(state, answer)
            elif state.phase == "examples":
                self._examples(state, answer)
            else:
                self._verdict(state, answer)
        return self.run()

    def run(self) -> Turn:
        """Do what needs no designer; returns what is asked next."""
        steps: dict[str, Callable[[State], None]] = {
            "draft": self._draft,
            "criticise": self._criticise,
            "test": self._test,
            "refine": self._refine,
            "finish": self._finish,
        }
        while not self.waiting:
            with self._step() as state:
                state.steps.append(state.phase)
                steps[state.phase](state)
        return self.turn

    def suggest(self) -> Turn:
        """Let the agent model offer answers to the question that is asked."""
        with self._step() as state:
            if state.phase == "answer":
                state.options = self.writer.suggestions(state)
                self._say(state, _offer(state))
        return self.turn

    def set_slot(self, slot: str, text: str) -> Turn:
        """Change what the brief says; later drafts and rewrites know it.

        Raises:
            ConfigError: no such slot, or no goal.
        """
        if slot not in SLOTS:
            raise ConfigError(f"slot: '{slot}' is unknown; there are {', '.join(SLOTS)}")
        if slot == "goals" and not text.strip():
            raise ConfigError("goals: can not be empty; say what the prompt is for")
        with self._step() as state:
            self._hear(state, f"{SLOTS[slot].title}: {text.strip() or 'left open'}")
            _set(state, slot, text)
            if state.phase == "answer" and state.slot == slot:
                self._next_question(state)
            if state.versions:
                state.remarks.append(f"{SLOTS[slot].title}: {state.brief[slot] or 'left open'}")
                self._say(state, "Noted: the next version will know it.")
        return self.run()

    def add_version(self, text: str) -> Turn:
        """Test a prompt that the designer wrote or edited.

        Raises:
            ConfigError: it lacks a field, has an unknown one, or its braces do not balance.
        """
        defect = usable(self.state, text)
        if defect:
            raise ConfigError(f"prompt: {defect}")
        if self.state.phase not in ("verdict", "done"):
            raise ConfigError("prompt: can be edited once there is one; answer what is asked first")
        with self._step() as state:
            self._hear(state, "I wrote a version of my own.")
            _add(state, text, "edit")
            state.phase = "test"
        return self.run()

    def more(self) -> Turn:
        """Allow another round after the end."""
        with self._step() as state:
            if state.phase == "done":
                state.rounds_allowed = max(state.rounds_allowed, state.round) + 1
                state.chosen, state.phase = None, "verdict"
                self._say(state, _ask_for_verdict(state))
        return self.turn

    # ---- step 1: engage --------------------------------------------------------------------------------

    def _answer(self, state: State, answer: str) -> None:
        answer, first = answer.strip(), not state.brief
        self._hear(state, answer)
        if answer.isdecimal() and 1 <= int(answer) <= len(state.options):
            answer = state.options[int(answer) - 1]
        vague, left = _VAGUE.fullmatch(answer), left_open(answer)
        if (vague and not state.options) or ((vague or left) and state.slot == "goals"):
            # offered once; a goal there must be
            state.options = state.options or self.writer.suggestions(state)
            self._say(state, _offer(state))
            return
        _set(state, state.slot, "" if vague or left else answer)
        if first:
            for slot, text in self.writer.quotes(state, answer).items():
                _set(state, slot, text)
                self._say(state, f"{SLOTS[slot].title}: {text}")
        self._next_question(state)

    def _next_question(self, state: State) -> None:
        state.options = []
        state.asked += 1
        missing = [slot for slot in SLOTS if slot not in state.brief]
        if not missing or state.asked >= state.config.max_questions:
            for slot in missing:
                state.brief[slot] = ""
            state.phase = "examples"
            self._say(state, _ask_for_examples(state))
            return
        state.slot = missing[0]
        state.question = SLOTS[state.slot].question
        if state.config.wording == "model":
            state.question = self.writer.question(state)
        self._say(state, state.question)

    # ---- examples --------------------------------------------------------------------------------------

    def _examples(self, state: State, answer: str) -> None:
        if no_examples(answer):
            self._hear(state, answer.strip() or "none")
            state.phase = "draft"
            return
        self._take_cases(state, read_cases(answer, state.config.fields))

    def _take_cases(self, state: State, given: Sequence[Case | Mapping[str, Any]]) -> None:
        if state.phase == "answer":
            raise ConfigError("examples: are asked for after the brief; answer the question first")
        new = [make_case(case, state.config.fields) for case in given]
        known = {tuple(case.values.items()) for case in state.cases}
        new = [case for case in _different(new) if tuple(case.values.items()) not in known]
        if not new:
            raise DataError("examples: there is no new one; give lines 'typed => wanted'")
        self._hear(
            state, f"{len(new)} examples" if len(new) > 1 else f"An example: {shown_values(new[0].values)}"
        )
        if state.phase == "examples":
            state.cases = divide(new, state.config)
            state.metric = _metric(state, new)
            state.phase = "draft"
        else:
            if all(case.wanted is None for case in state.cases):
                state.metric = _metric(state, new)
            room = state.config.tests - sum(case.use == "test" for case in state.cases)
            state.cases += [
                case.model_copy(update={"use": "test" if n < max(room, 1) else "report"})
                for n, case in enumerate(new)
            ]
            state.phase = "test"

    # ---- steps 2 and 5: draft and refine ---------------------------------------------------------------

    def _draft(self, state: State) -> None:
        self.on_step("writing the first prompt")
        state.round = 1
        if not _tests(state):
            # the designer gave none: inputs of the model's own, whose answers the designer judges
            first, *others = state.config.fields
            for line in self.writer.inputs(state):
                state.cases.append(Case(values={first: line, **dict.fromkeys(others, "")}, invented=True))
        if state.config.own_words:
            _add(state, own_line(state), "one line")
            _add(state, own_prompt(state), "brief")
        text = self.writer.draft(state)
        if text is not None:
            _add(state, text, "draft")
        elif not state.versions:
            _add(state, own_prompt(state), "brief")
        state.phase = "criticise"

    def _refine(self, state: State) -> None:
        self.on_step("rewriting the prompt")
        number = best_version(state)
        assert number is not None
        text = self.writer.rewrite(state, state.versions[number])
        if text is None or any(text == version.text for version in state.versions):
            count(state.failures, "unchanged")
            self._say(state, "I found no better wording, so the prompt stays as it is.")
        else:
            _add(state, text, "rewrite")
        state.round += 1
        state.phase = "criticise"

    # ---- step 3: criticise -----------------------------------------------------------------------------

    def _criticise(self, state: State) -> None:
        self.on_step("checking the prompt")
        for version in state.versions:
            version.defects = version.defects or uncovered(state, version.text)
        newest = state.versions[-1]
        if not newest.criticised:
            newest.criticised = True
            newest.checklist, defects = self.writer.criticism(state, newest)
            newest.defects += defects
        state.phase = "test"

    # ---- step 4: test, and the verdict -----------------------------------------------------------------

    def _test(self, state: State) -> None:
        """Have the target model answer all tests that a version has not answered yet, for every version."""
        for number, version in enumerate(state.versions):
            open_ = [n for n in _tests(state) if n not in version.outputs]
            if not open_:
                continue
            self.on_step(f"testing version {number + 1} on {len(open_)} inputs")
            answers = self._target(state.config, [fill(version.text, state.cases[n].values) for n in open_])
            count(state.calls, "target", len(open_))
            version.outputs.update(zip(open_, answers, strict=True))
            judged = [n for n in open_ if state.cases[n].wanted is not None]
            figures = answer_scores(
                state.metric,
                [version.outputs[n] for n in judged],
                [str(state.cases[n].wanted) for n in judged],
                encoder=state.config.encoder,
            )
            version.scores.update(zip(judged, figures, strict=True))
        state.phase = "verdict"
        self._say(state, _ask_for_verdict(state))

    def _verdict(self, state: State, answer: str) -> None:
        plain = answer.strip().rstrip(".!")
        slot, colon, text = answer.partition(":")
        marks = {int(n) - 1: m.lower() in ("good", "right", "+") for n, m in _MARK.findall(plain)}
        if "=>" in answer:
            self._take_cases(state, read_cases(answer, state.config.fields))
        elif colon and slot.strip().lower() in SLOTS:
            self._hear(state, answer.strip())
            _set(state, slot.strip().lower(), text)
            state.remarks.append(answer.strip())
            self._go_on(state)
        elif marks and not re.sub(r"[\s,;]+", "", _MARK.sub("", plain)):
            self._judge(state, Verdict(marks=self._numbered(state, marks)))
        elif found := _USE.fullmatch(plain):
            self._judge(state, Verdict(accept=True, use=int(found[1])))
        elif _ACCEPT.fullmatch(plain):
            self._judge(state, Verdict(accept=True))
        else:
            self._judge(state, Verdict(remarks="" if _AGAIN.fullmatch(plain) else answer.strip()))

    def _numbered(self, state: State, marks: Mapping[int, bool]) -> dict[int, bool]:
        """Marks by the case's number, of marks by the row that the designer sees."""
        rows = _tests(state)
        for row in marks:
            if not 0 <= row < len(rows):
                raise ConfigError(f"marks: there is no test {row + 1}; there are 1 to {len(rows)}")
        return {rows[row]: good for row, good in marks.items()}

    def _judge(self, state: State, verdict: Verdict) -> None:
        if state.phase != "verdict":
            raise ConfigError("verdict: there is nothing to judge yet; answer what is asked first")
        if verdict.use is not None and not 1 <= verdict.use <= len(state.versions):
            raise ConfigError(f"use: there is no version {verdict.use}; there are 1 to {len(state.versions)}")
        newest = state.versions[-1]
        for case in verdict.marks:
            if case not in newest.outputs:
                raise ConfigError(f"marks: there is no test {case}; tests are {sorted(newest.outputs)}")
        newest.marks.update(verdict.marks)
        if verdict.marks and not verdict.accept and not verdict.remarks:
            rows = _tests(state)
            self._hear(
                state,
                ", ".join(f"{rows.index(n) + 1} {'good' if m else 'bad'}" for n, m in verdict.marks.items()),
            )
            return
        # where no wanted answer and no mark says how good an answer is, the verdict itself does
        unknown = set(newest.outputs) - set(newest.scores) - set(newest.marks)
        newest.marks.update(dict.fromkeys(unknown, verdict.accept))
        if verdict.use is not None:
            state.chosen = verdict.use - 1
        elif verdict.accept and not newest.outputs:
            state.chosen = len(state.versions) - 1  # nothing was tested: the designer's word is all there is
        said = f"use version {verdict.use}" if verdict.use is not None else "accept"
        self._hear(state, said if verdict.accept else verdict.remarks or "again")
        if verdict.accept:
            state.phase = "finish"
            return
        if verdict.remarks:
            state.remarks.append(verdict.remarks)
        self._go_on(state)

    def _go_on(self, state: State) -> None:
        state.phase = "refine" if state.round < state.rounds_allowed else "finish"
        if state.phase == "finish":
            rounds = "1 round was" if state.round == 1 else f"{state.round} rounds were"
            self._say(state, f"{rounds} allowed, so the best version is taken.")

    # ---- step 6: finish --------------------------------------------------------------------------------

    def _finish(self, state: State) -> None:
        """Measure the best version, and the designer's one line, on examples that nothing was chosen by."""
        self.on_step("measuring on examples not used so far")
        number = best_version(state)
        assert number is not None
        kept = [case for case in state.cases if case.use == "report" and case.wanted is not None]
        arms = {"best": state.versions[number]}
        if state.versions[0].origin == "one line":
            arms["one line"] = state.versions[0]
        state.reported = {}
        for name, version in arms.items():
            if kept:
                answers = self._target(state.config, [fill(version.text, case.values) for case in kept])
                count(state.calls, "target", len(kept))
                wanted = [str(case.wanted) for case in kept]
                figures = answer_scores(state.metric, answers, wanted, encoder=state.config.encoder)
                state.reported[name] = float(np.mean(figures))
        state.phase = "done"
        self._say(state, _summary(state))

    def _target(self, config: PromptorConfig, prompts: Sequence[str]) -> list[str]:
        """The target model's answers, all asked at once."""
        if not prompts:
            return []
        return answers_of(
            self.target,
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            max_tokens=config.answer_tokens,
            temperature=config.target_temperature,
            seed=config.seed,
        )

    # ---- state and files -------------------------------------------------------------------------------

    @contextmanager
    def _step(self) -> Iterator[State]:
        """Change a copy of the state; it counts, and is saved, when nothing failed."""
        state = self.state.model_copy(deep=True)
        yield state
        self.state = state
        self.save()

    def save(self) -> None:
        """Write state, transcript and the best prompt so far to the folder, each whole or not at all."""
        if self.folder is None:
            return
        files = {TRANSCRIPT: transcript(self.state), STATE: self.state.model_dump_json(indent=1) + "\n"}
        if self.prompt:
            files = {PROMPT: self.prompt, **files}
        for name, text in files.items():
            with atomic_write(self.folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def restart(self) -> Turn:
        """Begin anew with the same options; what was there moves to the folder ``earlier``."""
        if self.folder is not None:
            place = self.folder / "earlier"
            place.mkdir(parents=True, exist_ok=True)
            number = 1 + sum(1 for _ in place.iterdir())
            for name in (STATE, PROMPT, TRANSCRIPT):
                if (self.folder / name).exists():
                    (place / str(number)).mkdir(exist_ok=True)
                    shutil.move(self.folder / name, place / str(number) / name)
        config = self.state.config
        self.state = _opened(State(config=config, target=self.target.name, rounds_allowed=config.max_rounds))
        return self.turn

    def _joined(self, state: State, options: Mapping[str, Any]) -> State:
        """A conversation that goes on, with options that may change on the way."""
        config = build(PromptorConfig, {**state.config.model_dump(), **options})
        for name in _FIXED:
            if getattr(config, name) != getattr(state.config, name):
                raise ConfigError(
                    f"{name}: is {getattr(config, name)}, but the conversation in {self.folder} began with "
                    f"{getattr(state.config, name)}; drop the option, or give another output"
                )
        if state.target != self.target.name:
            raise ConfigError(
                f"target: is {self.target.name}, but {self.folder} holds answers of {state.target}; "
                "give that model, or another output"
            )
        state.rounds_allowed = max(state.rounds_allowed, config.max_rounds)
        state.config = config
        return state

    @staticmethod
    def _say(state: State, text: str) -> None:
        state.dialogue.append(Line(who="promptor", text=text))

    @staticmethod
    def _hear(state: State, text: str) -> None:
        state.dialogue.append(Line(who="designer", text=text))


# ---- what is said ------------------------------------------------------------------------------------------------


def _opened(state: State) -> State:
    """A conversation at its first question."""
    state.question = SLOTS["goals"].question
    state.dialogue.append(Line(who="promptor", text=f"{state.question} Say as much as you like."))
    return state


def _offer(state: State) -> str:
    return "\n".join([state.question, *(f"  {n}. {text}" for n, text in enumerate(state.options, 1))])


def _ask_for_examples(state: State) -> str:
    form = " | ".join(state.config.fields) if len(state.config.fields) > 1 else "typed text"
    return (
        f"Give examples, one a line: {form} => wanted answer. With four or more, some are kept for an honest figure at the "
        "end. 'none' goes on without."
    )


def _ask_for_verdict(state: State) -> str:
    number = best_version(state)
    assert number is not None
    best, own = state.versions[number], state.versions[0]
    if not best.outputs:
        return f"Round {state.round}: there was nothing to test version {len(state.versions)} on. Accept, or say what to change."
    if best.score is None:
        said = f"I ran version {len(state.versions)} on {len(best.outputs)} inputs; only you can say whether it is good."
    else:
        said = f"Version {number + 1} is the best so far with {best.score:.2f}"
        if best.origin == "one line":
            said += ", your own words as one line"
        elif own.origin == "one line" and own.score is not None:
            said += f" (your own words as one line: {own.score:.2f})"
        said += "."
    return f"Round {state.round} of {state.rounds_allowed}. {said} Accept, say what to change, or let me try again."


def _summary(state: State) -> str:
    number = best_version(state)
    assert number is not None
    best = state.versions[number]
    said = f"Done: version {number + 1} of {len(state.versions)} ({best.origin})"
    if state.chosen is not None:
        said += ", as you chose"
    if best.score is not None:
        said += f", {best.score:.2f} on the tests"
    if "best" in state.reported:
        said += f", {state.reported['best']:.2f} on examples not used before"
        if "one line" in state.reported:
            said += f" (your one line: {state.reported['one line']:.2f})"
    return said + "."


# ---- small things ------------------------------------------------------------------------------------------------


def _set(state: State, slot: str, text: str) -> None:
    text = " ".join(text.split())
    if len(text) > LONGEST_ANSWER:
        raise ConfigError(
            f"{slot}: has {len(text)} characters; {LONGEST_ANSWER} are allowed, so say it shorter"
        )
    state.brief[slot] = text
    state.brief = {name: state.brief[name] for name in SLOTS if name in state.brief}


def _add(state: State, text: str, origin: Any) -> None:
    state.versions.append(Version(text=text, origin=origin, remarks=len(state.remarks)))


def _tests(state: State) -> list[int]:
    """Numbers of the cases that test."""
    return [n for n, case in enumerate(state.cases) if case.use == "test"]


def _different(cases: Sequence[Case]) -> list[Case]:
    return list({tuple(case.values.items()): case for case in cases}.values())


def _metric(state: State, cases: Sequence[Case]) -> Any:
    """The metric for these examples: labels repeat or are single words, sentences are neither."""
    if state.config.metric != "auto":
        return state.config.metric
    wanted = [case.wanted.lower() for case in cases if case.wanted is not None]
    labels = len(set(wanted)) < len(wanted) or all(len(text.split()) == 1 for text in wanted)
    return "exact" if labels else "similarity"


def promptor(
    answers: Mapping[str, Any] | str | Path | Designer,
    *,
    lm: Any,
    target: Any = None,
    output: str | Path | None = None,
    on_step: Callable[[str], None] | None = None,
    **options: Any,
) -> Promptor:
    """Make a prompt without a person: a designer that is a program answers what is asked.

    Args:
        answers: what `Answers` takes, or a `Designer`.
        lm, target: the agent model, and the model the prompt is for (the same by default); as for `Promptor`.
        output: folder for the state, the transcript and the best prompt; a conversation found there goes on.
        options: fields of `PromptorConfig`.

    Returns:
        The finished conversation: ``.prompt``, ``.best``, ``.predict(rows)``, ``.evaluate(cases)``, ``.state``.
    """
    designer: Designer = answers if callable(answers) else Answers(answers)
    agent = Promptor(lm, target, output=output, on_step=on_step, **options)
    turn = agent.run()
    while turn.kind != "done":
        turn = agent.reply(designer(turn, agent))
    return agent
