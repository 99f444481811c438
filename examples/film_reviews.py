"""The demo: a frozen 135-million-parameter language model learns a prompt on 500 real film reviews.

It prints what the model does as it is, with 16 examples in its context, and with the learned prompt, on 300 reviews
none of them has seen, and ends with the lines to type for one's own data.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cuelight
from cuelight.data import read

TEMPLATE = "Review: {text}\nSentiment:"
OUTPUT = Path("runs/demo")


def main() -> None:
    began = time.perf_counter()
    reviews = read("film-reviews", max_train=500, max_validation=60, max_test=300)
    print("\n".join(reviews.report.lines()), flush=True)
    backbone = cuelight.load_backbone("smollm2-135m")
    print(
        f"\nbackbone: {backbone.id}, {backbone.parameters / 1e6:.0f} million parameters, all frozen\n",
        flush=True,
    )

    def show(name: str, run: cuelight.Run) -> None:
        accuracy, seconds = 100 * run.metrics["accuracy"], time.perf_counter() - began
        print(
            f"{name:<32} accuracy {accuracy:5.1f} %   {run.trainable:>6} trained values   ({seconds:.0f} s)",
            flush=True,
        )

    common = {"backbone": backbone, "data": reviews, "template": TEMPLATE, "progress": True}
    show("before (zero-shot)", cuelight.tune("zero-shot", **common))
    show("16 examples in the context", cuelight.tune("in-context", demonstrations=16, **common))
    learned = cuelight.tune(
        "prompt-tuning",
        length=20,
        steps=120,
        batch_size=16,
        evaluate_every=40,
        output=OUTPUT,
        restart=True,
        **common,
    )
    show("after (prompt tuning)", learned)

    answers = cuelight.load(OUTPUT, backbone=backbone).predict(
        ["A waste of two good hours.", "I laughed, I cried, I want to see it again."]
    )
    print(f"\nsaved in {OUTPUT} and loaded again; it says of two new reviews: {', '.join(answers)}")
    cuelight_ = Path(sys.executable).parent / "cuelight"
    command = cuelight_.relative_to(Path.cwd()) if cuelight_.is_relative_to(Path.cwd()) else "cuelight"
    print(
        "\nNext, on your own table with a column of texts and one of labels:\n"
        f"  {command} data my.csv                                   # what is in it\n"
        f"  {command} tune prompt-tuning --backbone smollm2-135m --data my.csv --output runs/mine\n"
        f'  {command} predict runs/mine "a new text"\n'
        f"  {command} compare zero-shot,prompt-tuning,dept --backbone smollm2-135m --data my.csv --shots 16 --seeds 3"
    )


if __name__ == "__main__":
    main()
