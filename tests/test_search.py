"""Searches for text prompts keep to their papers' control flow, whatever scores: masks, survivors, lists, distributions.

Models that follow a script stand in where only the flow of a search is looked at; what is sent, saved and answered is
looked at with a real model.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.dual_models import small_clip
from tests.faulty_server import Faulty

import cuelight
from cuelight import lm
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.cache import cache_dir
from cuelight.cli.main import run as command
from cuelight.errors import ArtifactError, BackboneError, ConfigError, DataError
from cuelight.methods import proposing
from cuelight.methods.search import promptquine as quine
from cuelight.methods.search import unsupervised_blackbox as blackbox
from cuelight.methods.search.llm_bbo import LlmBbo
from cuelight.methods.searching import Start, top
from cuelight.methods.text_prompt import chosen, margin_rewards, named
from cuelight.tasks.image import ImageConfig, ImageTask
from cuelight.tasks.metrics import number_match
from cuelight.tasks.objective import Objective, Trial
from cuelight.tasks.text import TaskConfig, TextTask
from cuelight.tasks.text_prompt import Piece, example, few_shot, fill, question, split

WORDS = [Piece(f" w{k}") for k in range(60)]
FIELD = Piece(" {text}", True)


@pytest.fixture(scope="module")
def minimind() -> Backbone:
    return load_backbone("minimind2-26m", device="cpu", progress=False)


def wanted(seed: int, count: int = 20, words: int = 60) -> set[str]:
    """The words a hidden mask keeps."""
    places = np.random.default_rng(seed).choice(words, count, replace=False)
    return {f"w{k}" for k in places}


def distance(hidden: set[str]) -> Objective:
    """Minus the Hamming distance of a text's words from the hidden ones."""
    return Objective(lambda prompts, _: (-len(hidden ^ (set(p.split()) - {"{text}"})) for p in prompts))


def evolved(
    mode: str, seed: int = 0, pieces: Sequence[Piece] = WORDS, **options: Any
) -> tuple[list, Objective]:
    config = quine.SearchConfig(mode=mode, **{"max_prompts": 700, **options})
    objective = distance(wanted(seed))
    search = quine.random_masks if mode == "random" else quine.evolve
    return search(pieces, objective, config, np.random.default_rng(seed)), objective


# ---- PromptQuine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["gga", "ssga"])
def test_children_are_parts_of_their_parents_and_keep_the_fields(mode: str) -> None:
    pieces = [*WORDS[:30], FIELD, *WORDS[30:]]
    archive, _ = evolved(mode, pieces=pieces, max_prompts=300)
    assert len(archive) > 100
    for candidate in archive:
        assert candidate.mask[30] and "{text}" in candidate.text
        assert candidate.text == quine.text_of(pieces, candidate.mask)
        if candidate.parent is not None:
            parent = archive[candidate.parent].mask
            lost = int(parent.sum() - candidate.mask.sum())
            assert (parent >= candidate.mask).all() and 1 <= lost <= 4
    assert len(archive) <= 300


@pytest.mark.parametrize("mode", ["gga", "ssga"])
def test_equal_seeds_give_equal_archives_and_others_do_not(mode: str) -> None:
    runs = [evolved(mode, max_prompts=200)[0] for _ in range(2)]
    assert [c.text for c in runs[0]] == [c.text for c in runs[1]]
    config = quine.SearchConfig(mode=mode, max_prompts=200)
    other = quine.evolve(WORDS, distance(wanted(0)), config, np.random.default_rng(1))
    assert [c.text for c in other] != [c.text for c in runs[0]]


def test_evolution_beats_as_many_random_masks_on_a_hidden_mask() -> None:
    # The page's simulation: distance 2 to 7 for generations, 8 to 17 child by child, 15 to 18 at random.
    for seed in range(3):
        best = {
            mode: max(c.score for c in evolved(mode, seed, max_prompts=1000)[0]) for mode in ("gga", "random")
        }
        assert best["gga"] >= -8 and best["random"] <= -12
        short, _ = evolved("ssga", seed, max_prompts=1000)
        assert len(short) < 250  # newborns breed at once, so prompts shrink to the end fast


def test_only_newborns_survive_unless_told() -> None:
    # The start scores best by far: newborns forget it, the elite keeps it as a parent for ever.
    score = Objective(lambda prompts, _: (1000.0 if len(p.split()) == 60 else len(p) for p in prompts))
    parents = {}
    for survival in ("newborn", "elitist"):
        config = quine.SearchConfig(survival=survival, max_prompts=400, population=10, offspring=20)
        archive = quine.evolve(WORDS, score, config, np.random.default_rng(0))
        parents[survival] = [c.parent for c in archive[100:]]
    assert 0 in parents["elitist"] and 0 not in parents["newborn"]


def test_random_start_prunes_and_duplicates_cost_nothing() -> None:
    archive, objective = evolved("gga", init="random", max_prompts=100)
    first = archive[1:31]
    assert all(c.parent is None for c in first) and 0 < np.mean([60 - c.mask.sum() for c in first]) < 15
    archive, objective = evolved("gga", max_prompts=500)
    assert len(objective) == len({c.text for c in archive}) <= len(archive)


def test_search_ends_when_prompts_are_short_and_when_nothing_can_be_born() -> None:
    archive, _ = evolved("gga", min_length=40, max_prompts=10_000)
    assert len(archive) < 600 and min(c.mask.sum() for c in archive) >= 30
    pieces = [Piece(f" {{f{k}}}", True) for k in range(20)] + [Piece(" a"), Piece(" b")]
    config = quine.SearchConfig(mode="ssga", min_length=15)
    short = quine.evolve(
        pieces, lambda prompts, floor=None: [0.0] * len(prompts), config, np.random.default_rng(0)
    )
    assert len({candidate.text for candidate in short}) == 3


def test_halving_scores_the_rest_only_of_what_reaches_the_floor() -> None:
    floors = []

    def score(prompts: Sequence[str], floor: float | None = None) -> list[float]:
        floors.append(floor)
        return [float(len(p)) for p in prompts]

    quine.evolve(WORDS, score, quine.SearchConfig(max_prompts=120), np.random.default_rng(0))
    assert floors[0] is None and all(f is not None for f in floors[1:])


def again(text: str) -> list[Piece]:
    return [Piece(" " + word, word == "{text}") for word in text.split()]


def test_pruning_reaches_a_hidden_mask() -> None:
    hidden, pieces = wanted(3), [*WORDS[:10], FIELD, *WORDS[10:]]
    config = quine.SearchConfig(mode="tapruning", tolerance=0)
    trace = quine.prune(pieces, again, distance(hidden), config, np.random.default_rng(0))
    assert set(trace[-1].text.split()) == hidden | {"{text}"}
    scores = [c.score for c in trace]
    assert scores[-1] == max(scores)


def test_pruning_keeps_to_its_threshold_and_sahc_to_strict_gains() -> None:
    values = {10: 0.5, 9: 0.49, 8: 0.47, 7: 0.49, 6: 0.2}

    def score(prompts: Sequence[str], floor: float | None = None) -> list[float]:
        return [values.get(len(p.split()), 0.1) for p in prompts]

    pieces = WORDS[:10]
    ta = quine.prune(
        pieces, again, score, quine.SearchConfig(mode="tapruning", threshold=0.96), np.random.default_rng(0)
    )
    # 0.49 is 98 % of 0.5 and 0.47 is 94 %: one deletion is kept, the next is not.  The start stays the best.
    assert [c.score for c in ta] == [0.5]
    ta = quine.prune(
        pieces, again, score, quine.SearchConfig(mode="tapruning", threshold=0.9), np.random.default_rng(0)
    )
    assert ta[-1].score == 0.5
    hill = quine.prune(
        pieces, again, distance(wanted(0, 3, 10)), quine.SearchConfig(mode="sahc"), np.random.default_rng(0)
    )
    assert all(a.score < b.score for a, b in pairwise(hill)) and hill[-1].score == 0
    with pytest.raises(ConfigError, match="threshold"):
        quine.prune(
            pieces, again, distance(wanted(0)), quine.SearchConfig(mode="tapruning"), np.random.default_rng(0)
        )


def test_last_of_the_best_is_the_answer_of_pruning() -> None:
    def flat(prompts: Sequence[str], floor: float | None = None) -> list[float]:
        return [1.0 if len(p.split()) > 3 else 0.0 for p in prompts]

    trace = quine.prune(
        WORDS[:10], again, flat, quine.SearchConfig(mode="tapruning"), np.random.default_rng(0)
    )
    assert len(trace[-1].text.split()) == 4


def test_random_masks_take_the_lengths_they_are_given() -> None:
    archive, _ = evolved("random", max_prompts=50, kept=(20, 30))
    assert {int(c.mask.sum()) for c in archive[1:]} == {20, 30} and len(archive) == 50


def test_rewards_are_margins_between_minus_180_and_200() -> None:
    scores = np.log([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    assert np.allclose(margin_rewards(scores, np.array([0, 0, 1])), [200 * 0.8, -180 * 0.4, 0])
    p = np.linspace(0.51, 1, 20)
    hits = margin_rewards(np.log(np.stack([p, np.maximum(1 - p, 1e-300)], 1)), np.zeros(20, int))
    assert np.allclose(hits, 200 * (2 * p - 1))
    named_only = np.array([[0, -np.inf], [-np.inf, 0], [-np.inf, -np.inf]])
    assert margin_rewards(named_only, np.array([0, 0, 0])).tolist() == [200, -180, -180]
    assert chosen(named_only).tolist() == [0, 1, -1]


def test_what_is_ranked_again_is_a_percentile_or_a_number() -> None:
    trials = [Trial(k, str(k), float(k)) for k in range(100)]
    assert [t.number for t in top(trials, 0.1)] == list(range(99, 89, -1))
    assert [t.number for t in top(trials, 3)] == [99, 98, 97]


# ---- strings -----------------------------------------------------------------------------------------------


def test_pieces_are_the_prompt_again_byte_for_byte(minimind: Backbone) -> None:
    bert = load_backbone("minilm-l6", device="cpu", progress=False).tokenizer
    prompt = "Review: naïve – 日本語 😀 {x} \n\nLabel: good\n\n  Review: {text}\nLabel:  "
    for tokenizer in (minimind.tokenizer, bert, None):
        pieces = split(prompt, ("text",), tokenizer)
        assert "".join(p.text for p in pieces) == prompt
        assert [p.text for p in pieces if p.field] == ["{text}"]
        assert all(p.text for p in pieces) and len(pieces) > 12


def test_prompts_are_filled_once_and_nothing_is_escaped(minimind: Backbone) -> None:
    task = TextTask(minimind, "classification", ["a", "b"], config=TaskConfig(template="{{x}} {text}\nIs:"))
    assert question(task) == "{x} {text}\nIs:"
    assert fill("{x} {text} {label}", {"text": "{text} {x}"}, task) == "{x} {text} {x} {label}"
    rows = [{"text": "one", "label": 0}, {"text": "two", "label": 1}]
    assert few_shot(task, rows, "Do it.") == "Do it.\n\n{x} one\nIs: a\n\n{x} two\nIs: b\n\n{x} {text}\nIs:"
    with pytest.raises(DataError, match="is a field"):
        example(task, {"text": "see {text}", "label": 0})


def test_replies_name_the_word_that_comes_first() -> None:
    words = ["positive", "very positive", "negative"]
    assert named("It is Very Positive, not negative.", words) == 1
    assert named("negatively charged", words) is None
    assert named("Negative!", words) == 2


def test_numbers_are_compared_by_the_last_one() -> None:
    said = ["so 3 + 4 = 7.", "about 1,200", "none"]
    assert number_match(said, [["#### 7"], ["1200.0"], ["3"]]) == pytest.approx(2 / 3)


def test_objective_asks_once_and_refuses_what_is_no_number() -> None:
    asked: list[str] = []

    def score(prompts: Sequence[str], floor: float | None) -> list[float]:
        asked.extend(prompts)
        return [float(len(p)) for p in prompts]

    objective = Objective(score)
    assert objective(["a", "bb", "a"]) == [1, 2, 1] and objective(["bb"]) == [2]
    assert asked == ["a", "bb"] and objective.best.prompt == "bb"
    for bad in (math.nan, None, "high"):
        with pytest.raises(ConfigError, match="objective"):
            Objective(lambda prompts, _, bad=bad: [bad])(["x"])


# ---- LLM-BBO -----------------------------------------------------------------------------------------------

POOL = [
    f"a {word} of a {{}}."
    for word in ("photograph", "drawing", "painting", "scan", "map", "to", "model", "p", "good likeness")
]


def shown(text: str) -> tuple[list[str], list[str]]:
    """The good and the bad list of a question."""
    good, _, bad = text.partition("work badly")
    return tuple([line[2:] for line in part.splitlines() if line.startswith("- ")] for part in (good, bad))  # type: ignore[return-value]


def climbing(reply: Any, score: Any = len, **options: Any) -> tuple[proposing.Climb, Objective]:
    objective = Objective(lambda prompts, _: (float(score(p)) for p in prompts))
    config = proposing.ClimbConfig(**options)
    loop = proposing.Climb(objective, lm.scripted(reply), config, Start(pool=tuple(POOL), seed=0))
    loop.restart()
    return loop, objective


def test_lists_are_the_exact_best_and_worst_and_calls_are_counted() -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def reply(request: lm.Request) -> str:
        seen.append(shown(request.text))
        return f"- one more {len(seen)} of a {{}}"

    _, objective = climbing(reply, steps_of_search=4)
    known = [t.prompt for t in objective.history[: len(POOL)]]
    for good, bad in seen:
        ranked = sorted(known, key=lambda p: -len(p))
        assert good == ranked[:3] and bad == ranked[-3:]
        known.append(objective.history[len(known)].prompt)
    assert len(objective) == len(POOL) + 4
    best = np.maximum.accumulate([t.score for t in objective.history])
    assert (np.diff(best) >= 0).all()


def test_replies_without_the_field_are_asked_again_and_duplicates_cost_no_score() -> None:
    replies = iter(["no list", "- lost the field", "- a {} {other}", "- a map of a {}.", *["- bad"] * 99])
    loop, objective = climbing(lambda request: next(replies), steps_of_search=2, retries=5)
    assert len(objective) == len(POOL)  # the one that could be used was there already
    assert loop.asked == 4 + 6 and loop.skipped == 1
    assert proposing.parsed('- "a {} b"\nwords\n- `c {}`', {"{}"}) == ["a {} b", "c {}"]


@pytest.mark.parametrize(
    ("feedback", "good", "bad"), [("good-bad", 3, 3), ("good", 3, 0), ("none", 0, 0), ("shuffled", 3, 3)]
)
def test_feedback_shows_what_it_says(feedback: str, good: int, bad: int) -> None:
    seen: list[tuple[list[str], list[str]]] = []
    climbing(
        lambda r: seen.append(shown(r.text)) or f"- x{len(seen)} {{}}",  # type: ignore[func-returns-value]
        feedback=feedback,
        steps_of_search=3,
    )
    assert [(len(g), len(b)) for g, b in seen] == [(good, bad)] * 3
    best = sorted(POOL, key=lambda p: -len(p))[:3]
    assert (seen[0][0] == best) == (feedback in ("good-bad", "good"))


def test_no_string_is_shown_as_good_and_bad() -> None:
    seen: list[tuple[list[str], list[str]]] = []
    climbing(
        lambda r: seen.append(shown(r.text)) or "- x {}",  # type: ignore[func-returns-value]
        start_size=4,
        steps_of_search=1,
    )
    assert len(seen[0][0]) == 3 and len(seen[0][1]) == 1 and not set(seen[0][0]) & set(seen[0][1])


def test_a_conversation_tells_what_proposals_scored_and_paraphrases_show_the_best() -> None:
    turns: list[Any] = []

    def reply(request: lm.Request) -> str:
        turns.append(request.messages)
        return "- long long long long long template {}" if len(turns) == 1 else f"- t{len(turns)} {{}}"

    climbing(reply, form="conversation", steps_of_search=3)
    assert [len(t) for t in turns] == [1, 3, 5]
    assert "improves to" in turns[1][-1]["content"] and "drops to" in turns[2][-1]["content"]
    asked: list[str] = []
    climbing(lambda r: asked.append(r.text) or "- y {}", form="paraphrase", steps_of_search=1)  # type: ignore[func-returns-value]
    assert max(POOL, key=len) in asked[0] and "other words" in asked[0]


def test_restarts_draw_anew_and_resets_fall_back() -> None:
    count = iter(range(1000))
    _, objective = climbing(
        lambda r: f"- p{next(count)} {{}}", start_size=3, restarts=1, resets=2, steps_of_search=2
    )
    assert len(objective) == 3 + 4
    found = cuelight.search(
        "llm-bbo",
        len,
        pool=POOL,
        lm=lm.scripted(lambda r: f"- p{next(count)} {{}}"),
        start_size=3,
        restarts=3,
    )
    assert 3 + 30 < found.spent["scored"] <= 9 + 30 and found.spent["calls"] == 30


# ---- unsupervised black-box --------------------------------------------------------------------------------


def test_rows_stay_distributions_and_equal_losses_change_nothing() -> None:
    config = blackbox.SearchConfig(length=4, samples=5)
    words = blackbox.Words([str(k) for k in range(7)], 4, config, np.random.default_rng(0))
    before = words.table.copy()
    words.learn(words.drawn(5), np.full(5, 3.0))
    assert np.allclose(words.table, before)
    for _ in range(200):
        drawn = words.drawn(5)
        words.learn(drawn, (drawn != 2).sum(1).astype(float))
        assert np.allclose(words.table.sum(1), 1) and (words.table > 0).all() and (words.table <= 1).all()
    assert words.likeliest == "2 2 2 2"


def test_the_estimate_is_unbiased_and_bdpls_is_twice_it() -> None:
    table, loss = np.array([[0.5, 0.3, 0.2]]), np.array([1.0, 2.0, 4.0])
    generator = np.random.default_rng(0)
    drawn = generator.choice(3, size=(20_000, 4), p=table[0])
    own, theirs = [], []
    for row in drawn:
        own.append(blackbox.policy_gradient(table, row[:, None], loss[row]))
        theirs.append(blackbox.policy_gradient(table, row[:, None], loss[row], others=-1.0))
    assert np.allclose(np.array(theirs), 2 * np.array(own))
    expected = loss - (table[0] * loss).sum()
    assert np.allclose(expected, [-0.9, 0.1, 2.1])
    assert np.allclose(np.mean(own, 0)[0], expected, atol=0.08)


def test_projection_leaves_what_is_on_the_simplex() -> None:
    generator = np.random.default_rng(0)
    for row in generator.dirichlet(np.ones(9), size=20):
        assert np.allclose(blackbox.on_simplex(row), row, atol=1e-9)
    assert np.allclose(blackbox.on_simplex(np.array([2.0, 0.0, -1.0])), [1, 0, 0])


def test_reliable_texts_are_the_surest_of_every_class_and_never_the_query() -> None:
    labels, sure = [0] * 8 + [1] * 4, [*np.linspace(0.6, 0.95, 8), *np.linspace(0.55, 0.7, 4)]
    pool = blackbox.Pool([{"text": str(k)} for k in range(12)], labels, list(sure), share=0.25, least=1)
    assert pool.reliable == {6, 7, 11}
    generator = np.random.default_rng(0)
    for query in (6, 7, 11):
        drawn = pool.draw(2, query, generator)
        assert query not in drawn and set(drawn) <= pool.reliable
    pool.update([7, 0], np.array([[0.5, 0.5], [0.05, 0.95]]))
    assert pool.reliable == {6, 11, 0} and pool.labels[0] == 1
    everything = blackbox.Pool(pool.rows, labels, list(sure), share=1.0, least=1)
    assert everything.reliable == set(range(12))


def test_phrases_are_those_that_go_together() -> None:
    texts = ["New York is big", "in New York again", "the big apple", "again the end", "is the end big"]
    found = blackbox.candidates(texts, 8, 2)
    assert "new york" in found and "the" in found and len(found) == len(set(found)) == 8


def test_call_count_is_texts_and_steps_times_samples_and_one(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "d.csv", 24)
    asked: list[lm.Request] = []

    def score(request: lm.Request) -> list[float]:
        asked.append(request)
        good = "good" in request.prompt.rsplit("Text:", 1)[1]
        return [-2.0 + good + 0.001 * len(request.prompt), -1.0]

    run = cuelight.tune(
        "unsupervised-blackbox",
        backbone=lm.scripted(lambda r: "", score=score),
        data=rows,
        rounds=3,
        samples=4,
        batch=2,
        vocabulary=12,
        length=3,
        accept=False,
    )
    spent = run.prompt.record["search"]["spent"]["calls"]
    assert spent == 16 + 3 * 5 * 2  # n texts, then steps x (samples + 1) x batch
    assert run.prompt.method.prompt.endswith("Text: {text}\nLabel:")
    assert run.prompt.method.prompt.count("Label:") == 5  # two examples a class and the question


def test_words_and_labels_are_learned_from_a_real_model_without_labels(
    minimind: Backbone, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "rounds": 2,
        "samples": 2,
        "batch": 2,
        "length": 3,
        "vocabulary": 12,
        "rate": 0.1,
    }
    data = write_rows(tmp_path / "d.csv", 24)
    before = minimind.fingerprint
    runs = [
        cuelight.tune("unsupervised-blackbox", backbone=minimind, data=data, cache=False, **options)
        for _ in range(2)
    ]
    assert runs[0].prompt.method.prompt == runs[1].prompt.method.prompt
    search = runs[0].prompt.record["search"]
    assert search["spent"]["calls"] == 16 + 2 * 3 * 2 + 2 * search["reliable"]  # the last two: accept
    assert set(search["reliable_loss"]) == {"with words", "without"}
    assert sum(search["pseudo_labels"].values()) == 16 and minimind.fingerprint == before
    swapped = tmp_path / "swapped.csv"  # other labels, same texts: nothing that was learned may differ
    rows = (tmp_path / "d.csv").read_text().splitlines(True)
    turned = [
        re.sub(r",(good|bad),train", lambda m: f",{'bad' if m[1] == 'good' else 'good'},train", x)
        for x in rows
    ]
    swapped.write_text("".join(turned))
    other = cuelight.tune(
        "unsupervised-blackbox", backbone=minimind, data=str(swapped), cache=False, **options
    )
    assert other.prompt.method.prompt == runs[0].prompt.method.prompt


# ---- on a task, with real models and servers that only answer -------------------------------------------------


def write_rows(file: Path, count: int = 48) -> str:
    """Reviews of two words' worth of sentiment, as CSV with splits."""
    words = {"good": ["fine", "great", "lovely", "warm"], "bad": ["dull", "weak", "awful", "flat"]}
    lines = ["text,label,split"]
    for k in range(count):
        label = ("good", "bad")[k % 2]
        word = words[label][k // 2 % 4]
        split_ = ("train", "train", "train", "train", "validation", "test")[k // 2 % 6]
        lines.append(f'"a {word} film, number {k}, really {label}",{label},{split_}')
    file.write_text("\n".join(lines) + "\n")
    return str(file)


SMALL: dict[str, Any] = {
    "max_prompts": 14,
    "population": 4,
    "offspring": 5,
    "fitness_rows": 3,
    "min_length": 10,
    "best": 2,
}


TEXT = {"instruction": "Say\r\nwhat it is: \u00e4\u2028."}


def test_a_prompt_is_found_saved_and_sent_byte_for_byte(minimind: Backbone, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.csv")
    run = cuelight.tune("promptquine", backbone=minimind, data=data, output=tmp_path / "out", **TEXT, **SMALL)
    found = (tmp_path / "out" / "prompt.txt").read_bytes()
    assert b"\r\n" in found or b"\xe2\x80\xa8" in found  # signs that text files are apt to lose
    assert found.decode() == run.prompt.method.prompt and found.count(b"{text}") == 1
    record = json.loads((tmp_path / "out" / "cuelight.json").read_text())
    assert record["search"]["prompts"] == 14 and record["search"]["chosen_by"] == "held-out rows"
    assert record["search"]["spent"]["calls"] >= 0 and record["trainable"] == 0
    loaded = cuelight.load(tmp_path / "out", backbone=minimind)
    texts = ["a great film", "an awful film"]
    assert loaded.predict(texts) == run.prompt.predict(texts)
    sent: list[str] = []
    method = loaded.method
    method._answering = lm.scripted(lambda r: "", score=lambda r: sent.append(r.prompt) or [0.0, -1.0])  # type: ignore[func-returns-value]
    loaded.predict(texts)
    assert sorted(s.encode() for s in sent) == sorted(found.replace(b"{text}", t.encode()) for t in texts)
    chances = run.prompt.predict(texts, probabilities=True)
    by_hand = lm.connect(minimind, cache=False).score(
        [method.prompt.replace("{text}", t) for t in texts], [" bad", " good"]
    )
    table = np.exp(by_hand) / np.exp(by_hand).sum(1, keepdims=True)
    assert np.allclose([[c["probabilities"][n] for n in ("bad", "good")] for c in chances], table, atol=1e-4)


def test_batches_of_candidates_score_what_single_passes_do(minimind: Backbone) -> None:
    task = TextTask(minimind, "classification", ["bad", "good"])
    method = quine.PromptQuine(minimind, task, quine.PromptQuineConfig(cache=False))
    items = task.encode([{"text": f"a film, number {k}", "label": k % 2} for k in range(4)])
    prompts = [
        f"Text: a dull one\nLabel: bad\n\nText: {word} one\nLabel: good\n\nText: {{text}}\nLabel:"
        for word in "abc"
    ]
    found = list(method.quality(prompts, items, "reward"))
    for prompt, reward in zip(prompts, found, strict=True):
        table = []
        for item in items:
            row = []
            for word in (" bad", " good"):
                ids = minimind.tokenizer(prompt.replace("{text}", item.row["text"])).input_ids
                answer = minimind.tokenizer(word, add_special_tokens=False).input_ids
                with torch.no_grad():
                    logits = minimind.model(torch.tensor([[*ids, *answer]])).logits[0].log_softmax(-1)
                row.append(sum(float(logits[len(ids) - 1 + k, a]) for k, a in enumerate(answer)))
            table.append(row)
        expected = margin_rewards(np.array(table), np.array([i.label for i in items])).mean()
        assert reward == pytest.approx(float(expected), abs=0.05)


def by_word(request: lm.Request) -> str:
    """A reviewer that reads the words and ignores all else."""
    return (
        "It is good."
        if any(w in request.text.rsplit("Text:", 1)[-1] for w in ("great", "fine", "warm", "lovely"))
        else "bad"
    )


def test_models_that_only_write_are_read_by_what_they_name(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.csv")
    run = cuelight.tune(
        "promptquine", backbone=lm.scripted(by_word), data=data, output=tmp_path / "out", **SMALL, chat=True
    )
    assert run.metrics["accuracy"] == 1.0
    assert run.prompt.predict(["Text: a great film"]) == ["good"]
    with pytest.raises(DataError, match="probabilities"):
        run.prompt.predict(["x"], probabilities=True)
    with pytest.raises(ConfigError, match="no likelihoods"):
        cuelight.tune("promptquine", backbone=lm.scripted(by_word), data=data, read="scores", **SMALL)
    silent = cuelight.tune("promptquine", backbone=lm.scripted(lambda r: "?"), data=data, mode="none")
    assert silent.metrics["accuracy"] == 0.0 and silent.prompt.predict(["x"]) == [""]
    blind = cuelight.tune(
        "unsupervised-blackbox", backbone=lm.scripted(by_word), data=data, rounds=2, samples=2
    )
    assert blind.metrics["accuracy"] == 1.0


def test_methods_that_need_tensors_refuse_a_model_that_only_answers(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.csv")
    for method in ("prompt-tuning", "linear-probe"):
        with pytest.raises(BackboneError, match="is a remote model"):
            cuelight.tune(method, backbone="http://127.0.0.1:9/v1#m", data=data)
    with pytest.raises(BackboneError, match="names no model"):
        load_backbone("http://127.0.0.1:9/v1")


def test_a_budget_ends_the_search_with_the_best_so_far(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.csv")
    counted: list[int] = []

    def score(request: lm.Request) -> list[float]:
        counted.append(1)
        return [0.0, -1.0] if "bad" in request.prompt.rsplit("Text:", 1)[1] else [-1.0, 0.0]

    run = cuelight.tune(
        "promptquine",
        backbone=lm.scripted(lambda r: "", score=score),
        data=data,
        **{**SMALL, "max_calls": 60},
    )
    assert run.prompt.record["search"]["spent"]["calls"] <= 60
    assert (
        run.prompt.record["search"]["ended_by"] == "calls"
        and 1 <= run.prompt.record["search"]["prompts"] <= 10
    )
    with pytest.raises(lm.BudgetError, match="calls"):
        cuelight.tune(
            "promptquine",
            backbone=lm.scripted(lambda r: "", score=score),
            data=data,
            **{**SMALL, "max_calls": 3},
        )


def test_the_price_is_said_before_it_is_paid(tmp_path: Path) -> None:
    lines: list[str] = []
    cuelight.tune(
        "promptquine",
        backbone=lm.scripted(by_word),
        data=write_rows(tmp_path / "d.csv"),
        on_report=lines.extend,
        **SMALL,
    )
    assert any("at most 14 prompts x 6 rows, 84 calls" in line for line in lines)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.csv")
    model = lm.scripted(by_word)

    def refused(
        match: str, error: type[Exception] = ConfigError, method: str = "promptquine", **options: Any
    ) -> None:
        with pytest.raises(error, match=match) as caught:
            cuelight.tune(method, backbone=model, data=data, **options)
        assert "\n" not in str(caught.value)

    refused("min_length", min_length=500)
    refused("demonstrations", demonstrations=50)
    refused("label_words: 'goods' begins", label_words={"good": "good", "bad": "goods"})
    refused("template", template="{soft:a} {text}")
    refused("fitness", fitness="exact_match")
    refused("pool", method="llm-bbo-text", pool=str(tmp_path / "none.txt"))
    for options, match in (({"pool": ["a"]}, "needs a model"), ({}, "pool")):
        with pytest.raises(ConfigError, match=match):
            cuelight.search("llm-bbo", len, **options)
    with pytest.raises(ConfigError, match="searches are"):
        cuelight.search("prompt-tuning", len)
    with pytest.raises(ConfigError, match="steps_of_serch"):
        cuelight.search("llm-bbo", len, pool=["a"], steps_of_serch=3)
    run = cuelight.tune("promptquine", backbone=model, data=data, mode="none")
    with pytest.raises(ArtifactError, match="text"):
        run.prompt.method.load_text("no field")


def test_generation_and_reasoning_are_scored_by_their_figure(tmp_path: Path) -> None:
    file = tmp_path / "g.jsonl"
    rows = [
        {
            "question": f"{a} plus {a + 1}?",
            "target": f"It is {2 * a + 1}.",
            "split": ("train", "train", "test")[a % 3],
        }
        for a in range(24)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))

    def adds(request: lm.Request) -> str:
        one, other = map(int, re.findall(r"\d+", request.text)[-2:])
        right = "careful" in request.text
        return f"let me see, {one + other + (not right)}\n\nInput: more"

    options: dict[str, Any] = {
        "text": "question",
        "target": "target",
        "judge": "number",
        "task": "generation",
    }
    run = cuelight.tune(
        "promptquine",
        backbone=lm.scripted(adds),
        data=str(file),
        instruction="Be careful now.",
        halving=True,
        demonstrations=2,
        **{**SMALL, "max_prompts": 40, "fitness_rows": 6},
        **options,
    )
    assert run.metrics["number_match"] == 1.0 and "careful" in run.prompt.method.prompt
    assert run.prompt.predict(["2 plus 3?"]) == ["let me see, 5"]  # ended before the empty line
    other = cuelight.tune("promptquine", backbone=lm.scripted(adds), data=str(file), mode="none", **options)
    assert other.metrics["number_match"] == 0.0


def test_multiple_choice_is_the_letter_with_the_options_in_columns(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    lines = ["goal,a,b,label,split"]
    for k in range(24):
        right = k % 2
        pair = (f"wrong {k}", f"right {k}") if right else (f"right {k}", f"wrong {k}")
        lines.append(f"goal {k},{pair[0]},{pair[1]},{'AB'[right]},{'test' if k % 3 == 0 else 'train'}")
    file.write_text("\n".join(lines) + "\n")

    def score(request: lm.Request) -> list[float]:
        asked = request.prompt.rsplit("A)", 1)[-1]
        return [0.0, -1.0] if asked.lstrip().startswith("right") else [-1.0, 0.0]

    run = cuelight.tune(
        "promptquine",
        backbone=lm.scripted(lambda r: "", score=score),
        data=str(file),
        text="goal",
        template="{text}\nA) {a}\nB) {b}\nAnswer:",
        **SMALL,
    )
    assert run.metrics["accuracy"] > 0.5 and "{a}" in run.prompt.method.prompt
    assert run.prompt.predict([{"text": "x", "a": "right", "b": "wrong"}])[0] in "AB"


def test_instructions_are_written_by_another_model_and_chosen_by_held_out_rows(tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("Say something.\nGuess.\n")

    def obeys(request: lm.Request) -> str:
        if "prompt" in request.text and "line of its own" in request.text:
            return "- Judge the film with care"
        return by_word(request) if "care" in request.text else "good"

    run = cuelight.tune(
        "llm-bbo-text",
        backbone=lm.scripted(obeys),
        data=write_rows(tmp_path / "d.csv"),
        pool=str(pool),
        steps_of_search=2,
    )
    assert run.prompt.method.prompt == "Judge the film with care\n\nText: {text}\nLabel:"
    assert run.metrics["accuracy"] == 1.0
    assert [t.prompt for t in run.prompt.method.history[:2]] in (
        ["Say something.", "Guess."],
        ["Guess.", "Say something."],
    )


# ---- class templates of a vision-language model ------------------------------------------------------------


def pictures(folder: Path) -> str:
    """A folder of class folders with plain pictures."""
    for part, count in (("train", 3), ("test", 2)):
        for c, name in enumerate(("red square", "green field")):
            (folder / part / name).mkdir(parents=True)
            for k in range(count):
                noise = np.random.default_rng(10 * c + k).integers(0, 60, (24, 24, 3))
                noise[..., c] += 180
                Image.fromarray(noise.astype(np.uint8)).save(folder / part / name / f"{k}.png")
    return str(folder)


def test_templates_are_scored_by_accuracy_whatever_the_temperature(tmp_path: Path) -> None:
    host = small_clip()
    method = LlmBbo(
        host, ImageTask(host, "classification", ("red", "green"), config=ImageConfig()), LlmBbo.Config()
    )
    rows = cuelight.data.read(pictures(tmp_path)).train
    items = method.task.encode(rows)
    templates = ["a photo of a {}.", "{} texture.", "the {} of it"]
    found = list(method.quality(templates, items, "accuracy"))
    for template, value in zip(templates, found, strict=True):
        names = method.texts([template.replace("{}", n) for n in ("red", "green")])
        pixels = method.task.collate(items).pixels
        nearest = (
            method.backbone.image_features(pixels) @ torch.nn.functional.normalize(names, dim=-1).T
        ).argmax(1)
        assert value == pytest.approx(
            float((nearest == torch.tensor([i.label for i in items])).double().mean())
        )
    with torch.no_grad():
        host.model.logit_scale.add_(1.0)
    method._zero_shot.clear()
    assert list(method.quality(templates, items, "accuracy")) == found
    assert not any(p.requires_grad for p in host.model.parameters()) and method.trainable == 0


def test_a_class_template_is_found_saved_and_used(tmp_path: Path) -> None:
    data, host = pictures(tmp_path / "data"), small_clip()
    pool = tmp_path / "pool.txt"
    pool.write_text("a photo of a {}.\n{} texture.\n")
    options: dict[str, Any] = {"lm": "minimind2-26m", "steps_of_search": 1, "retries": 1, "pool": str(pool)}
    run = cuelight.tune("llm-bbo", backbone=host, data=data, output=tmp_path / "out", **options)
    template = (tmp_path / "out" / "prompt.txt").read_text()
    assert template.count("{}") == 1 and run.prompt.record["search"]["spent"]["calls"] <= 2
    loaded = cuelight.load(tmp_path / "out", backbone=host)
    assert loaded.method.template == template
    picture = str(next((Path(data) / "test").rglob("*.png")))
    assert loaded.predict([picture]) == run.prompt.predict([picture])
    with pytest.raises(ConfigError, match="needs a model that writes"):
        cuelight.tune("llm-bbo", backbone=host, data=data)


# ---- from a shell, with a server ---------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUELIGHT_API_KEY", "k")
    made = Faulty()
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_server_is_a_backbone_in_the_shell(
    server: Faulty, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUELIGHT_CACHE", str(tmp_path / "cache"))
    server.say = lambda body: by_word(lm.Request("complete", prompt=str(body.get("prompt", ""))))
    data, out = write_rows(tmp_path / "d.csv"), str(tmp_path / "out")
    words = ["tune", "promptquine", "--backbone", server.spec, "--data", data, "--output", out]
    small = [w for k, v in SMALL.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    assert command([*words, *small, "--read", "words"]) == 0
    shown_ = capsys.readouterr().out
    assert "at most 14 prompts x 6 rows" in shown_ and "accuracy        1.0000" in shown_
    found = (tmp_path / "out" / "prompt.txt").read_text()
    before = len(server.seen)
    assert command([*words, *small, "--read", "words", "--restart"]) == 0
    assert len(server.seen) == before  # all of it was in the cache
    capsys.readouterr()
    assert command(["predict", out, "a lovely one"]) == 0
    assert "good" in capsys.readouterr().out
    assert server.seen[-1][1]["prompt"] == found.replace("{text}", "a lovely one")
    assert command(["tune", "dept", "--backbone", server.spec, "--data", data]) == 2
    assert "is a remote model; dept needs" in capsys.readouterr().err


# ---- the general search --------------------------------------------------------------------------------------


def test_search_takes_any_score(minimind: Backbone) -> None:
    start = "one two three four five six {text} seven eight"
    liked = {"two", "five", "{text}"}

    def score(prompt: str) -> int:
        return -len(set(prompt.split()) ^ liked)

    for mode in ("tapruning", "sahc", "gga"):
        extra = {"tolerance": 0} if mode == "tapruning" else {"min_length": 3} if mode == "gga" else {}
        found = cuelight.search("promptquine", score, prompt=start, mode=mode, max_prompts=400, **extra)
        assert found.score == max(t.score for t in found.history) and "{text}" in found.prompt
        assert found.spent["scored"] == len(found.history) <= 400 and found.ended_by is None
        assert found.score == 0 or mode == "gga"
    tokens = cuelight.search(
        "promptquine",
        len,
        prompt=start,
        mode="gga",
        min_length=8,
        max_prompts=50,
        tokenizer=minimind.tokenizer,
    )
    assert tokens.prompt == start
    strung = cuelight.search(
        "unsupervised-blackbox",
        lambda p: p.split().count("yes"),
        pool=["no", "yes", "maybe"],
        length=3,
        rounds=80,
        rate=0.05,
    )
    assert strung.prompt == "yes yes yes"
    batched = cuelight.search(
        "promptquine", lambda ps: [len(p) for p in ps], prompt=start, mode="sahc", batched=True
    )
    assert batched.prompt == start


def test_a_killed_search_pays_nothing_twice_and_ends_the_same(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.csv")
    script = (
        "import cuelight, sys, json\n"
        "run = cuelight.tune('promptquine', backbone='minimind2-26m', device='cpu', data=sys.argv[1], output=sys.argv[2],"
        f" ledger=sys.argv[3], **{SMALL!r})\n"
        "print(json.dumps([run.prompt.method.prompt, run.metrics, len(run.prompt.method.history)]))\n"
    )
    caches = {}
    for name in ("one", "two"):  # answers of their own, the backbones of all
        caches[name] = tmp_path / name
        caches[name].mkdir()
        (caches[name] / "backbones").symlink_to(cache_dir("backbones"))

    def started(name: str, cache: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, data, str(tmp_path / name), str(tmp_path / f"{name}.jsonl")]
        return subprocess.Popen(
            command,
            env={**os.environ, "CUELIGHT_CACHE": str(caches[cache])},
            stdout=subprocess.PIPE,
            text=True,
        )

    def paid(name: str) -> list[str]:
        file = tmp_path / f"{name}.jsonl"
        entries = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [entry["request"] for entry in entries if not entry["cached"]]

    whole = started("whole", "one")
    expected = json.loads(whole.communicate(timeout=120)[0])
    process = started("killed", "two")
    while len(paid("killed")) < 20 and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    again_ = started("killed", "two")
    assert json.loads(again_.communicate(timeout=120)[0]) == expected
    calls = paid("killed")
    # What was answered but not yet written down when the process died may be asked once more: one batch at most.
    assert len(calls) - len(set(calls)) <= 16 and set(calls) == set(paid("whole"))


def test_scores_are_kept_in_a_file_and_not_asked_again(tmp_path: Path) -> None:
    file, asked = tmp_path / "h.jsonl", []

    def score(prompt: str) -> float:
        asked.append(prompt)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return len(prompt)

    def found() -> cuelight.Found:
        return cuelight.search("promptquine", score, prompt="a b c d e f", mode="sahc", history=file)

    with pytest.raises(KeyboardInterrupt):
        found()
    with file.open("a") as lines:
        lines.write('{"prompt": "cut o')  # as a kill may leave it
    first = found()
    assert len(asked) == len(set(asked)) + 1 == 8 and asked[6] == asked[7]
    assert found().history == first.history and len(asked) == 8
    file.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="history"):
        found()


def test_the_shell_searches_with_a_command_that_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "score.py"
    script.write_text("import sys; text = sys.stdin.read(); print('said', -abs(len(text.split()) - 3))")
    words = ["search", "promptquine", "--score", f"{sys.executable} {script}", "--mode", "sahc"]
    output = tmp_path / "found.txt"
    assert command([*words, "--prompt", "a b {text} c d", "--output", str(output)]) == 0
    assert "score 0 of" in capsys.readouterr().err and output.read_text() == " {text} c d".replace("  ", " ")
    script.write_text("raise SystemExit('no such thing')")
    assert command([*words, "--prompt", "a b {text}"]) == 2
    assert "ended with 1 (no such thing)" in capsys.readouterr().err
    assert command(["search", "prompt-tuning", "--score", "true"]) == 2
    assert "is no search" in capsys.readouterr().err
