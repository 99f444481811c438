"""Promptor's claims: its prompt at least as good as the designer's one line; worse without tests, parts, or the best kept.

Two tasks: a sentence from its keywords (captions of Multi30k, mean similarity of sentence embeddings) and sentiment of
film reviews (SST-2, accuracy); smollm2-135m writes the prompts and answers them, the designer is a list of answers; three
seeds, which draw the 12 examples of the conversation (3 shown, 8 tests; 3 rounds) and the samples.  Every arm answers the
same 40 held-out rows a seed, which no conversation saw.

    python -m benchmarks.claims.promptor            # goes on where it was interrupted

Arms.  ``promptor``: the version with the best score.  ``one line``: the goal alone.  ``brief``: the designer's answers in the
four parts with the examples, without the agent model.  ``no tests``: the first draft as it is (the brief where the model
wrote none that can be used).  ``last``: the last version.  ``no parts``: the brief's sentences and examples without the
four headings.
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

import cuelight
from benchmarks.claims.grid import SEEDS, arguments_of, kept, listed, spread, verdict
from benchmarks.common import data_file, write_result
from cuelight import lm
from cuelight.conversation.promptor import Promptor

MODEL = "smollm2-135m"
TALK, HELD_OUT = 12, 40
OPTIONS: dict[str, Any] = {"report": 0, "writing_tokens": 160}
BRIEFS: dict[str, dict[str, Any]] = {
    "keywords": {
        "goals": "Write the sentence that is meant by the keywords.",
        "users": "People who type slowly and want to save keystrokes.",
        "data": "A few keywords in order, without small words.",
        "context": "Describing what is seen in a photo.",
        "output": "One complete English sentence of about twelve words, nothing else.",
    },
    "sentiment": {
        "goals": "Say whether a film review is positive or negative.",
        "users": "Editors who sort reviews.",
        "data": "One sentence of a review.",
        "output": "One word: positive or negative.",
    },
}
TOKENS = {"keywords": 32, "sentiment": 6}
METRICS = {"keywords": "similarity", "sentiment": "exact"}
_SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to and or is are was were be been being with by for from as it its his her their this that "
        "these those there he she they them who which while into onto over up down out off near next some one two",
    )
)


def rows_of(task: str, seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Examples for the conversation and held-out rows, drawn by the seed from the train and the test split."""
    if task == "sentiment":
        frame = pd.read_parquet(data_file("text/sst2.parquet"))
        pairs = frame.rename(columns={"label_name": "wanted"})[["text", "wanted", "split"]]
        splits = ("train", "test")
    else:
        frame = pd.read_parquet(data_file("gen/multi30k.parquet"))
        words = frame["en"].map(lambda s: [w for w in re.findall(r"[a-z']+", s.lower()) if w not in _SMALL])
        pairs = pd.DataFrame({"text": words.map(" ".join), "wanted": frame["en"], "split": frame["split"]})
        pairs = pairs[words.map(len).between(4, 9)]
        splits = ("train", "test_2016_flickr")
    talk, held = (
        pairs[pairs["split"] == split].sample(n, random_state=seed)[["text", "wanted"]].to_dict("records")
        for split, n in zip(splits, (TALK, HELD_OUT), strict=True)
    )
    return talk, held


def without_parts(text: str) -> str:
    """A prompt of four parts without their headings, bullets and numbers."""
    lines = (
        re.sub(r"^(Instruction: |Actions:$|Facts:$|Examples:$|\d\. |- )", "", line)
        for line in text.split("\n")
    )
    return "\n".join(line for line in lines if line)


def main() -> None:
    given = arguments_of(__doc__, "promptor")
    model = lm.connect(MODEL)
    tasks: dict[str, Any] = {}
    for task in given.only.split(",") if given.only else BRIEFS:
        figures: dict[str, list[float]] = {}
        talks = []
        for seed in SEEDS:
            talk, held = rows_of(task, seed)
            agent = cuelight.promptor(
                {**BRIEFS[task], "examples": talk},
                lm=model,
                output=kept(given.folder, task, seed, OPTIONS),
                seed=seed,
                metric=METRICS[task],
                answer_tokens=TOKENS[task],
                **OPTIONS,
            )
            for arm, prompt in arms_of(agent).items():
                figures.setdefault(arm, []).append(agent.evaluate(held, prompt=prompt))
            best = agent.best
            assert best is not None
            talks.append(
                {
                    "best": best.origin,
                    "tests": {f"{n} {v.origin}": v.score for n, v in enumerate(agent.state.versions, 1)},
                    "calls": agent.state.calls,
                    "failures": agent.state.failures,
                    "prompt": best.text,
                }
            )
            print(task, seed, {arm: values[-1] for arm, values in figures.items()}, talks[-1], flush=True)
        tasks[task] = {
            "metric": METRICS[task],
            "arms": {arm: spread(values) for arm, values in figures.items()},
            "conversations": talks,
        }
    if not given.only:
        result = {"methods": ["promptor"], "model": MODEL, "tasks": tasks, "summary": summary(tasks)}
        write_result("claims", "promptor", "benchmarks.claims.promptor", result)


def arms_of(agent: Promptor) -> dict[str, str]:
    """The prompts that are compared."""
    versions = agent.state.versions
    line, brief = versions[0].text, versions[1].text
    draft = next((v.text for v in versions if v.origin == "draft"), brief)
    return {
        "promptor": agent.prompt,
        "one line": line,
        "brief": brief,
        "no tests": draft,
        "last": versions[-1].text,
        "no parts": without_parts(brief),
    }


def summary(tasks: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = [
        f"{MODEL} as agent and target, {TALK} examples in the conversation, {HELD_OUT} held-out rows a seed."
    ]
    for task, entry in tasks.items():
        arms, talks = entry["arms"], entry["conversations"]
        full = arms["promptor"]["mean"]
        sentences.append(
            f"{task} ({'accuracy' if entry['metric'] == 'exact' else 'similarity'}, %): {listed(arms)}."
        )
        sentences.append(f"Promptor at least the one line {verdict(full >= arms['one line']['mean'])}.")
        worse = {arm: arms[arm]["mean"] <= full for arm in ("no tests", "last", "no parts")}
        sentences.append(
            "Not better without: " + ", ".join(f"{arm} {verdict(ok)}" for arm, ok in worse.items()) + "."
        )
        origins = ", ".join(talk["best"] for talk in talks)
        asked = sum(n for talk in talks for kind, n in talk["calls"].items() if kind != "target")
        unread = sum(talk["failures"].get(kind, 0) for talk in talks for kind in talk["calls"])
        sentences.append(
            f"The best versions were: {origins}; {unread} of {asked} answers of the agent could not be used."
        )
    return " ".join(sentences)


if __name__ == "__main__":
    main()
