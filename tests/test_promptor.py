"""Promptor: the six steps and their invariants with scripted models, and a conversation with a real one.

Scripted models check control flow only: they say what a test tells them to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cuelight
from cuelight.conversation.designers import Answers
from cuelight.conversation.promptor import Promptor
from cuelight.conversation.state import SLOTS, Case, PromptorConfig, Verdict, divide, read_cases
from cuelight.errors import ArtifactError, ConfigError, CuelightError, DataError
from cuelight.lm import LM, Budget, Request, scripted
from cuelight.tasks.answers import answer_scores
from cuelight.tasks.parts import Parts, compose, fill, prompt_defect, read_parts

DRAFT = "Instruction: You label {marks} of shops.\nActions:\n- Read it.\n- Answer with one word.\nFacts:\n- Shops are small."
GOOD = "Instruction: You are a careful judge of {mood}.\nActions:\n1. Read.\n2. Say yes or no.\nFacts:\n- Texts are short."
CRITIC = "clarity: 4\ncompleteness: 3\nformat: 5\nfields: 5\nDefects:\n- too vague"
EXAMPLES = [{"text": f"typed number {n}", "wanted": "yes" if n % 2 else "no"} for n in range(12)]


class Script:
    """An agent model that says what is set for each task, and remembers what it was asked."""

    def __init__(self, **said: str | list[str]) -> None:
        clean = {"draft": DRAFT.replace("{marks}", "moods"), "rewrite": GOOD.replace("{mood}", "moods")}
        self.said: dict[str, Any] = {**clean, "criticise": CRITIC, **said}
        self.asked: list[str] = []

    def __call__(self, request: Request) -> str:
        text = str(request.messages[-1]["content"])
        task = next(
            name
            for name, mark in {
                "extract": "Copy the exact words",
                "suggest": "three different short answers",
                "question": "Ask the designer one short question",
                "invent": "four different inputs",
                "criticise": "Score it from 1 to 5",
                "repair": "Mend it",
                "rewrite": "Write a better prompt",
                "draft": "Write a prompt",
            }.items()
            if mark in text
        )
        self.asked.append(task)
        said = self.said.get(task, "")
        return said.pop(0) if isinstance(said, list) else said

    @property
    def lm(self) -> LM:
        return scripted(self, "agent")


def target(answer: Callable[[str], str] = lambda prompt: "no") -> LM:
    """A target model that answers by the prompt alone, and counts in ``.meter``."""
    return scripted(lambda request: answer(str(request.messages[-1]["content"])), "target")


def judge_of_moods(prompt: str) -> str:
    """Right where the prompt says ``careful judge``, else always no."""
    number = int(prompt.rsplit("typed number ", 1)[1].split()[0])
    return ("yes" if number % 2 else "no") if "careful judge" in prompt else "no"


BRIEF = {
    "goals": "Say yes or no",
    "users": "Shop owners",
    "data": "Short notes",
    "context": "A till",
    "output": "One word",
}


# ---- templates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("Answer the question.", "{text} is missing"),
        ("Answer {text} with {tone}.", "'{tone}' is no field"),
        ("Answer {text} with {.", "braces do not balance"),
        ("Answer {text} with }.", "braces do not balance"),
        ("Answer {text!r}.", "takes no format"),
        ("Answer {text:>10}.", "takes no format"),
        ("Answer {text.__class__}.", "is no field"),
        ("Answer {}.", "is no field"),
        ("{text}" + "x" * 3000, "characters"),
        ("As in 'the shop was  CLOSED today': {text}", "must stay unseen"),
    ],
)
def test_a_prompt_that_can_not_be_used_is_refused(prompt: str, word: str) -> None:
    assert word in prompt_defect(prompt, ["text"], longest=3000, hidden=["The shop was closed today"])


def test_a_prompt_that_can_be_used_is_not_refused() -> None:
    assert prompt_defect('As JSON {{"a": 1}}: {text} {text}', ["text"], longest=3000, hidden=["yes"]) == ""


@pytest.mark.parametrize("typed", ["{", "}", "{text}", "{{x}}", "{0!r:>9}", "%s ${a} \\n"])
def test_what_is_typed_is_never_read_as_a_field(typed: str) -> None:
    assert fill("<{text}> {{as it is}}", {"text": typed}) == f"<{typed}> {{as it is}}"
    prompt = compose(Parts("Say it"), ["text", "who"], [({"text": typed, "who": typed}, typed)])
    assert prompt_defect(prompt, ["text", "who"], longest=3000) == ""
    assert fill(prompt, {"text": typed, "who": typed}).count(typed) >= 5


def test_parts_are_read_as_models_write_them() -> None:
    said = "Sure!\n\n**Instruction:** You are\n a judge.\n\n### Actions:\n1. Read\n2) Answer\n"
    said += "* Facts:\n- Short\n- Short\nInput: x"
    assert read_parts(said) == Parts("You are a judge.", ("Read", "Answer"), ("Short",))
    assert read_parts("Instruction: - Be a judge.\n- Be a poet.\nActions:\n- Go") == Parts(
        "Be a judge.", ("Go",)
    )
    assert read_parts("Instruction:\nBe a judge.\n- Be a poet.") == Parts("Be a judge.")
    for poor in ("", "Yes, I can help!", "Instruction:", "Actions:\n- Read"):
        assert read_parts(poor) is None


def test_scores_of_answers() -> None:
    assert answer_scores("exact", [" Positive.", "negative!", "not sure"], ["positive"] * 3) == [1, 0, 0]
    assert answer_scores("exact", ["-3", "3", "!"], ["3", "3", "?"]) == [0, 1, 0]
    assert answer_scores("contains", ["it is positive, I think", "positively"], ["positive"] * 2) == [1, 0]
    assert answer_scores("rouge-l", ["a b c", ""], ["a b c", "a"]) == [1, 0]
    near = answer_scores("chrf", ["the house is red", "zzz"], ["the house is red!"] * 2)
    assert near[0] > 0.9 > 0.1 > near[1]
    assert answer_scores("exact", [], []) == []
    near = answer_scores(
        "similarity", ["A man sits on a bench.", "It is raining in Spain.", ""], ["A man on a bench."] * 3
    )
    assert near[0] > 0.8 > 0.4 > near[1] >= near[2] == 0


# ---- the six steps (scripted models) ----------------------------------------------------------------------------------


def test_the_six_steps_in_order_and_the_number_of_calls() -> None:
    script, reader = Script(), target(judge_of_moods)
    answers = {**BRIEF, "examples": EXAMPLES}
    agent = cuelight.promptor(answers, lm=script.lm, target=reader, shown=2, tests=6, max_rounds=3)
    # 12 examples: a quarter at most is shown, a quarter kept for the report
    uses = [case.use for case in agent.state.cases]
    assert (uses.count("show"), uses.count("test"), uses.count("report")) == (2, 6, 4)
    # the goal is short, so nothing is extracted; the draft scores 0.5 at most and the rewrite is right
    assert agent.state.steps == [
        "engage",
        "draft",
        "criticise",
        "test",
        "refine",
        "criticise",
        "test",
        "finish",
    ]
    assert script.asked == ["draft", "criticise", "rewrite", "criticise"]
    assert agent.state.calls == {"draft": 1, "criticise": 2, "rewrite": 1, "target": 4 * 6 + 2 * 4}
    assert reader.meter.spent.calls == 32
    assert [v.origin for v in agent.state.versions] == ["one line", "brief", "draft", "rewrite"]
    assert agent.best is agent.state.versions[3]
    assert agent.best.score == 1.0
    assert agent.state.reported["best"] == 1.0 > agent.state.reported["one line"]
    assert agent.turn.kind == "done"
    assert agent.predict(["typed number 7"]) == ["yes"]
    assert agent.evaluate(EXAMPLES) == 1.0


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_the_loop_ends_and_costs_what_was_projected(rounds: int) -> None:
    rewrites = [GOOD.replace("{mood}", f"mood {n}").replace("careful ", "") for n in range(9)]
    script, reader = Script(rewrite=rewrites), target()
    agent = Promptor(script.lm, reader, max_rounds=rounds, tests=4, shown=0)
    projected, turn, designer = agent.projected(), agent.turn, Answers({**BRIEF, "examples": EXAMPLES[:4]})
    while turn.kind != "done":
        turn = agent.reply(designer(turn, agent))
    assert agent.state.round == rounds
    assert script.asked == ["draft", *["criticise", "rewrite"] * (rounds - 1), "criticise"]
    assert len(script.asked) <= min(
        projected["agent"], 8 + 1 + rounds * (2 + 4)
    )  # ours, and the paper page's
    assert reader.meter.spent.calls <= projected["target"]
    assert reader.meter.spent.calls == (3 + rounds - 1) * 3 + 2 * 1


def test_every_slot_missing_from_the_first_answer_is_asked_once() -> None:
    said = "I want short replies to mails, written by nurses on the ward, who type on small phones."
    quotes = "users: nurses on the ward\ndata: <none>\ncontext: their homes\noutput: short replies to mails"
    script = Script(extract=quotes)
    agent = Promptor(script.lm)
    asked = [agent.turn.slot]
    turn = agent.reply(said)
    # quotes count, inventions do not
    assert agent.state.brief == {
        "goals": said,
        "users": "nurses on the ward",
        "output": "short replies to mails",
    }
    while turn.kind == "answer":
        asked.append(turn.slot)
        turn = agent.reply("as they come" if turn.slot == "data" else "skip")
    assert asked == ["goals", "data", "context"]
    assert agent.state.brief["data"] == "as they come"
    assert agent.state.brief["context"] == ""
    assert list(agent.state.brief) == list(SLOTS)
    assert turn.kind == "examples"


def test_a_vague_answer_is_met_with_suggestions_once() -> None:
    agent = Promptor(Script(suggest=["no list", "1. Nurses\n2. Doctors\n3. Students", "", ""]).lm)
    agent.reply("Write replies")
    turn = agent.reply("I don't know")
    assert (turn.slot, turn.options) == ("users", ("Nurses", "Doctors", "Students"))
    assert agent.state.failures == {"suggest": 1}
    turn = agent.reply("2")
    assert agent.state.brief["users"] == "Doctors"
    assert turn.slot == "data"
    turn = agent.reply("?")  # the model fails twice: the program's own options stand in
    assert turn.options == SLOTS["data"].options
    assert agent.state.failures == {"suggest": 3}
    assert agent.reply("?").slot == "context"  # still vague: left open
    assert agent.state.brief["data"] == ""


def test_a_goal_there_must_be() -> None:
    agent = Promptor(Script(suggest="- one thing\n- another thing").lm)
    for empty in ("", "skip", "?"):
        assert agent.reply(empty).slot == "goals"
    assert agent.reply("1").slot == "users"
    assert agent.state.brief == {"goals": "one thing"}
    with pytest.raises(ConfigError, match="goals: can not be empty"):
        agent.set_slot("goals", " ")
    with pytest.raises(ConfigError, match="users: has 1001 characters"):
        agent.reply("x" * 1001)
    assert agent.turn.slot == "users"


def test_no_more_questions_than_allowed() -> None:
    agent = Promptor(Script().lm, max_questions=2)
    agent.reply("Write replies")
    assert agent.reply("Nurses").kind == "examples"
    assert agent.state.brief == {
        "goals": "Write replies",
        "users": "Nurses",
        "data": "",
        "context": "",
        "output": "",
    }


def test_questions_may_be_worded_by_the_model() -> None:
    script = Script(question=["Which shops will read these replies?", "nonsense", "", ""])
    agent = Promptor(script.lm, wording="model")
    assert agent.reply("Write replies").text == "Which shops will read these replies?"
    assert agent.reply("Small ones").text == SLOTS["data"].question
    assert agent.state.failures == {"question": 2}


@pytest.mark.parametrize("poor", ["Sorry.", GOOD, GOOD.replace("{mood}", "} or {")])
def test_what_the_model_can_not_write_is_counted_and_the_old_prompt_stays(poor: str) -> None:
    script, reader = Script(draft=poor, rewrite=poor, repair=poor, criticise="fine"), target()
    agent = cuelight.promptor({**BRIEF, "examples": EXAMPLES[:4]}, lm=script.lm, target=reader, max_rounds=2)
    assert [v.origin for v in agent.state.versions] == ["one line", "brief"]
    assert agent.state.failures["draft not usable"] == agent.state.failures["rewrite not usable"] == 1
    assert agent.state.failures["criticise"] == 2  # no version, no new criticism
    assert agent.best is not None and agent.best.checklist == {}
    # asked again once, be it for the form or for the defect
    again = "draft" if poor == "Sorry." else "repair"
    assert script.asked[:2] == ["draft", again]
    assert script.asked.count("draft") + script.asked.count("repair") <= 3


def test_one_repair_is_asked_for_with_the_defect() -> None:
    seen: list[str] = []

    def agent_model(request: Request) -> str:
        seen.append(str(request.messages[-1]["content"]))
        return (
            GOOD.replace("{mood}", "moods")
            if "Mend it" in seen[-1]
            else GOOD
            if "Instruction" in seen[-1]
            else CRITIC
        )

    agent = cuelight.promptor(
        {**BRIEF, "examples": EXAMPLES[:4]},
        lm=scripted(agent_model),
        target=target(judge_of_moods),
        max_rounds=1,
    )
    assert "'{mood}' is no field" in seen[1]
    assert agent.state.versions[-1].origin == "draft"
    assert agent.best is agent.state.versions[-1]


def test_the_best_is_returned_and_not_the_last() -> None:
    """The draft is right; what the model writes later is worse."""
    worse = [GOOD.replace("{mood}", f"{n} moods").replace("careful judge", "poet") for n in range(3)]
    script = Script(draft=GOOD.replace("{mood}", "moods"), rewrite=worse)
    answers = {**BRIEF, "examples": EXAMPLES[:6], "accept": 1.1}
    agent = cuelight.promptor(answers, lm=script.lm, target=target(judge_of_moods), max_rounds=3)
    scores = [v.score for v in agent.state.versions]
    assert agent.best is agent.state.versions[2]
    assert agent.best.score == max(s for s in scores if s is not None) == 1.0
    assert scores[-1] is not None and scores[-1] < 1
    assert agent.state.versions[-1].origin == "rewrite"


def test_a_rewrite_starts_from_the_best_version_and_sees_remarks_and_failures() -> None:
    asked: list[str] = []

    def agent_model(request: Request) -> str:
        asked.append(str(request.messages[-1]["content"]))
        return Script()(request)

    answers = {**BRIEF, "examples": EXAMPLES[:8], "remarks": ["Mention the till"], "accept": 1.1}
    cuelight.promptor(
        answers,
        lm=scripted(agent_model),
        target=target(lambda p: "yes" if "shops" in p else "maybe"),
        max_rounds=2,
    )
    rewrite = next(text for text in asked if "Write a better prompt" in text)
    assert "You label moods of shops" in rewrite  # the draft: half right, the others never
    assert "The designer says: Mention the till" in rewrite
    assert "Answered: yes\nWanted: no" in rewrite
    assert "Defect: too vague" in rewrite


def test_a_prompt_that_holds_a_test_input_is_refused() -> None:
    agent = Promptor(Script().lm, target(judge_of_moods), shown=0)
    for text in (*BRIEF.values(), "typed number 1 => yes\ntyped number 2 => no"):
        agent.reply(text)
    with pytest.raises(ConfigError, match="holds 'typed number 1' of a test"):
        agent.add_version("Typed  Number 1 is a yes. {text}")
    assert agent.add_version("I am a careful judge: {text}").kind == "verdict"
    agent.reply("typed number 3 => the shop was closed today")
    with pytest.raises(ConfigError, match="holds 'the shop was closed today' of a test"):
        agent.add_version("The shop was closed today. {text}")
    assert agent.best is not None and agent.best.origin == "edit"


def test_more_examples_test_every_version_again() -> None:
    agent = Promptor(Script().lm, target(judge_of_moods))
    for text in (*BRIEF.values(), "typed number 1 => yes\ntyped number 2 => no"):
        turn = agent.reply(text)
    assert turn.kind == "verdict"
    agent.reply("typed number 3 => yes")
    assert all(len(v.outputs) == 3 for v in agent.state.versions)
    assert [round(v.score or 0, 3) for v in agent.state.versions] == [0.333] * 3
    with pytest.raises(DataError, match="no new one"):
        agent.reply("typed number 3 => no")


def test_without_wanted_answers_the_designer_is_the_judge() -> None:
    script = Script(invent="- Are you open?\n- Do you ship?\n- ???")
    agent = Promptor(script.lm, target(lambda p: "maybe"))
    for text in (*BRIEF.values(), "none"):
        turn = agent.reply(text)
    assert script.asked == ["invent", "draft", "criticise"]
    assert [c.values["text"] for c in agent.state.cases] == ["Are you open?", "Do you ship?", "???"]
    assert all(v.score is None and len(v.outputs) == 3 for v in agent.state.versions)
    assert "only you can say" in turn.text
    agent.reply("1 good, 3 bad")
    assert agent.state.dialogue[-1].text == "1 good, 3 bad"
    assert agent.state.versions[-1].score == 0.5
    assert agent.turn.kind == "verdict"
    agent.reply("shorter please")  # what was not marked is bad then
    assert agent.state.versions[2].marks == {0: True, 2: False, 1: False}
    agent.reply("accept")
    assert agent.best is agent.state.versions[3]
    assert agent.best.score == 1.0
    assert agent.best.remarks == 1


def test_accepted_without_any_test_is_the_newest() -> None:
    agent = Promptor(Script(invent="").lm)
    for text in (*BRIEF.values(), "none", "ok"):
        agent.reply(text)
    assert agent.turn.kind == "done"
    assert agent.best is agent.state.versions[-1]
    assert agent.state.reported == {}


def test_the_designer_may_choose_mark_change_the_brief_and_go_on_after_the_end() -> None:
    script = Script()
    agent = Promptor(script.lm, target(judge_of_moods), max_rounds=1)
    for text in (*BRIEF.values(), "typed number 1 => yes\ntyped number 2 => no"):
        agent.reply(text)
    for wrong, word in {"use 9": "no version 9", "9 bad": "no test 9"}.items():
        with pytest.raises(ConfigError, match=word):
            agent.reply(wrong)
    assert agent.reply("use 1").kind == "done"
    assert agent.best is agent.state.versions[0]
    assert "as you chose" in agent.turn.text
    with pytest.raises(ConfigError, match="is over"):
        agent.reply("again")
    assert agent.more().kind == "verdict"
    assert agent.state.chosen is None
    assert agent.reply("users: Customers of the shop").kind == "verdict"
    assert agent.state.brief["users"] == "Customers of the shop"
    assert agent.state.versions[-1].remarks == 1
    with pytest.raises(ConfigError, match="no version 8"):
        agent.reply(Verdict(use=8))


def test_several_fields() -> None:
    script = Script(draft=DRAFT.replace("{marks}", "moods"))
    reader = target(lambda p: p.splitlines()[-2].split()[-1])
    rows = "hello | Ann => Ann\nbye | {Bob} => {Bob}"
    agent = Promptor(script.lm, reader, fields=("text", "who"), max_rounds=1)
    for text in (*BRIEF.values(), rows):
        agent.reply(text)
    assert agent.best is not None and agent.best.score == 1.0
    assert agent.prompt.endswith("Text: {text}\nWho: {who}\nOutput:")
    assert "Who: {x}" in agent.render(text="a", who="{x}")
    with pytest.raises(ConfigError, match="who: is missing"):
        agent.render(text="a")
    with pytest.raises(DataError, match="has 1 fields"):
        read_cases("hello => Ann", ("text", "who"))


def test_examples_are_divided_by_the_seed_and_none_is_used_twice() -> None:
    cases = [Case(values={"text": str(n)}, wanted=str(n % 3)) for n in range(60)]
    config = PromptorConfig()
    uses = [case.use for case in divide(cases, config)]
    assert [uses.count(use) for use in ("show", "test", "report", "spare")] == [3, 8, 20, 29]
    assert uses == [case.use for case in divide(cases, config)]
    assert uses != [case.use for case in divide(cases, PromptorConfig(seed=1))]
    shown = [case.wanted for case in divide(cases, config) if case.use == "show"]
    assert sorted(map(str, shown)) == ["0", "1", "2"]  # different ones first
    assert [case.use for case in divide(cases[:3], config)] == ["test"] * 3


# ---- saved, resumed, stopped -----------------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_its_folder_at_any_point(tmp_path: Path) -> None:
    """A new agent for every reply ends as one that was never stopped."""
    answers = Answers({**BRIEF, "examples": EXAMPLES, "remarks": ["Mention the till"]})
    whole = cuelight.promptor(answers, lm=Script().lm, target=target(judge_of_moods))
    turns = 0
    while True:
        agent = Promptor(Script().lm, target(judge_of_moods), output=tmp_path)
        turn = agent.run()
        if turn.kind == "done":
            break
        agent.reply(answers(turn, agent))
        turns += 1
    assert turns > 6
    assert agent.state == whole.state
    assert (tmp_path / "prompt.txt").read_text() == whole.prompt
    text = (tmp_path / "transcript.md").read_text()
    assert "Mention the till" in text and "the best" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompt.txt", "promptor.json", "transcript.md"]


def test_a_failing_model_leaves_the_state_and_the_next_try_goes_on(tmp_path: Path) -> None:
    broken = True

    def unreliable(request: Request) -> str:
        if broken:
            raise CuelightError("server: does not answer")
        return judge_of_moods(str(request.messages[-1]["content"]))

    script = Script()
    agent = Promptor(script.lm, scripted(unreliable, "target"), output=tmp_path)
    for text in BRIEF.values():
        agent.reply(text)
    with pytest.raises(CuelightError, match="does not answer"):
        agent.reply(EXAMPLES)
    assert agent.state.phase == "test"
    assert agent.state.calls == {"draft": 1, "criticise": 1}
    assert (tmp_path / "prompt.txt").exists()
    assert json.loads((tmp_path / "promptor.json").read_text())["phase"] == "test"
    broken = False
    assert agent.run().kind == "verdict"
    assert script.asked == ["draft", "criticise"]


def test_a_budget_stops_it_and_more_budget_goes_on(tmp_path: Path) -> None:
    from cuelight.lm import BudgetError

    answers = {**BRIEF, "examples": EXAMPLES[:4]}
    reader = scripted(
        lambda r: judge_of_moods(str(r.messages[-1]["content"])), "target", budget=Budget(calls=5)
    )
    with pytest.raises(BudgetError):
        cuelight.promptor(answers, lm=Script().lm, target=reader, output=tmp_path)
    assert reader.meter.spent.calls <= 5
    agent = cuelight.promptor(answers, lm=Script().lm, target=target(judge_of_moods), output=tmp_path)
    assert agent.best is not None and agent.best.score == 1.0


def test_what_contradicts_the_folder_is_refused(tmp_path: Path) -> None:
    agent = Promptor(Script().lm, target(), output=tmp_path, max_rounds=2)
    agent.reply("Say yes or no")
    with pytest.raises(ConfigError, match=r"fields: is .*'who'.*drop the option"):
        Promptor(Script().lm, target(), output=tmp_path, fields=("who",))
    with pytest.raises(ConfigError, match=r"target: is agent, but .* answers of target"):
        Promptor(Script().lm, output=tmp_path)
    assert Promptor(Script().lm, target(), output=tmp_path, max_rounds=5).state.rounds_allowed == 5
    agent.restart()
    assert agent.state.brief == {} and (tmp_path / "earlier" / "1" / "promptor.json").exists()
    (tmp_path / "promptor.json").write_text('{"format": 9')
    with pytest.raises(ArtifactError, match="can not be read"):
        Promptor(Script().lm, target(), output=tmp_path)


@pytest.mark.parametrize(
    ("answers", "word"),
    [
        ({}, "'goals' is missing"),
        ({"goals": "x", "user": "y"}, "'user' is unknown .did you mean 'users'"),
        ({"goals": "x", "accept": "high"}, "give a score"),
        ("nowhere.toml", "can not be read"),
    ],
)
def test_wrong_answers_are_refused_by_name(answers: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Answers(answers)


def test_wrong_options_and_examples_are_refused_by_name() -> None:
    for options, word in (
        ({"round": 3}, "no such option"),
        ({"fields": ("A b",)}, "small letters"),
        ({"tests": 0}, "tests"),
    ):
        with pytest.raises(ConfigError, match=word):
            Promptor(Script().lm, **options)
    agent = Promptor(Script().lm)
    with pytest.raises(ConfigError, match="after the brief"):
        agent.reply([{"text": "a"}])
    with pytest.raises(ConfigError, match="there is none yet"):
        agent.predict(["a"])
    for text in BRIEF.values():
        agent.reply(text)
    for row, word in (
        ({"txt": "a"}, "'txt' is no field .did you mean 'text'"),
        ({"wanted": "a"}, "'text' is empty"),
    ):
        with pytest.raises(DataError, match=word):
            agent.reply([row])
