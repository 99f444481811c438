"""The survey's techniques, checked with a scripted model: number and order of calls, votes, searches, what a call sees.

A scripted model checks control flow only, never quality; the last tests run a few strategies on real models.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import cuelight
from cuelight import lm, strategies
from cuelight.errors import ConfigError, DataError
from cuelight.lm.answers import code_in, extract, same
from cuelight.lm.documents import Documents
from cuelight.lm.tools import calculate, toolbox
from cuelight.methods.strategies.active_prompt import uncertainty
from cuelight.methods.strategies.chain_of_table import operate
from cuelight.methods.strategies.contrastive_cot import shuffled
from cuelight.methods.strategies.dag_path import _edges, acyclic, compressed, end_to_end
from cuelight.methods.strategies.logic_of_thought import closure
from cuelight.methods.strategies.structured_cot import pass_at_k
from cuelight.methods.strategy import GROUPS, Trace, all_strategies, demos_of, get_strategy, majority
from cuelight.sandbox import why_not

DOCUMENTS = [
    (
        "Old bridge",
        "The old bridge was built in 1881 by Marta Klein. It spans the river Ahr. The bridge is of stone.",
    ),
    ("River", "The river Ahr is wide and slow."),
    ("Cake", "A cake needs flour, eggs and sugar."),
]
POOL = ["What is 1 + 1?", "What is 2 + 2?", "Where is Tom?", "Who is Ann now?", "How many days has a week?"]
PAIRS = [("1 + 1", "2"), ("2 + 2", "4"), ("3 + 3", "6"), ("4 + 4", "8")]
NEEDED: dict[str, dict[str, Any]] = {
    "active-prompt": {"pool": POOL, "self_write": True},
    "ape": {"examples": PAIRS},
    "auto-cot": {"pool": POOL, "encoder": "words"},
    "buffer-of-thoughts": {"encoder": "words"},
    "cd-cot": {"demos": PAIRS},
    "chain-of-knowledge": {"documents": DOCUMENTS},
    "chain-of-note": {"documents": DOCUMENTS},
    "chain-of-table": {"table": pd.DataFrame({"name": ["a", "b"], "n": [3, 1]})},
    "dag-path": {"edges": "A->B, B->C"},
    "echo": {"pool": POOL, "encoder": "words"},
    "layer-of-thoughts": {"documents": DOCUMENTS},
    "narrative-of-thought": {"events": ("wash", "dry")},
    "opro": {"examples": PAIRS},
    "rag": {"documents": DOCUMENTS},
    "reverse-cot": {},
}
unprotected = bool(why_not())


class Script:
    """A model that answers by the first pattern found in the prompt; several answers to one pattern are given in turn."""

    def __init__(self, *rules: tuple[str, str | Sequence[str]], otherwise: str = "The answer is 4.") -> None:
        self.rules = [(re.compile(p, re.DOTALL), [a] if isinstance(a, str) else list(a)) for p, a in rules]
        self.otherwise, self.seen = otherwise, list[str]()
        self.given = [0] * len(rules)

    def __call__(self, request: lm.Request) -> str:
        self.seen.append(request.text)
        for k, (pattern, answers) in enumerate(self.rules):
            if pattern.search(request.text):
                self.given[k] += 1
                return answers[min(self.given[k], len(answers)) - 1]
        return self.otherwise


def play(
    name: str, script: Script, question: str = "What is 2 + 2?", *, score: Any = None, **options: Any
) -> Trace:
    model = lm.scripted(script, score=score)
    return get_strategy(name)(model, question, **{"answer": "number", **options})


# ---- what all have in common ------------------------------------------------------------------------------------


def test_there_are_the_41_of_the_survey() -> None:
    cards = [s.card for s in all_strategies()]
    assert len(cards) == 41
    assert [card.group for card in cards] == sorted((c.group for c in cards), key=list(GROUPS).index)
    counts = {group: sum(card.group == group for card in cards) for group in GROUPS}
    assert list(counts.values()) == [2, 22, 5, 1, 1, 1, 1, 1, 4, 1, 1, 1]
    assert {c.name for c in cards if c.kind != "inference"} == {
        "graph-of-thoughts",
        "reverse-cot",
        "ape",
        "opro",
    }
    assert len({c.arxiv for c in cards if c.arxiv}) == 40  # GPT-2's report is not there
    # the survey's table leaves these seven out
    assert {c.name for c in cards if not c.turns} == {
        "instance-adaptive", "dag-path", "layer-of-thoughts", "narrative-of-thought", "buffer-of-thoughts", "cd-cot",
        "reverse-cot",
    }  # fmt: skip


@pytest.mark.parametrize("name", [s.card.name for s in all_strategies()])
def test_every_strategy_says_what_it_is(name: str) -> None:
    found = get_strategy(name)
    assert getattr(strategies, name.replace("-", "_")) is found
    assert found.__doc__ and "Calls" in found.__doc__ and "Source" in found.__doc__
    for field, info in found.Options.model_fields.items():
        assert info.description, f"{name}.{field} has no description"


@pytest.mark.parametrize(
    "name", [s.card.name for s in all_strategies() if s.card.name != "instance-adaptive"]
)
def test_every_strategy_keeps_its_trace_and_its_budget(name: str, tmp_path: Path) -> None:
    """The trace has every call that the meter counted, survives the disk, and a budget of one call less ends it."""
    question = "a square, then a circle" if name == "reverse-cot" else "What is 2 + 2?"
    options = {"answer": "text" if name == "reverse-cot" else "number", **NEEDED.get(name, {})}
    if "unprotected" in get_strategy(name).Options.model_fields:
        options["unprotected"] = unprotected
    model = lm.scripted(Script(), score=lambda r: [0.0] * len(r.continuations))
    trace = get_strategy(name)(model, question, **options)
    assert trace.calls + trace.prepared == model.meter.spent.calls > 0
    trace.save(tmp_path / "trace.json")
    again = Trace.read(tmp_path / "trace.json")
    assert again == trace or again.to_dict() == trace.to_dict()
    tight = lm.scripted(Script(), budget=lm.Budget(calls=model.meter.spent.calls - 1), score=model._score)  # type: ignore[attr-defined]
    with pytest.raises(lm.BudgetError) as caught:
        get_strategy(name)(tight, question, **options)
    assert tight.meter.spent.calls < model.meter.spent.calls
    assert caught.value.trace.error  # type: ignore[attr-defined]


def test_mistakes_are_one_line_that_names_the_field() -> None:
    model = lm.scripted(Script())
    for call, said in {
        lambda: get_strategy(
            "self-consistancy"
        ): "strategy: 'self-consistancy' is unknown (did you mean 'self-consistency'?)",
        lambda: strategies.self_consistency(
            model, "?", sample=3
        ): "sample: no such option (did you mean 'samples'?)",
        lambda: strategies.self_consistency(model, "?", samples=0): "samples: is 0;",
        lambda: strategies.zero_shot(model, "  "): "question: is empty",
        lambda: strategies.zero_shot(model, "?", score=True): "choices: is empty",
        lambda: strategies.react(
            model, "?", tools="calculater"
        ): "tools: 'calculater' is unknown (did you mean 'calculator'?)",
        lambda: strategies.auto_cot(model, "?"): "pool:",
        lambda: strategies.graph_of_thoughts(
            model, "?", plan="generate:3,merge"
        ): "plan: 'merge' is no operation",
        lambda: strategies.rag(model, "?", documents=[]): "documents: there are none",
        lambda: strategies.few_shot(model, "?", demos=[{"q": 1}]): "demos: a row has the columns q;",
    }.items():
        with pytest.raises(cuelight.CuelightError) as caught:
            call()
        assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    with pytest.raises(AttributeError):
        strategies.nothing_of_this_name  # noqa: B018


def test_strategies_are_listed_when_called_and_no_method_of_tune() -> None:
    from cuelight.methods.cards import method_names

    assert len(cuelight.strategies()) == 41 and cuelight.strategies()[0]["name"] == "zero-shot"
    assert "self-consistency" not in method_names() and "zero-shot" in method_names()
    assert "tree_of_thoughts" in dir(strategies)


def test_listing_strategies_brings_in_nothing_heavy() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'pandas', 'sklearn', 'networkx') if m in sys.modules]"
    code = f"import sys, cuelight; cuelight.strategies(); cuelight.strategies.react; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_samples_of_one_prompt_are_draws_of_their_own(tmp_path: Path) -> None:
    """With a cache, the same prompt asked again in a run is another sample, and the whole run again costs nothing."""
    counter = iter(range(1000))
    model = lm.scripted(lambda r: f"The answer is {next(counter)}.", cache=str(tmp_path))
    first = strategies.self_consistency(model, "?", samples=3, answer="number", likelihood=False)
    assert model.meter.spent.calls == 3
    assert len({step.text for step in first.steps if step.kind == "call"}) == 3
    second = strategies.self_consistency(model, "?", samples=3, answer="number", likelihood=False)
    assert model.meter.spent.calls == 3 and second.answer == first.answer
    assert all(step.cached for step in second.steps if step.kind == "call")


# ---- answers, documents, tools ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "choices", "answer"),
    [
        ("3 + 4 = 7. The answer is $1,234.50.", "number", (), "1234.50"),
        ("first 3, then 12", "number", (), "12"),
        ("The answer is 7, not 8.", "number", (), "7"),
        ("#### -5", "number", (), "-5"),
        ("The answer is 1/2", "number", (), "0.5"),
        ("no idea", "number", (), None),
        ("The answer is (B).", "choice", ("A)5", "B)6"), "B)6"),
        ("Options (A) and (C); so (C)", "choice", (), "C"),
        ("I would say seven", "choice", ("five", "seven"), "seven"),
        ("It is true. The answer is no.", "yes-no", (), "no"),
        ("Mary went there.\nThe answer is bathroom.", "text", (), "bathroom"),
        ("Thinking...\nthe kitchen", "text", (), "the kitchen"),
        ("", "text", (), None),
    ],
)
def test_answers_are_read(text: str, kind: Any, choices: tuple[str, ...], answer: str | None) -> None:
    assert extract(text, kind, choices) == answer


def test_answers_are_compared() -> None:
    assert same("72.0", "72", "number") and same("$1,000", "1000", "number") and not same("7", "8", "number")
    assert same("0.3333", "1/3", "number") and not same(None, "1", "number")
    assert same("B)6", "B", "choice") and same("(B)", "B", "choice") and not same("A)5", "B", "choice")
    assert (
        same("The Kitchen.", "kitchen") and same("True", "yes", "yes-no") and not same("no", "yes", "yes-no")
    )
    assert code_in("Here:\n```python\nx = 1\n```\nDone") == "x = 1" and code_in("x = 1\nQ: next") == "x = 1"


def test_documents_are_found_by_words_and_by_title(tmp_path: Path) -> None:
    library = Documents.read(DOCUMENTS)
    assert [p.title for p in library.search("who built the bridge", 2)] == ["Old bridge"]
    assert library.search("qwertz") == []
    assert Documents.read(DOCUMENTS, "words").search("eggs and sugar", 1)[0].title == "Cake"
    (tmp_path / "one.txt").write_text("A first sentence is here. " * 30 + "\n\nThe last part.")
    parts = Documents.read(tmp_path, words=20).passages
    assert {p.title for p in parts} == {"one"} and all(len(p.text.split()) <= 20 for p in parts)
    assert parts[0].text.endswith(".") and parts[-1].text == "The last part."
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no text files"):
        Documents.read(tmp_path / "empty")
    pd.DataFrame({"title": ["a"], "body": ["text of a"]}).to_csv(tmp_path / "t.csv", index=False)
    assert Documents.read(tmp_path / "t.csv").passages[0].title == "a"


def test_tools_really_work() -> None:
    assert calculate("3 x (4+5)^2 - 1,000") == -757
    for wrong in ("__import__('os')", "9**9**9", "1/0", "a + 1", "2 +"):
        with pytest.raises(ValueError, match=r"\S"):
            calculate(wrong)
    box = toolbox(Documents.read(DOCUMENTS), unprotected=unprotected)
    assert box["calculator"].run("7 * 6") == "42" and box["calculator"].run("7 *").startswith("error")
    assert box["python"].run("x = 20\nx * 2 + 2") == "42" and box["python"].run("1 / 0").startswith(
        "error: ZeroDivision"
    )
    assert box["lookup"].run("stone") == "error: search for a page first"
    assert box["search"].run("old bridge").startswith("(Old bridge)")
    assert box["lookup"].run("bridge").startswith("(result 1 of 2)")
    assert box["lookup"].run("bridge") == "(result 2 of 2) The bridge is of stone."
    assert box["lookup"].run("bridge") == "no more results"
    assert box["search"].run("Rivr").startswith("could not find [Rivr]; similar: River")


# ---- new tasks --------------------------------------------------------------------------------------------------


def test_zero_shot_scores_choices_and_calibrates() -> None:
    def score(request: lm.Request) -> list[float]:
        return [-1.0, -2.0] if "N/A" not in request.prompt else [-0.5, -3.0]

    choices = ("good", "bad")
    model = lm.scripted(Script(), score=score)
    assert strategies.zero_shot(model, "Dull?", choices=choices, score=True).answer == "good"
    calibrated = strategies.zero_shot(model, "Dull?", choices=choices, score=True, calibrate=True)
    assert calibrated.answer == "bad" and calibrated.calls == 2


def test_few_shot_puts_the_nearest_example_last() -> None:
    script = Script()
    demos = [("How many cats are there?", "3"), ("Where is the train to Rome?", "gone")]
    trace = play("few-shot", script, "How many cats sleep there?", demos=demos)
    assert trace.calls == 1
    assert (
        script.seen[0].index("Rome")
        < script.seen[0].index("cats are there")
        < script.seen[0].index("cats sleep")
    )


# ---- reasoning --------------------------------------------------------------------------------------------------


def test_chain_of_thought_is_one_call_and_two_without_examples() -> None:
    script = Script(("Therefore", "42"), otherwise="6 times 7 is something")
    assert play("chain-of-thought", Script()).calls == 1
    trace = play("chain-of-thought", script, demos=[])
    assert trace.calls == 2 and trace.answer == "42"
    assert "6 times 7 is something" in script.seen[1]


def test_self_consistency_votes_and_breaks_ties() -> None:
    votes = ("The answer is 1.", "The answer is 2.", "The answer is 2.", "no answer")
    trace = play("self-consistency", Script((".", votes)), samples=4)
    assert (trace.answer, trace.calls, trace.confidence) == ("2", 4, 0.5)
    tie = ("The answer is 1.", "The answer is 2.")
    assert play("self-consistency", Script((".", tie)), samples=2).answer == "1"  # first seen

    def score(request: lm.Request) -> list[float]:
        return [-1.0 if "is 2" in request.continuations[0] else -9.0]

    scored = play("self-consistency", Script((".", tie)), samples=2, score=score)
    assert (scored.answer, scored.calls) == ("2", 4)


def test_a_vote_over_copies_at_temperature_0_is_one_chain() -> None:
    def by_prompt(request: lm.Request) -> str:
        return f"The answer is {len(request.text) % 97}."

    model = lm.scripted(by_prompt)
    chain = strategies.chain_of_thought(model, "Why?", answer="number")
    assert (
        strategies.self_consistency(model, "Why?", samples=5, temperature=0, answer="number").answer
        == chain.answer
    )


def test_majority_is_over_answers_in_one_form() -> None:
    assert majority(["The Kitchen", "kitchen.", "hall", None]) == (
        "The Kitchen",
        {"The Kitchen": 2, "hall": 1},
    )
    assert majority([None]) == (None, {})


def test_auto_cot_writes_one_example_for_each_cluster_and_echo_unites_them() -> None:
    script = Script(("Therefore", "7"), ("step by step", "One. Two."))
    trace = play("auto-cot", script, pool=POOL, count=2, encoder="words")
    assert (trace.calls, trace.prepared) == (1, 4)
    assert script.seen[-1].count("The answer is 7.") == 2
    united = play(
        "echo",
        Script(("Therefore", "7"), ("step by step", "One.")),
        pool=POOL,
        count=2,
        rounds=3,
        encoder="words",
    )
    assert (united.calls, united.prepared) == (1, 4 + 2 * 2 * 3)
    rewritten = [s for s in united.steps if s.role == "round 1"]
    assert len(rewritten) == 2 and all("The answer is 7." in s.prompt for s in rewritten)


def test_auto_cot_passes_by_long_rationales() -> None:
    long = "One. Two. Three. Four. Five. Six."
    script = Script(("Therefore", "7"), ("Tom.*step by step", "Short."), ("step by step", long))
    trace = play(
        "auto-cot",
        script,
        pool=["Where is Tom?", "Where is Tom now?", "Where is Kim?"],
        count=1,
        encoder="words",
    )
    assert "Short." in script.seen[-1] and long not in script.seen[-1]
    assert trace.prepared >= 2


def test_logicot_rewrites_the_step_whose_negation_stands() -> None:
    script = Script(
        ("Which argument stands.*", ["A", "B", "A"]),
        ("Argue in one", "because"),
        ("Assume this step", "it is not"),
        ("The step is wrong", "Second, mended."),
        ("Go on", "The answer is 9."),
        otherwise="First. Second. The answer is 5.",
    )
    trace = play("logicot", script)
    assert trace.answer == "9"
    # draft, 3 for the first, 3 + rewrite + continuation for the second, 3 for the last
    assert trace.calls == 1 + 3 + 5 + 3
    assert [s.role for s in trace.steps][4:9] == ["for", "against", "verdict", "rewrite", "reasoning"]


def test_tree_of_thoughts_finds_the_planted_optimum_by_breadth() -> None:
    """Every state has two children; the best leaf is below a middling one, so a breadth of one misses it."""
    values = {("a",): 2.0, ("b",): 1.0, ("a", "c"): 1.0, ("a", "d"): 0.5, ("b", "c"): 0.1, ("b", "d"): 9.0}
    opened: list[tuple[str, ...]] = []

    def propose(state: tuple[str, ...]) -> list[str]:
        opened.append(state)
        return ["c", "d"] if state else ["a", "b"]

    def best(breadth: int) -> str:
        trace = play(
            "tree-of-thoughts",
            Script(),
            breadth=breadth,
            depth=2,
            propose=propose,
            value=lambda s: values[tuple(s)],
        )
        return next(s.text for s in trace.steps if s.role == "best")

    assert best(2) == "b\nd" and best(1) == "a\nc"
    assert opened[:3] == [(), ("a",), ("b",)]


def test_tree_of_thoughts_backtracks_in_depth() -> None:
    children = {(): ["a", "b"], ("a",): ["x"], ("b",): ["the answer is 8"], ("a", "x"): []}
    value = {("a",): 5.0, ("b",): 3.0, ("a", "x"): 0.1, ("b", "the answer is 8"): 4.0}
    trace = play(
        "tree-of-thoughts", Script(), search="dfs", depth=3, threshold=1.0,
        propose=lambda s: children[tuple(s)], value=lambda s: value[tuple(s)],
    )  # fmt: skip
    assert trace.answer == "8" and trace.calls == 0
    assert [s.role for s in trace.steps if s.kind == "note"] == ["pruned", "backtrack", "best"]


def test_tree_of_thoughts_asks_for_proposals_and_ratings() -> None:
    rate = Script(
        ("List 2", "1. try x\n2. try y"), (r"try y\nHow likely", "sure"), ("How likely", "impossible")
    )
    trace = play("tree-of-thoughts", rate, depth=1, proposals=2, breadth=1, ratings=3)
    assert trace.calls == 1 + 2 * 3 + 1
    assert next(s for s in trace.steps if s.role == "level").data["data"] == {"try x": 0.003, "try y": 60.0}
    vote = Script(("List 2", "1. try x\n2. try y"), ("Which choice", "the best choice is 2."))
    voted = play("tree-of-thoughts", vote, depth=1, proposals=2, breadth=1, ratings=3, evaluation="vote")
    assert voted.calls == 1 + 3 + 1 and next(s for s in voted.steps if s.role == "best").text == "try y"


def test_graph_of_thoughts_runs_its_operations_in_order() -> None:
    marks = ["3", "9", "5"]
    script = Script(
        ("Score:", marks), ("Merge", "merged"), ("mistakes", "refined"), ("step by step", ["t1", "t2", "t3"])
    )
    trace = play("graph-of-thoughts", script)
    assert trace.calls == 3 + 3 + 1 + 1 + 1
    kept = next(s for s in trace.steps if s.role == "keep:2")
    assert kept.data["data"] == ["t2", "t3"]
    merge = next(s for s in trace.steps if s.role == "aggregate" and s.kind == "call")
    assert "t1" not in merge.prompt and "t2" in merge.prompt and "Solution: refined" in script.seen[-1]
    two = {"a": ("generate:1", []), "b": ("generate:1", []), "c": ("aggregate", ["a", "b"])}
    assert play("graph-of-thoughts", Script(), graph=two).calls == 4
    with pytest.raises(ConfigError, match="has a cycle"):
        play("graph-of-thoughts", Script(), graph={"a": ("score", ["b"]), "b": ("score", ["a"])})


def test_system_2_attention_answers_without_the_original() -> None:
    script = Script(("Take from this text", "Tom has 3 apples. Question: how many?"))
    trace = play("system-2-attention", script, "How many apples?", context="I hate Tom. Tom has 3 apples.")
    assert trace.calls == 2 and "hate" in script.seen[0] and "hate" not in script.seen[1]


def test_thread_of_thought_takes_two_calls_and_the_second_sees_the_first() -> None:
    script = Script(("Therefore", "12"), otherwise="Part one says little.")
    trace = play("thread-of-thought", script, context="Much text.")
    assert (trace.calls, trace.answer) == (2, "12") and "Part one says little." in script.seen[1]


def test_chain_of_table_changes_a_real_table() -> None:
    table = pd.DataFrame(
        {"Name": ["Ann", "Bob", "Cid"], "Country": ["ES", "IT", "IT"], "Age": ["30", "9", "100"]}
    )
    script = Script(
        ("Next operation", ["select_row", "sort_by", "END"]),
        ("Operation: select_row", "2, 3"),
        ("Operation: sort_by", "Age, descending"),
        otherwise="The answer is Cid.",
    )
    trace = play("chain-of-table", script, "Who of Italy is the oldest?", table=table, answer="text")
    assert (trace.answer, trace.calls) == ("Cid", 2 * 2 + 1 + 1)
    assert script.seen[-1].index("Cid") < script.seen[-1].index("Bob") and "Ann" not in script.seen[-1]
    assert list(operate(table, "sort_by", "Age")["Name"]) == ["Bob", "Ann", "Cid"]  # as numbers, not as text
    assert operate(table, "group_by", "country").to_dict("list") == {"Country": ["IT", "ES"], "count": [2, 1]}
    assert list(operate(table, "select_column", "age, Name").columns) == ["Age", "Name"]
    assert list(operate(table, "add_column", "Old: no; no; yes")["Old"]) == ["no", "no", "yes"]
    for name, given in (
        ("select_row", "9"),
        ("select_column", "Size"),
        ("add_column", "Old: yes"),
        ("sort_by", "Size"),
    ):
        with pytest.raises(DataError):
            operate(table, name, given)
    refused = play("chain-of-table", Script(("Next op", "sort_by"), ("Arguments", "Size")), table=table)
    assert refused.calls == 3 and any(s.role == "refused" for s in refused.steps)


def test_self_refine_returns_the_best_version_not_the_last() -> None:
    script = Script(
        ("Criticise", ["Score: 4", "Score: 8", "Score: 2"]),
        ("better answer", ["The answer is 2.", "The answer is 3."]),
        otherwise="The answer is 1.",
    )
    trace = play("self-refine", script, rounds=2)
    assert (trace.answer, trace.calls) == ("2", 2 + 2 * 2)
    assert "The answer is 1." in script.seen[4] and "The answer is 2." in script.seen[4]  # the history
    assert play("self-refine", Script(("Criticise", "Score: 9")), rounds=4).calls == 2  # good enough


def test_code_prompting_does_not_run_its_code() -> None:
    script = Script(("Read the code", "The answer is yes."), otherwise="raise SystemExit")
    trace = play("code-prompting", script, answer="yes-no", context="If it rains we stay.")
    assert (trace.answer, trace.calls) == ("yes", 2) and "raise SystemExit" in script.seen[1]


def test_logic_of_thought_closes_implications() -> None:
    closed = closure([("A", "B"), ("B", "C")])
    assert {("A", "C"), ("~C", "~A"), ("~B", "~A"), ("~C", "~B")} <= closed and len(closed) == 6
    assert closure([("not not A", "~B")]) == {("A", "~B"), ("B", "~A")}
    assert closure([("A", "A")]) == set()
    script = Script(
        ("Propositions and arrows", "A: rain\nB: wet\nC: slip\nA -> B\nB -> C"),
        ("Put each", "No slip, no rain."),
    )
    trace = play("logic-of-thought", script)
    assert trace.calls == 3 and "No slip, no rain." in script.seen[-1]
    assert set(next(s for s in trace.steps if s.role == "closure").data["data"]) == {
        "A -> C", "~B -> ~A", "~C -> ~A", "~C -> ~B",
    }  # fmt: skip
    voted = play("logic-of-thought", Script(("Propositions", "none")), answer_with="self-consistency")
    assert voted.calls == 1 + 8  # nothing new to verbalise


def test_dag_paths_run_from_sources_to_sinks() -> None:
    graph = acyclic([("a", "b", True), ("b", "c", True), ("b", "d", True), ("e", "d", True)])
    paths = end_to_end(graph, 100)
    assert paths == [["a", "b", "c"], ["a", "b", "d"], ["e", "d"]]
    assert compressed(paths) == "a->b->{c, d}\ne->d"
    assert _edges("a->b->c") == [("a", "b", True), ("b", "c", True)]
    import networkx as nx

    for edges in (
        [("a", "b", True), ("b", "c", True), ("c", "a", True)],
        [("a", "b", False), ("b", "c", False), ("c", "a", False)],
    ):
        made = acyclic(edges)
        assert nx.is_directed_acyclic_graph(made) and made.number_of_edges() == 3
    trace = play("dag-path", Script(), "Edges: 1->2, 2->3. Distance from 1 to 3?")
    assert trace.calls == 1 and next(s.text for s in trace.steps if s.role == "paths") == "1->2->3"


def test_layer_of_thoughts_filters_layer_by_layer() -> None:
    script = Script(
        ("keywords", "bridge, river"),
        ("Write 2 conditions", "speaks of a bridge\nnames a year"),
        (r"Text \(Old bridge\).*names a year", "yes"),
        (r"Text \(River\).*", "no"),
        ("Does the text", "yes"),
    )
    trace = play("layer-of-thoughts", script, "When was the bridge built?", documents=DOCUMENTS)
    notes = {s.role: s.data["data"] for s in trace.steps if s.kind == "note"}
    assert notes["layer 1"] == ["Old bridge", "River"] and notes["layer 2"] == ["Old bridge"]
    assert trace.answer == "Old bridge" and trace.calls == 2 + 2 * 2 + 1
    strict = play("layer-of-thoughts", script, "?", documents=DOCUMENTS, rule="all")
    assert next(s for s in strict.steps if s.role == "layer 1").data["data"] == ["Old bridge"]


def test_narrative_of_thought_orders_events_and_breaks_cycles() -> None:
    script = Script((".", "First e2, then e1, last e3.\n# Order:\nedges = [(e2, e1), (e1, e3), (e3, e2)]"))
    trace = play("narrative-of-thought", script, "Order:\n- eat\n- cook\n- wash up", answer="text")
    assert (trace.answer, trace.calls) == ("cook -> eat -> wash up", 1)
    assert next(s.text for s in trace.steps if s.role == "narrative").startswith("First e2")


def test_buffer_of_thoughts_takes_a_template_that_fits_and_learns(tmp_path: Path) -> None:
    buffer = tmp_path / "buffer.json"
    script = Script(
        ("Write down its kind", "quantities and prices in a story name each quantity"),
        ("in one sentence", "A wholly new idea"),
    )
    trace = play("buffer-of-thoughts", script, encoder="words", delta=0.3, buffer=buffer)
    chosen = next(s for s in trace.steps if s.role == "template" and s.kind == "note")
    assert chosen.data["fits"] and "Quantities and prices" in script.seen[1] and trace.calls == 3
    assert json.loads(buffer.read_text())[-1] == "A wholly new idea"
    play("buffer-of-thoughts", script, encoder="words", delta=0.3, buffer=buffer)
    assert json.loads(buffer.read_text()).count("A wholly new idea") == 1  # too like one that is there
    general = play("buffer-of-thoughts", Script(), encoder="words", delta=0.99, learn=False)
    assert general.calls == 2 and not next(s for s in general.steps if s.role == "template").data["fits"]


def test_cd_cot_keeps_rephrasings_that_keep_the_answer() -> None:
    script = Script(
        ("Rewritten A:", ["Two. The answer is 2.", "Bad. The answer is 9.", "So two. The answer is 2."])
    )
    trace = play(
        "cd-cot",
        script,
        demos=[("1 + 1", "The sky is blue. 1 + 1 = 2.", "2")],
        rephrasings=3,
        sets=2,
        votes=2,
    )
    assert (trace.calls, trace.prepared, trace.confidence) == (4, 3, 1.0)
    assert next(s for s in trace.steps if s.role == "kept").data["data"] == 2
    assert "sky" not in script.seen[-1] and "Bad." not in script.seen[-1]


def test_reverse_cot_poses_questions_with_computed_answers() -> None:
    trace = play(
        "reverse-cot", Script((".", "What is it?")), "a circle, then a triangle", answer="text", start=3
    )
    records = json.loads(trace.answer or "")
    asks = {r["asks"]: r["answer"] for r in records[:-1]}
    assert asks == {
        "the diameter of circle A": "6",
        "the hypotenuse of triangle B": "10",
        "the area of triangle B": "24",
    }
    assert len(records[-1]["reasoning"]) == 2 and records[0]["drawing"].startswith("<svg")
    with pytest.raises(ConfigError, match="names no figure"):
        play("reverse-cot", Script(), "a poem")


def test_terse_prompts_are_one_call() -> None:
    for name in ("chain-of-draft", "chain-of-symbol"):
        assert play(name, Script()).calls == 1
    script = Script()
    play("chain-of-draft", script, words=3)
    assert "3 words at most" in script.seen[0]
    assert play("chain-of-draft", Script((".", "2 * 2 = 4\n#### 4"))).answer == "4"


# ---- hallucination ----------------------------------------------------------------------------------------------


def test_rag_retrieves_and_mixes() -> None:
    script = Script()
    trace = play("rag", script, "Who built the old bridge?", documents=DOCUMENTS, answer="text", k=2)
    assert trace.calls == 1 and "Marta Klein" in script.seen[0] and "cake" not in script.seen[0].lower()

    def score(request: lm.Request) -> list[float]:
        return [
            math.log(0.9 if c == " Klein" and "Old bridge:" in request.prompt else 0.1)
            for c in request.continuations
        ]

    drafts = Script((r"Old bridge:", "Klein"), (r"River:", "Nobody"))
    mixed = play(
        "rag",
        drafts,
        "Who built the bridge over the river Ahr?",
        documents=DOCUMENTS,
        answer="text",
        k=2,
        mix="sequence",
        score=score,
    )
    assert (mixed.answer, mixed.calls) == ("Klein", 4) and mixed.confidence and mixed.confidence > 0.5


def test_react_uses_tools_and_mends_what_can_not_be_read() -> None:
    script = Script(
        (".", ["I look.\nAction 1: search[old bridge]", "Hm.\nAction 2: fly[away]", "1881.\nAction 3: calculator[1881 + 10]",
               "Done.\nAction 4: finish[1891]\nObservation 4: invented"]),
    )  # fmt: skip
    trace = play(
        "react", script, "When was the bridge ten years old?", documents=DOCUMENTS, unprotected=unprotected
    )
    assert (trace.answer, trace.calls) == ("1891", 4)
    seen = [s.text for s in trace.steps if s.role == "observation"]
    assert seen[0].startswith("(Old bridge)") and seen[1].startswith("error: no action") and seen[2] == "1891"
    assert "Observation 3: 1891" in script.seen[3]
    own = play(
        "react",
        Script((".", ["Action 1: double[4]", "Action 2: finish[8]"])),
        tools={"double": lambda t: str(2 * int(t))},
    )
    assert own.answer == "8"
    assert play("react", Script((".", "no action")), steps=3).calls == 3


def test_chain_of_verification_checks_without_the_draft() -> None:
    rules = (
        ("Write 2 questions", "1. Is Paris big?\n2. Is Rome old?"),
        ("Mend the draft", "The answer is 7."),
    )
    script = Script(*rules, otherwise="DRAFT")
    trace = play("chain-of-verification", script, checks=2)
    assert (trace.calls, trace.answer) == (3 + 2, "7")
    checks = [s.prompt for s in trace.steps if s.role == "check"]
    assert checks == ["Q: Is Paris big?\nA:", "Q: Is Rome old?\nA:"]
    joint = play("chain-of-verification", Script(*rules, otherwise="DRAFT"), checks=2, joint=True)
    assert all("DRAFT" in s.prompt for s in joint.steps if s.role == "check")


def test_chain_of_note_may_say_unknown() -> None:
    script = Script((".", "Document 1 gives context.\nThe answer is unknown."))
    trace = play("chain-of-note", script, "Who built the bridge?", documents=DOCUMENTS, answer="number")
    assert (trace.answer, trace.calls) == ("unknown", 1)
    assert next(s.text for s in trace.steps if s.role == "notes").startswith("Document 1 gives context")


def test_chain_of_knowledge_corrects_only_on_disagreement() -> None:
    assert play("chain-of-knowledge", Script(), documents=DOCUMENTS, samples=5).calls == 5
    script = Script(
        ("Which sources", "both"), ("search query", "old bridge"), ("Rewrite the sentence", "It was built in 1881."),
        (r"built in 1881.*\nA:$", "The answer is 1881."),
        (r"A:$", [f"It was built in {y}. It is long. The answer is {y}." for y in (1800, 1801, 1802)]),
    )  # fmt: skip
    trace = play(
        "chain-of-knowledge", script, "When was the bridge built?", documents={"facts": DOCUMENTS}, samples=3
    )
    assert (trace.answer, trace.calls) == ("1881", 3 + 1 + 2 * 2 + 1)
    rewrites = [s.prompt for s in trace.steps if s.role == "rewrite"]
    assert (
        "Marta Klein" in rewrites[0] and "It was built in 1881." in rewrites[1]
    )  # corrected before the next


# ---- the other areas --------------------------------------------------------------------------------------------


def test_active_prompt_measures_uncertainty() -> None:
    answers = ["1", "1", "2", "3"]
    assert uncertainty(answers) == 0.75
    assert uncertainty(answers, "entropy") == pytest.approx(
        -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    )
    assert uncertainty(answers, "variance") == pytest.approx(0.6875)
    assert uncertainty(["a", "a", None]) == pytest.approx(2 / 3)


def test_active_prompt_shows_what_the_model_is_unsure_of() -> None:
    unsure = [f"The answer is {k}." for k in range(10)]
    script = Script(("Q: hard", unsure), ("Q: easy", "The answer is 1."))
    pool = [("easy?", "", "1"), ("hard?", "By a person.", "5")]
    trace = play("active-prompt", script, pool=pool, count=1, samples=4)
    assert (trace.calls, trace.prepared) == (1, 8)
    assert "By a person. The answer is 5." in script.seen[-1] and "easy?" not in script.seen[-1]
    with pytest.raises(DataError, match="has no rationale; write one"):
        play("active-prompt", Script(), pool=pool, count=2)


def test_ape_keeps_the_instruction_that_scores_best() -> None:
    script = Script(
        ("instruction was", ["Say four.", "Add the numbers.", "Add the numbers.", "Be kind."]),
        (r"Add the numbers\..*Input: 1 \+ 1", "2"), (r"Add the numbers\..*Input: 2 \+ 2", "4"),
        (r"Add the numbers\..*Input: 3 \+ 3", "6"), (r"Add the numbers\..*Input: 4 \+ 4", "8"),
        otherwise="none",
    )  # fmt: skip
    trace = play("ape", script, examples=PAIRS, candidates=4, shown=2)
    chosen = next(s for s in trace.steps if s.role == "instruction")
    assert chosen.text == "Add the numbers." and script.seen[-1].startswith("Add the numbers.")
    assert trace.calls == 1 and trace.prepared <= 4 + 3 * 2  # no duplicate is scored


def test_opro_shows_scores_in_ascending_order_and_keeps_the_best() -> None:
    script = Script(
        ("higher score", ["[Think hard.]", "[Think hard.]", "[Guess.]", "[Guess.]"]),
        (r"Think hard\.$", "The answer is 4."), (r"A: ", "The answer is 0."),
    )  # fmt: skip
    trace = play("opro", script, examples=[("2 + 2", "4")], steps=2, proposals=2)
    assert next(s for s in trace.steps if s.role == "instruction").text == "Think hard."
    assert trace.prepared == 2 + 2 * 2 + 2  # two to start with, four proposals, two of them new
    second = [s.prompt for s in trace.steps if s.role == "propose"][-1]
    assert second.index("score: 0") < second.index("text: Think hard.\nscore: 100")
    assert trace.answer == "4"


def test_art_stops_at_tools_and_inserts_what_they_give() -> None:
    script = Script(
        (".", ["Q1: [calculator] 6 * 7\n#1: invented", "Q2: [generate] nothing\nQ3: [EOQ]\nAns: 42"])
    )
    trace = play("art", script, unprotected=unprotected)
    assert (trace.answer, trace.calls) == ("42", 2)
    assert "Q1: [calculator] 6 * 7\n#1: 42\n" in script.seen[1] and "invented" not in script.seen[1]
    loops = play("art", Script((".", "Q1: [calculator] 1")), steps=3, unprotected=unprotected)
    assert loops.answer is None and loops.calls == 4


def test_contrastive_examples_keep_the_words_and_move_the_numbers() -> None:
    import random

    wrong, answer = shuffled("Ida is 9 + 6 = 15. Together 15 + 9 = 24.", "24", random.Random(0))
    assert re.sub(r"\d+", "#", wrong) == "Ida is # + # = #. Together # + # = #."
    assert wrong != "Ida is 9 + 6 = 15. Together 15 + 9 = 24." and answer != "24"
    assert sorted(re.findall(r"\d+", wrong)) == sorted(["9", "6", "15", "15", "9", "24"])
    script = Script((".", "The answer is 3.\nWrong explanation: The answer is 8."))
    assert play("contrastive-cot", script).answer == "3" and script.seen[0].count("Wrong explanation:") == 3
    assert play("contrastive-cot", Script(), samples=3).calls == 3


def test_emotion_prompt_takes_the_sentence_that_validates_best() -> None:
    from cuelight.methods.strategies.emotion_prompt import STIMULI

    assert len(STIMULI) == 11
    script = Script((re.escape(STIMULI[6]), "The answer is 2."), otherwise="The answer is 0.")
    trace = play("emotion-prompt", script, examples=[("1 + 1", "2")])
    assert (trace.calls, trace.prepared) == (1, 11) and STIMULI[6] in script.seen[-1]


def test_scratchpad_reads_only_behind_the_closing_marker() -> None:
    assert play("scratchpad", Script((".", "x = 7\n</scratch>\nThe answer is 9."))).answer == "9"
    assert play("scratchpad", Script((".", "x = 7, the answer is 7"))).answer is None


def test_program_of_thoughts_runs_repairs_and_falls_back() -> None:
    good = play("program-of-thoughts", Script((".", "a = 6\nans = a * 7")), unprotected=unprotected)
    assert (good.answer, good.calls) == ("42", 1)
    mended = Script(("This program fails: NameError", "ans = 5"), otherwise="ans = unknown_name")
    trace = play("program-of-thoughts", mended, unprotected=unprotected)
    assert (trace.answer, trace.calls) == ("5", 2)
    broken = Script(("in ans", "while True: pass"), otherwise="The answer is 3.")
    fell = play("program-of-thoughts", broken, seconds=0.3, unprotected=unprotected)
    assert (fell.answer, fell.calls) == ("3", 3)
    assert "stopped after 0.3 s" in str([s.data for s in fell.steps if s.role == "executed"])
    assert (
        play(
            "program-of-thoughts", broken, seconds=0.3, fallback=False, repair=False, unprotected=unprotected
        ).answer
        is None
    )


def test_structured_cot_returns_code_that_passes() -> None:
    assert pass_at_k(2, 1, 1) == 0.5 and pass_at_k(5, 0, 3) == 0 and pass_at_k(5, 5, 2) == 1
    script = Script(
        ("```python\n$", ["def f(x): return x", "def f(x): return x + 1"]), otherwise="1: return x + 1"
    )
    trace = play(
        "structured-cot", script, "add one", tests="assert f(1) == 2", samples=2, unprotected=unprotected
    )
    assert trace.answer == "def f(x): return x + 1" and (trace.calls, trace.confidence) == (3, 0.5)


@pytest.mark.parametrize(
    ("program", "answers", "result", "calls"),
    [
        ("ans = 2 + 2", [], "4", 1),
        ("x = is_big('elephant')\nans = 1 if x else 0", ["{'x': True}"], "1", 2),
        (
            "ans = 0\nfor w in ['fox', 'oak', 'cat']:\n    if is_animal(w):\n        ans += 1",
            ["True", "no", "True"],
            "2",
            4,
        ),
        ("n = 3\nwhile n > 0:\n    n -= 1\n    if n == 1: break\nans = n", [], "1", 1),
        ("def f(x):\n    return x * 2\nans = f(4)\ny = sense(ans)\nans = ans + y", ["{'y': 1}"], "9", 2),
        ("for k in guess():\n    ans = k", ["[1, 2, 7]"], "7", 2),
        ("while True:\n    pass", [], None, 1),
        ("x = (", [], None, 1),
    ],
)
def test_chain_of_code_simulates_what_can_not_be_run(
    program: str, answers: list[str], result: str | None, calls: int
) -> None:
    script = Script(("can not run this line", answers or [""]), otherwise=program)
    trace = play("chain-of-code", script, unprotected=unprotected, seconds=2)
    assert (trace.answer, trace.calls) == (result, calls)


def test_chain_of_code_shows_the_state_and_stops_asking() -> None:
    script = Script(("can not run", "{}"), otherwise="a = 5\nans = think(a)")
    trace = play("chain-of-code", script, unprotected=unprotected)
    assert (
        "State: {'a': 5}" in script.seen[1]
        and "Line: ans = think(a)" in script.seen[1]
        and trace.answer is None
    )
    endless = Script(("can not run", "True"), otherwise="while again():\n    pass")
    assert play("chain-of-code", endless, simulated=3, unprotected=unprotected).calls == 4


def test_rephrase_and_respond_shows_both_questions() -> None:
    script = Script(("Rephrase and expand this question", "CLEARER"))
    assert play("rephrase-and-respond", Script()).calls == 1
    trace = play("rephrase-and-respond", script, two_steps=True)
    assert trace.calls == 2 and "CLEARER" in script.seen[1] and "What is 2 + 2?" in script.seen[1]
    other = Script(otherwise="FROM ANOTHER")
    asked = Script()
    play("rephrase-and-respond", asked, rephraser=lm.scripted(other))
    assert len(other.seen) == 1 and "FROM ANOTHER" in asked.seen[0]


def test_step_back_asks_the_general_question_first() -> None:
    script = Script((r"Step back:$", "Which law is it?\nPV = nRT."))
    trace = play("step-back", script)
    assert trace.calls == 2 and "Which law is it?" in script.seen[1] and "PV = nRT." in script.seen[1]
    apart = play("step-back", script, apart=True, documents=DOCUMENTS)
    assert apart.calls == 3 and [s.role for s in apart.steps if s.kind == "call"] == [
        "step back",
        "principle",
        "answer",
    ]


def test_demos_come_from_tables_and_lists(tmp_path: Path) -> None:
    pd.DataFrame({"question": ["q"], "answer": ["7"]}).to_csv(tmp_path / "d.csv", index=False)
    assert demos_of(str(tmp_path / "d.csv"))[0] == ("q", "", "7")
    assert demos_of([("q", "r", "a")])[0].rationale == "r"


# ---- real models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> lm.LM:
    return lm.connect("minimind2-26m", cache=False)


def test_a_real_model_thinks_votes_and_is_scored(small: lm.LM) -> None:
    voted = strategies.self_consistency(small, "What is 2 + 2?", samples=3, answer="number", max_tokens=16)
    chains = [s for s in voted.steps if s.role == "chain"]
    assert len(chains) == 3 and len({s.text for s in chains}) > 1  # samples differ
    assert all(0 < s.usage["completion_tokens"] <= 16 for s in chains)
    scored = strategies.zero_shot(small, "Was it good?", choices=("yes", "no"), score=True)
    assert scored.answer in ("yes", "no") and scored.usage.prompt_tokens > 0
    mixed = strategies.rag(
        small, "Who built the bridge over the Ahr?", documents=DOCUMENTS, mix="sequence", max_tokens=8
    )
    assert mixed.confidence is None or 0 <= mixed.confidence <= 1


def test_saliency_is_read_from_a_real_models_attention(small: lm.LM) -> None:
    """Flows are positive, the weights get no gradient, and the model's attention is as fast afterwards as before."""
    host = small.backbone  # type: ignore[attr-defined]
    before = host.model.config._attn_implementation
    trace = strategies.instance_adaptive(
        small, "What is 2 + 2?", answer="number", max_tokens=12, triggers=("Let's think.", "Step by step:")
    )
    flows = [s.data["flows"] for s in trace.steps if s.role == "saliency"]
    assert len(flows) == 2 and all(value > 0 for flow in flows for value in flow) and flows[0] != flows[1]
    assert host.model.config._attn_implementation == before
    assert all(p.grad is None for p in host.model.parameters())
    first = strategies.instance_adaptive(
        small, "What is 2 + 2?", form="sequential", threshold=0.0, max_tokens=8
    )
    assert first.calls == 2  # the first trigger is good enough


def test_a_sentence_encoder_finds_what_words_do_not() -> None:
    library = Documents.read(DOCUMENTS, "minilm-l6")
    assert library.search("baking a dessert", 1)[0].title == "Cake"
    assert Documents.read(DOCUMENTS).search("baking a dessert") == []


@pytest.mark.skipif(unprotected, reason=why_not() or "-")
def test_a_real_model_writes_a_program_that_runs_in_the_sandbox() -> None:
    model = lm.connect("smollm2-135m", cache=False)
    trace = strategies.program_of_thoughts(
        model, "What is 12 + 30?", answer="number", chat=False, max_tokens=24, repair=False, fallback=False
    )
    executed = [s for s in trace.steps if s.role == "executed"]
    assert trace.calls == 1 and len(executed) == 1 and executed[0].text
    assert (trace.answer is None) == bool(executed[0].data.get("error"))
