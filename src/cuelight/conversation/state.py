"""What a conversation about a prompt consists of, as data: slots, examples, versions, and the state that is saved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cuelight.errors import ArtifactError, ConfigError, DataError, nearest

__all__ = [
    "SLOTS",
    "Case",
    "Line",
    "PromptorConfig",
    "Slot",
    "State",
    "Turn",
    "Verdict",
    "Version",
    "best_version",
    "check_fields",
    "divide",
    "left_open",
    "load_cases",
    "load_state",
    "make_case",
    "no_examples",
    "read_cases",
    "shown_values",
    "transcript",
]


class Slot(BaseModel):
    """One thing a brief says: its title, what the designer is asked, and answers to choose from."""

    model_config = ConfigDict(frozen=True)

    title: str
    question: str
    options: tuple[str, ...]


SLOTS: Mapping[str, Slot] = {
    "goals": Slot(
        title="Goal",
        question="What should the model do with what is typed?",
        options=(
            "Say whether the text is positive or negative.",
            "Make a full, polite sentence of a few keywords.",
            "Correct spelling and grammar, and change nothing else.",
        ),
    ),
    "users": Slot(
        title="Users",
        question="Who will use it, and what do they need?",
        options=(
            "Anyone, on a phone.",
            "People who type slowly and want to save keystrokes.",
            "Our own staff.",
        ),
    ),
    "data": Slot(
        title="Input",
        question="What does the typed text look like?",
        options=(
            "One short sentence.",
            "A few keywords without grammar.",
            "A paragraph, with typing errors.",
        ),
    ),
    "context": Slot(
        title="Context",
        question="Where is it used: in which app, with whom, about what?",
        options=("In a chat with friends.", "In work e-mail with colleagues.", "No particular context."),
    ),
    "output": Slot(
        title="Output",
        question="What must the answer look like: length, number, format, tone?",
        options=("One word.", "One sentence, polite.", "Only the answer, without any explanation."),
    ),
}
LONGEST_ANSWER = 1000
"""Most characters of a slot, so that the designer's words always fit into a prompt."""


class PromptorConfig(BaseModel):
    """Options of `cuelight.Promptor`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fields: tuple[str, ...] = Field(
        ("text",), min_length=1, description="Names of what is typed; the prompt has a place {name} for each."
    )
    metric: Literal["auto", "exact", "contains", "rouge-l", "chrf", "similarity"] = Field(
        "auto",
        description="How an answer is compared with the wanted one; auto: exact where wanted answers repeat or are single "
        "words (labels), else similarity of sentence embeddings.",
    )
    encoder: str = Field("minilm-l6", description="Sentence encoder for similarity.")
    max_questions: int = Field(8, ge=1, description="Most questions about the brief.")
    max_rounds: int = Field(3, ge=1, description="Most rounds of criticism, tests and a verdict.")
    shown: int = Field(3, ge=0, description="Most examples that a prompt shows.")
    tests: int = Field(8, ge=1, description="Most examples a version is tested on; they choose the best.")
    report: int = Field(20, ge=0, description="Most examples that are kept for the report at the end.")
    own_words: bool = Field(
        True,
        description="Also test what the designer said as one line, and as four parts, without the agent model.",
    )
    wording: Literal["fixed", "model"] = Field(
        "fixed", description="Questions as the program has them, or worded by the agent model."
    )
    longest: int = Field(3000, ge=1500, description="Most characters of a prompt.")
    temperature: float = Field(0.7, ge=0, le=2, description="Of the agent model when it writes.")
    target_temperature: float = Field(0.0, ge=0, le=2, description="Of the target model.")
    writing_tokens: int = Field(300, ge=16, description="Most tokens of what the agent model writes.")
    answer_tokens: int = Field(64, ge=1, description="Most tokens of an answer of the target model.")
    seed: int = Field(0, ge=0, description="Divides the examples and seeds the models.")

    @field_validator("fields")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "wanted":
                raise ValueError("a field's name has small letters, digits and _, and is not 'wanted'")
        if len(set(value)) < len(value):
            raise ValueError("a field is named twice")
        return value


class Case(BaseModel):
    """An example: what is typed into each field, and the answer that is wanted, if known.

    ``use`` says what it is for: shown in prompts, tests that choose the best version, or the report at the end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: dict[str, str]
    wanted: str | None = None
    use: Literal["show", "test", "report", "spare"] = "test"
    invented: bool = False


class Version(BaseModel):
    """A prompt with what came of it.

    Attributes:
        origin: who wrote it; ``one line`` and ``brief`` are the designer's own words.
        remarks: how many of the designer's remarks were known when it was written.
        outputs: the target model's answers by the case's number; ``scores`` and the designer's ``marks`` likewise.
        checklist: the agent model's criticism, 1 to 5 an item; it is shown, and never chooses.
    """

    text: str
    origin: Literal["one line", "brief", "draft", "rewrite", "edit"]
    remarks: int = 0
    outputs: dict[int, str] = {}
    scores: dict[int, float] = {}
    marks: dict[int, bool] = {}
    checklist: dict[str, int] = {}
    defects: list[str] = []
    criticised: bool = False

    @property
    def score(self) -> float | None:
        """Mean over its tests, of the score or, where no answer was wanted, the mark; None without any."""
        figures = (self.scores.get(n, self.marks.get(n)) for n in self.outputs)
        known = [float(f) for f in figures if f is not None]
        return sum(known) / len(known) if known else None


class Line(BaseModel):
    """A line of the dialogue."""

    who: Literal["promptor", "designer"]
    text: str


class Turn(BaseModel):
    """What the designer is asked now: an answer about a slot, examples, a verdict, or nothing more."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["answer", "examples", "verdict", "done"]
    text: str
    slot: str = ""
    options: tuple[str, ...] = ()


class Verdict(BaseModel):
    """A designer's judgement of the newest version's tests; ``marks`` are by the case's number.

    ``use`` (from 1) insists on a version, whatever the scores say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    accept: bool = False
    remarks: str = ""
    marks: dict[int, bool] = {}
    use: int | None = None


class State(BaseModel):
    """Everything a conversation is: saved after every step, and enough to go on from."""

    format: Literal[1] = 1
    config: PromptorConfig
    target: str
    phase: Literal[
        "answer", "examples", "draft", "criticise", "test", "verdict", "refine", "finish", "done"
    ] = "answer"
    slot: str = "goals"
    question: str = ""
    options: list[str] = []
    asked: int = 0
    brief: dict[str, str] = {}
    """What the designer said for each slot; empty text: left open."""
    metric: Literal["exact", "contains", "rouge-l", "chrf", "similarity"] = "similarity"
    cases: list[Case] = []
    round: int = 0
    rounds_allowed: int = 0
    remarks: list[str] = []
    versions: list[Version] = []
    chosen: int | None = None
    """The version the designer insists on."""
    reported: dict[str, float] = {}
    """Mean scores of the best version and of the designer's one line on examples that chose nothing."""
    dialogue: list[Line] = []
    steps: list[str] = ["engage"]
    calls: dict[str, int] = {}
    failures: dict[str, int] = {}


def load_state(path: Path) -> State | None:
    """The state in a file; None where there is no file.

    Raises:
        ArtifactError: it is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        return State.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        raise ArtifactError(
            f"output: {path} can not be read ({type(error).__name__}); give another folder"
        ) from error


def best_version(state: State) -> int | None:
    """The number (from 0) of the version to use: the designer's choice, else the best score.

    Of equal ones that which knew more of the designer's remarks, then the shorter, then the earlier.
    """
    if state.chosen is not None:
        return state.chosen

    def rank(number: int) -> tuple[float, int, int, int]:
        version = state.versions[number]
        score = -1.0 if version.score is None else version.score
        return (round(score, 9), version.remarks, -len(version.text), -number)

    return max(range(len(state.versions)), key=rank, default=None)


_OPEN = re.compile(r"skip|pass|none|no|nothing|n/?a|-", re.IGNORECASE)


def left_open(answer: str) -> bool:
    """Whether an answer says that a slot stays open."""
    return _OPEN.fullmatch(answer.strip()) is not None


def no_examples(answer: str) -> bool:
    """Whether an answer says that there are no examples."""
    return not answer.strip() or left_open(answer)


# ---- examples ----------------------------------------------------------------------------------------------------


def make_case(given: Case | Mapping[str, Any], fields: Sequence[str]) -> Case:
    """A case from a mapping of the fields and, optionally, ``wanted``.

    Raises:
        DataError: a field is missing, empty or unknown.
    """
    if isinstance(given, Case):
        return given
    values = {str(k): "" if v is None else str(v) for k, v in given.items()}
    wanted = values.pop("wanted", "").strip()
    for name in values:
        if name not in fields:
            raise DataError(
                f"examples: '{name}' is no field{nearest(name, fields)}; there are {', '.join(fields)} and wanted"
            )
    for name in fields:
        if not values.get(name, "").strip():
            raise DataError(
                f"examples: '{name}' is empty in one of them; fill it in or leave the example out"
            )
    return Case(values={name: values[name].strip() for name in fields}, wanted=wanted or None)


def read_cases(text: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """Examples typed as lines ``typed => wanted``, the wanted answer optional; fields are separated by ``|``.

    Raises:
        DataError: a line with too few or too many fields.
    """
    rows = []
    for line in filter(str.strip, text.splitlines()):
        typed, _, wanted = line.partition("=>")
        parts = [part.strip() for part in typed.split("|")] if len(fields) > 1 else [typed.strip()]
        if len(parts) != len(fields):
            form = " | ".join(fields)
            raise DataError(f"examples: '{line[:60]}' has {len(parts)} fields; write {form} => wanted")
        rows.append({**dict(zip(fields, parts, strict=True)), "wanted": wanted.strip()})
    return rows


_WANTED = ("wanted", "target", "output", "answer", "label_name", "label")


def load_cases(path: Path, fields: Sequence[str]) -> list[dict[str, str]]:
    """Examples from a table (CSV, TSV, JSON, JSONL, Parquet) with a column a field, or from lines of a ``.txt`` file.

    The wanted answer is in a column ``wanted``, ``target``, ``output``, ``answer``, ``label_name`` or ``label``.

    Raises:
        DataError: it can not be read, or has no column for a field.
    """
    from cuelight.data.files import missing_file, read_file, read_text

    if not path.is_file():
        raise missing_file(path)
    if path.suffix.lower() == ".txt":
        return read_cases(read_text(path)[0], fields)
    found = read_file(path)
    table = next(iter(found.values())) if isinstance(found, dict) else found
    columns = [str(name) for name in table.frame.columns]
    wanted = next((name for name in _WANTED if name in columns and name not in fields), None)
    for name in fields:
        if name not in columns:
            raise DataError(
                f"{path}: has no column '{name}'{nearest(name, columns)}; columns are {', '.join(columns)}; "
                "name the fields with --fields"
            )
    rows = []
    for row in table.frame.to_dict("records"):
        answer = row.get(wanted) if wanted else None
        rows.append(
            {
                **{name: str(row[name]) for name in fields},
                "wanted": "" if answer is None or answer != answer else str(answer),
            }
        )
    return rows


def divide(cases: Sequence[Case], config: PromptorConfig) -> list[Case]:
    """What each example is for, drawn by the seed; below four, all are tests.

    A quarter at most is shown (those with a wanted answer, different ones first), another quarter at least is kept for
    the report; the rest tests, and what is beyond the limits is spare.
    """
    order = [int(n) for n in np.random.default_rng(config.seed).permutation(len(cases))]
    quarter = len(cases) // 4
    seen: set[str] = set()
    fresh: list[int] = []
    again: list[int] = []
    for n in order:
        wanted = cases[n].wanted
        if wanted is not None:
            (again if wanted in seen else fresh).append(n)
            seen.add(wanted)
    show = set([*fresh, *again][: min(config.shown, quarter)])
    rest = [n for n in order if n not in show]
    keep = min(config.report, quarter)
    tests = set(rest[: min(config.tests, len(rest) - keep)])
    later = [n for n in rest if n not in tests]
    report = set(later[: config.report])

    def use(n: int) -> str:
        return "show" if n in show else "test" if n in tests else "report" if n in report else "spare"

    return [case.model_copy(update={"use": use(n)}) for n, case in enumerate(cases)]


def check_fields(values: Mapping[str, str], fields: Sequence[str]) -> None:
    """Refuse values that do not name exactly the fields.

    Raises:
        ConfigError: one is missing or unknown.
    """
    for name in values:
        if name not in fields:
            raise ConfigError(f"{name}: is no field of this prompt; there are {', '.join(fields)}")
    for name in fields:
        if name not in values:
            raise ConfigError(f"{name}: is missing; the prompt has a place for it")


def shown_values(values: Mapping[str, str]) -> str:
    """The fields of an example on one line."""
    return " | ".join(" ".join(value.split()) for value in values.values())


# ---- the transcript ----------------------------------------------------------------------------------------------


def transcript(state: State) -> str:
    """The conversation to be read: dialogue, brief, versions with their tests, the report."""
    lines = ["# Promptor", "", "## Brief", ""]
    lines += [f"- **{SLOTS[s].title}**: {text or '(left open)'}" for s, text in state.brief.items()]
    lines += ["", "## Dialogue", ""]
    lines += [f"**{line.who}**: {line.text}\n" for line in state.dialogue]
    best = best_version(state)
    for number, version in enumerate(state.versions):
        score = "not scored" if version.score is None else f"score {version.score:.3f}"
        lines += [
            f"## Version {number + 1} ({version.origin}, {score}{', the best' if number == best else ''})",
            "",
            *_fenced(version.text),
            "",
        ]
        if version.checklist:
            lines.append("Criticism: " + ", ".join(f"{k} {v}/5" for k, v in version.checklist.items()) + ".")
        lines += [f"- {defect}" for defect in version.defects]
        if version.outputs:
            lines += ["", "| input | wanted | answer | score |", "|---|---|---|---|"]
        for n, answer in version.outputs.items():
            case = state.cases[n]
            figure = version.scores.get(n, version.marks.get(n))
            cells = (
                shown_values(case.values),
                case.wanted or "",
                answer,
                "" if figure is None else f"{figure:.2f}",
            )
            lines.append("| " + " | ".join(_cells(cells)) + " |")
        lines.append("")
    if state.reported:
        lines += ["## On examples that chose nothing", ""]
        lines += [f"- {name}: {figure:.3f}" for name, figure in state.reported.items()]
    return "\n".join(lines).rstrip() + "\n"


def _cells(values: Iterable[str]) -> list[str]:
    return [" ".join(value.split()).replace("|", "\\|") for value in values]


def _fenced(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence]
