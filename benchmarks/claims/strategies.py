"""The survey's claims on a small model: programs and votes against a chain of thought and a direct answer, on arithmetic.

Two sets, drawn by three seeds, the same questions for all arms: *sums* of three numbers below 100 ("What is 47 + 38 - 19?",
made here), and the word problems of *multiarith*; both take two steps.  Examples are the strategies' own three.  Whether the
model is asked as a conversation or goes on from a text is chosen beforehand, by the mean accuracy of chain of thought and
program of thoughts on sums of a seed that is not reported.

Claimed for models far larger: program of thoughts above chain of thought above a direct answer; a vote over sampled chains
at or above one chain; drafts of five words a step write fewer tokens than chains.  The control is a chain of thought whose
examples have each other's answers.  Sizes are those of one processor core: 16 sums and 6 problems a seed.  What an arm took
is told beside it: calls and tokens for a question, and cost.

    python -m benchmarks.claims.strategies            # goes on where it was interrupted: answers are in the cache
"""

from __future__ import annotations

import os
import random
from typing import Any

from benchmarks.claims.grid import SEARCH_SEED, SEEDS, arguments_of, spread
from benchmarks.common import DATA, write_result
from cuelight.lm import LM, connect
from cuelight.methods.strategy import DEMOS
from cuelight.strategy_comparison import Question, Questions, compare_strategies, read_questions

WRONG = tuple(demo._replace(answer=DEMOS[k - 1].answer) for k, demo in enumerate(DEMOS))
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero-shot": ("zero-shot", {}),
    "chain-of-thought": ("chain-of-thought", {}),
    "chain-of-draft": ("chain-of-draft", {}),
    "self-consistency": ("self-consistency", {"samples": 5, "likelihood": False}),
    "program-of-thoughts": ("program-of-thoughts", {}),
    "program alone": ("program-of-thoughts", {"repair": False, "fallback": False}),
    "swapped answers": ("chain-of-thought", {"demos": WRONG}),
}


def sums(count: int = 600) -> Questions:
    """Sums of three numbers below 100 with plus and minus; no result is negative."""
    draw = random.Random("sums")
    made: dict[str, Question] = {}
    while len(made) < count:
        a, b, c = (draw.randint(2, 99) for _ in range(3))
        first, second = (draw.choice("+-") for _ in range(2))
        value = a + (b if first == "+" else -b) + (c if second == "+" else -c)
        if value >= 0:
            text = f"What is {a} {first} {b} {second} {c}?"
            made[text] = Question(text, str(value), "number")
    return Questions("sums", tuple(made.values()), ())


def main() -> None:
    given = arguments_of(__doc__, "strategies", questions=16, problems=6, search_questions=6, tokens=48)
    os.environ.setdefault("CUELIGHT_DATA", str(DATA))
    sets = {"sums": sums(), "multiarith": read_questions("reasoning/multiarith")}
    found: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else ["smollm2-135m"]:
        model = connect(name, cache=f"{given.folder}/answers")
        tried = {
            form: [
                run["metrics"]["accuracy"]
                for arm in ("chain-of-thought", "program-of-thoughts")
                for run in runs_of(
                    model, sets["sums"], arm, form, [SEARCH_SEED], given.search_questions, given.tokens
                )
            ]
            for form in ("conversation", "text")
        }
        form = max(tried, key=lambda form: sum(tried[form]))
        print(name, tried, form, flush=True)
        found[name] = {"form": form, "search": tried, "sets": {}}
        for title, data in sets.items():
            arms = {}
            count = given.questions if title == "sums" else given.problems
            for arm in ARMS:
                runs = runs_of(model, data, arm, form, SEEDS, count, given.tokens)
                arms[arm] = spread([run["metrics"]["accuracy"] for run in runs], **took(runs))
                print(name, title, arm, arms[arm], flush=True)
            found[name]["sets"][title] = arms
    result = {
        "methods": [],
        "strategies": sorted({strategy for strategy, _ in ARMS.values()}),
        "questions": {"sums": given.questions, "multiarith": given.problems},
        "max_tokens": given.tokens,
        "models": found,
        "summary": " ".join(
            sentence(name, title, model["form"], arms, given.questions if title == "sums" else given.problems)
            for name, model in found.items()
            for title, arms in model["sets"].items()
        ),
    }
    write_result("claims", "strategies", "benchmarks.claims.strategies", result)


def runs_of(
    model: LM, data: Questions, arm: str, form: str, seeds: Any, questions: int, tokens: int
) -> list[dict[str, Any]]:
    """The runs of an arm over ``seeds``."""
    strategy, options = ARMS[arm]
    return compare_strategies(
        strategy,
        lm=model,
        data=data,
        seeds=seeds,
        questions=questions,
        shots=0,
        options={strategy: options},
        max_tokens=tokens,
        chat=form == "conversation",
        concurrency=questions,
    ).runs


def took(runs: list[dict[str, Any]]) -> dict[str, float]:
    """What an arm took for a question, means over seeds, and its cost in all."""
    means = {key: sum(run[key] for run in runs) / len(runs) for key in ("calls", "read", "written")}
    answered = sum(run["metrics"]["answered"] for run in runs) / len(runs)
    return {
        **means,
        "answered": answered,
        **{key: sum(run[key] for run in runs) for key in ("cost", "seconds")},
    }


def sentence(name: str, title: str, form: str, arms: dict[str, Any], questions: int) -> str:
    """What holds and what fails, with the figures."""
    shown = ", ".join(
        f"{arm} {100 * a['mean']:.1f} ± {100 * a['deviation']:.1f} ({a['calls']:.1f}, {a['read'] + a['written']:.0f})"
        for arm, a in arms.items()
    )

    def above(one: str, other: str, *, equal: bool = False) -> str:
        left, right = arms[one]["mean"], arms[other]["mean"]
        return "holds" if left > right or (equal and left == right) else "fails"

    fewer = arms["chain-of-draft"]["written"] < arms["chain-of-thought"]["written"]
    cost = sum(a["cost"] for a in arms.values())
    floor = ""
    if max(a["mean"] for a in arms.values()) < 0.1:
        ran = arms["program alone"]["answered"]
        floor = (
            f" Every arm is at the floor, so neither 'holds' nor 'fails' says anything of the techniques: one right "
            f"answer is {100 / (questions * len(SEEDS)):.1f} points; {100 * ran:.0f} % of the "
            "programs ran, the rest of that arm is its fallback."
        )
    return (
        f"{name}, {title}, {questions} questions a seed, asked as a {form}: accuracy in % (calls, tokens for a question): "
        f"{shown}. Program of thoughts above chain of thought {above('program-of-thoughts', 'chain-of-thought')}, above "
        f"zero-shot {above('program-of-thoughts', 'zero-shot')}; chain of thought above zero-shot "
        f"{above('chain-of-thought', 'zero-shot')}; self-consistency of 5 at or above chain of thought "
        f"{above('self-consistency', 'chain-of-thought', equal=True)}, above zero-shot "
        f"{above('self-consistency', 'zero-shot')}; drafts write fewer tokens than chains {'holds' if fewer else 'fails'}; "
        f"swapped answers worse than chain of thought {above('chain-of-thought', 'swapped answers')}. "
        f"Cost {cost:g}: a local model.{floor}"
    )


if __name__ == "__main__":
    main()
