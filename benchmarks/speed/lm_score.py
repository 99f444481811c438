"""Candidate prompts times examples: `lm.score` against a plain loop.

What every search over text prompts does: each candidate (here an in-context prompt of labelled film reviews, pruned at
random as PromptQuine prunes) is put before each example, and the label words are scored.  Three ways, the same numbers:

* ``generate``: transformers' ``generate`` of one token with its scores, prompt after prompt, which is how it is written
  down first;
* ``forward``: one forward pass of the model for each prompt, the last position's scores only;
* ``lm.score``: one call; each candidate's beginning is read once, examples share passes.

Evaluations (one prompt on one example) per second, the ways one after the other in every round, the median of rounds.
Nothing is shared in the loops, so they run over a part of the prompts, spread evenly.  On a CPU the seconds are those of
this process's processor time, one thread: other work on the machine does not count.

    python -m benchmarks.speed.lm_score
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import cuelight
from benchmarks.common import write_result
from cuelight import lm

WORDS = (" terrible", " great")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--shots", type=int, default=8, help="labelled reviews in the unpruned prompt")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--part", type=int, default=6, help="prompts the plain loops run over")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    host = cuelight.load_backbone(arguments.backbone)
    clock = time.process_time if host.device.type == "cpu" else time.perf_counter
    torch.set_num_threads(1)
    splits = cuelight.data.read("film-reviews", max_test=arguments.examples)
    draw = random.Random(0)
    shown = draw.sample(list(splits.train), arguments.shots)
    tokens = "\n".join(f"Review: {row['text']} It was{WORDS[row['label']]}." for row in shown).split(" ")
    candidates = [
        " ".join(word for word in tokens if draw.random() > 0.25) for _ in range(arguments.candidates)
    ]
    prompts = [f"{c}\nReview: {row['text']} It was" for c in candidates for row in splits.test]
    part = list(range(0, len(prompts), max(1, len(prompts) // arguments.part)))
    ids = [host.tokenizer(word, add_special_tokens=False).input_ids[0] for word in WORDS]

    @torch.no_grad()
    def generate() -> np.ndarray:
        found = []
        for prompt in (prompts[k] for k in part):
            given = host.tokenizer(prompt, return_tensors="pt").to(host.device)
            said = host.model.generate(
                **given,
                max_new_tokens=1,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
                pad_token_id=host.tokenizer.pad_token_id,
            )
            found.append(said.scores[0][0].float().log_softmax(-1)[ids].tolist())
        return np.array(found)

    @torch.no_grad()
    def forward() -> np.ndarray:
        found = []
        for prompt in (prompts[k] for k in part):
            given = host.tokenizer(prompt, return_tensors="pt").to(host.device)
            logits = host.model(**given, logits_to_keep=1).logits[0, -1]
            found.append(logits.float().log_softmax(-1)[ids].tolist())
        return np.array(found)

    def ours() -> np.ndarray:
        # A new connection each time, so that no beginning is there from the round before.
        return lm.connect(host, cache=False, batch_size=arguments.batch_size).score(prompts, WORDS)

    arms: dict[str, Callable[[], np.ndarray]] = {"generate": generate, "forward": forward, "lm.score": ours}
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    tables = {}
    host.model(**host.tokenizer(prompts[0], return_tensors="pt").to(host.device))  # warm up
    for _ in range(arguments.rounds):
        for arm, act in arms.items():
            begun = clock()
            tables[arm] = act()
            rates[arm].append(len(tables[arm]) / (clock() - begun))
    apart = max(
        float(np.abs(tables["lm.score"][part] - tables[arm]).max()) for arm in ("generate", "forward")
    )
    lengths = [len(host.tokenizer(prompt).input_ids) for prompt in prompts]
    before = [len(host.tokenizer(candidate).input_ids) for candidate in candidates]
    median = {arm: statistics.median(values) for arm, values in rates.items()}
    ratio = {arm: median["lm.score"] / median[arm] for arm in ("generate", "forward")}
    summary = (
        f"{host.id}, {len(candidates)} candidate prompts of {statistics.mean(before):.0f} tokens on {len(splits.test)} "
        f"examples: {median['lm.score']:.1f} evaluations per second, {ratio['generate']:.1f} times a loop over generate "
        f"({median['generate']:.1f}) and {ratio['forward']:.1f} times a loop over the model ({median['forward']:.1f}); "
        f"log-probabilities at most {apart:.1e} apart."
    )
    result = {
        "methods": [],
        "candidates": len(candidates),
        "examples": len(splits.test),
        "prompt_tokens": statistics.mean(lengths),
        "candidate_tokens": statistics.mean(before),
        "evaluations_per_second": {arm: [round(v, 2) for v in values] for arm, values in rates.items()},
        "ratio": ratio,
        "largest_difference": apart,
        "summary": summary,
    }
    print(summary)
    write_result("speed", f"lm-score-{host.id.replace('/', '-')}", "benchmarks.speed.lm_score", result)


if __name__ == "__main__":
    main()
