"""minilm-mlm as a language model: pseudo-perplexity and cloze accuracy on sentences that its recipe never saw.

Every token of a sentence is masked in turn and the model asked for it: the exponential of the mean negative log-likelihood is
the pseudo-perplexity (Salazar et al. 2020, arXiv 1910.14659), the share of tokens that are among the likeliest 1 and 5 the
cloze accuracy, of all tokens and of those that begin with a letter, are a whole word and no stop word.  12 sentences each of
the test rows of eight data sets, none of which also stands in a training split.  Beside it: the head's bias
alone.

    python -m benchmarks.backbones.minilm_mlm
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import pandas as pd
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor

import cuelight
from benchmarks.common import data_file, write_result

SETS = ("sst2", "subj", "trec", "cr", "ag_news", "mnli", "scicite", "medical_abstracts")
SENTENCES, LONGEST, AT_ONCE = 12, 48, 32


def sentences(name: str, tokenizer: Any) -> list[list[int]]:
    """Token ids of test rows that no training row repeats, cut to 48 tokens."""
    table = pd.read_parquet(data_file(f"text/{name}.parquet"))
    known = set(table.text[table.split != "test"].str.strip().str.lower())
    test = table.text[
        (table.split == "test") & ~table.text.str.strip().str.lower().isin(known)
    ].drop_duplicates()
    texts = test.sample(SENTENCES, random_state=0).tolist()
    return tokenizer(texts, truncation=True, max_length=LONGEST).input_ids


@torch.no_grad()
def judged(host: Any, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every inner token when it is masked, and how many others are likelier, ``[T - 2]`` each."""
    places = torch.arange(1, len(ids) - 1)
    rows = torch.tensor(ids).repeat(len(places), 1)
    truth = rows[torch.arange(len(places)), places].clone()
    rows[torch.arange(len(places)), places] = host.tokenizer.mask_token_id
    likelihoods, ranks = [], []
    for k in range(0, len(places), AT_ONCE):
        part, at, wanted = rows[k : k + AT_ONCE], places[k : k + AT_ONCE], truth[k : k + AT_ONCE]
        with host.scoring(torch.arange(len(part)), at):
            logits = host.model(input_ids=part).logits.float().log_softmax(-1)
        own = logits.gather(1, wanted[:, None])
        likelihoods.append(own[:, 0])
        ranks.append((logits > own).sum(1))
    return torch.cat(likelihoods), torch.cat(ranks)


def figures(likelihood: Tensor, rank: Tensor, content: Tensor) -> dict[str, float]:
    """Pseudo-perplexity and cloze accuracy."""
    return {
        "tokens": len(likelihood),
        "pseudo_perplexity": math.exp(-float(likelihood.mean())),
        "top_1": float((rank < 1).float().mean()),
        "top_5": float((rank < 5).float().mean()),
        "content_words": int(content.sum()),
        "content_top_1": float((rank[content] < 1).float().mean()),
        "content_top_5": float((rank[content] < 5).float().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    host = cuelight.load_backbone("minilm-mlm", device="cpu")
    bias = host.model.get_output_embeddings().bias.detach().float().log_softmax(-1)
    sets: dict[str, Any] = {}
    every: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for name in SETS:
        parts = []
        for ids in sentences(name, host.tokenizer):
            inner = torch.tensor(ids[1:-1])
            likelihood, rank = judged(host, ids)
            parts.append((inner, likelihood, rank, content_words(host.tokenizer, ids[1:-1])))
        every += parts
        _, likelihood, rank, content = (torch.cat(p) for p in zip(*parts, strict=True))
        sets[name] = figures(likelihood, rank, content)
        print(name, sets[name], flush=True)
    inner, likelihood, rank, content = (torch.cat(p) for p in zip(*every, strict=True))
    total = figures(likelihood, rank, content)
    frequency = figures(bias[inner], (bias > bias[inner][:, None]).sum(1), content)
    result = {
        "backbone": "minilm-mlm",
        "parameters": host.parameters,
        "all": total,
        "bias alone": frequency,
        "sets": sets,
        "summary": summary(total, frequency, sets),
    }
    write_result("backbones", "minilm-mlm", "benchmarks.backbones.minilm_mlm", result)


def content_words(tokenizer: Any, ids: list[int]) -> Tensor:
    """Which tokens are whole words, begin with a letter and are no stop words."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    whole = [
        piece[0].isalpha() and not following.startswith("##") and piece not in ENGLISH_STOP_WORDS
        for piece, following in zip(pieces, [*pieces[1:], ""], strict=True)
    ]
    return torch.tensor(whole)


def summary(total: dict[str, float], frequency: dict[str, float], sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    by_set = ", ".join(f"{name} {found['pseudo_perplexity']:.1f}" for name, found in sets.items())
    return (
        f"Pseudo-perplexity {total['pseudo_perplexity']:.1f} over {total['tokens']} tokens (the bias of its head alone "
        f"{frequency['pseudo_perplexity']:.0f}); by data set {by_set}.  The masked token is the likeliest in "
        f"{100 * total['top_1']:.1f} %, among the likeliest five in {100 * total['top_5']:.1f} % (bias alone "
        f"{100 * frequency['top_1']:.1f} and {100 * frequency['top_5']:.1f} %); of {total['content_words']} content words in "
        f"{100 * total['content_top_1']:.1f} and {100 * total['content_top_5']:.1f} %."
    )


if __name__ == "__main__":
    main()
