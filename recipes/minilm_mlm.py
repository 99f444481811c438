"""minilm-mlm: a masked-LM head for MiniLM, and low-rank updates that make its body a language model again.

The sentence encoder minilm-l6 lost its head when it was trained to compare sentences.  This trains a new one (BERT's:
dense, GELU, LayerNorm, the word embeddings as decoder, a bias) together with rank-24 updates of all linear layers of
the body, on single English sentences of the public data sets below ``CUELIGHT_DATA`` (training splits only, texts only,
none that also stands in a test, validation or dev split).  15 % of the tokens are predicted: 80 % of them masked, 10 %
replaced, 10 % kept.  Embeddings stay as they are.

    python -m recipes.minilm_mlm                 # goes on where it was interrupted; about 25 minutes on one core
    python -m recipes.minilm_mlm --write         # only writes what has been learned so far

writes ``src/cuelight/backbones/builtin/weights/minilm_mlm.safetensors`` (float16).  `benchmarks.backbones.minilm_mlm`
measures it.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from benchmarks.common import DATA
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from cuelight.backbones.backbone import load_backbone

RANK, TOKENS, LONGEST = 24, 1536, 64
OUT = Path(__file__).parents[1] / "src/cuelight/backbones/builtin/weights/minilm_mlm.safetensors"
STATE = Path("runs/recipes/minilm_mlm.pt")
SETS = {
    "text": ("sst2 mr cr subj mpqa trec imdb yelp5 ag_news yahoo_answers mnli snli qnli qqp mrpc rte scicite "
             "medical_abstracts emerging_nlp cola stsb clinc150 banking77 acl_arc"),
    "gen": "cnndm_sample multi30k asset samsum dialogsum",
}  # fmt: skip
COLUMNS = ("text", "text_b", "article", "en", "source", "dialogue")


def texts() -> list[str]:
    """All training texts, none that is also tested on."""
    kept: list[str] = []
    tested: set[str] = set()
    for folder, names in SETS.items():
        for name in names.split():
            table = pd.read_parquet(DATA / folder / f"{name}.parquet")
            for column in (c for c in COLUMNS if c in table.columns):
                train = table["split"] == "train"
                kept += table[column][train].dropna().tolist()
                tested |= {t.strip().lower() for t in table[column][~train].dropna()}
    glosses = pd.read_parquet(DATA / "prompts" / "wordnet_glosses.parquet")
    kept += (glosses["class_name"] + " is " + glosses["gloss"]).dropna().tolist()
    return [text for text in dict.fromkeys(kept) if text.strip().lower() not in tested]


def rows_of(found: list[str], tokenizer: object) -> list[list[int]]:
    """Token ids ``[CLS] ... [SEP]`` of at most 64, long texts in pieces."""
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id  # type: ignore[attr-defined]
    rows = []
    for ids in tokenizer(found, add_special_tokens=False).input_ids:  # type: ignore[operator]
        for k in range(0, len(ids), LONGEST - 2):
            piece = ids[k : k + LONGEST - 2]
            if len(piece) >= 5:
                rows.append([start, *piece, end])
    return rows


def batches(rows: list[list[int]], seed: int) -> Iterator[list[list[int]]]:
    """Batches of about 1,536 tokens whose rows are of like length, for ever."""
    draw = random.Random(seed)
    while True:
        order = sorted(range(len(rows)), key=lambda k: len(rows[k]) + draw.random() * 4)
        parts: list[list[list[int]]] = [[]]
        for k in order:
            if (len(parts[-1]) + 1) * len(rows[k]) > TOKENS:
                parts.append([])
            parts[-1].append(rows[k])
        draw.shuffle(parts)
        yield from parts


def masked(rows: list[list[int]], tokenizer: object, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Ids as the model reads them, the attention mask, and the true ids with -1 where nothing is predicted."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id) | (real == 0)  # type: ignore
    chosen = (torch.rand(ids.shape, generator=draw) < 0.15) & ~special
    how = torch.rand(ids.shape, generator=draw)
    read = ids.masked_fill(chosen & (how < 0.8), tokenizer.mask_token_id)  # type: ignore[attr-defined]
    other = torch.randint(1000, 30522, ids.shape, generator=draw)
    read = torch.where(chosen & (how >= 0.9), other, read)
    return read, real, ids.masked_fill(~chosen, -1)


class Head(nn.Module):
    """BERT's masked-LM head; at the start the state itself is compared with the word embeddings."""

    def __init__(self, embeddings: Tensor, frequency: Tensor) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter((frequency + 1).log() - (frequency + 1).log().mean())
        self.embeddings = embeddings
        with torch.no_grad():
            self.dense.weight.copy_(torch.eye(width))
            self.dense.bias.zero_()

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(nn.functional.gelu(self.dense(states))) @ self.embeddings.T + self.bias


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="only write what has been learned so far")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    host = load_backbone("minilm-l6", device="cpu")
    body = host.model.train()
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    pattern = r"encoder\.layer\.\d+\..*(query|key|value|dense)"
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=pattern), body)
    rows = rows_of(texts(), host.tokenizer)
    random.Random(0).shuffle(rows)
    held, rows = rows[:400], rows[400:]
    print(f"{len(rows)} rows, {sum(map(len, rows)) / 1e6:.1f} M tokens")
    counts = torch.bincount(torch.tensor([t for row in rows for t in row]), minlength=30522).float()
    head = Head(body.embeddings.word_embeddings.weight.detach(), counts)
    learned = {n: p for n, p in body.named_parameters() if "lora_" in n}
    learned |= {f"head.{n}": p for n, p in head.named_parameters()}
    for parameter in learned.values():
        parameter.requires_grad_(True)
    decayed = [p for p in learned.values() if p.dim() > 1]
    plain = [p for p in learned.values() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=given.rate,
        betas=(0.9, 0.98),
    )

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 100) * max(0.02, 1 - step / given.steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    draw, done = torch.Generator().manual_seed(1), 0
    if STATE.exists():
        saved = torch.load(STATE, weights_only=True)
        for name, parameter in learned.items():
            parameter.data.copy_(saved["weights"][name])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        draw.set_state(saved["draw"])
        done = saved["done"]
    if given.write:
        write(learned)
        return

    def loss(part: list[list[int]], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        read, real, truth = masked(part, host.tokenizer, generator)
        states = body(input_ids=read, attention_mask=real).last_hidden_state
        wanted = truth >= 0
        return nn.functional.cross_entropy(head(states[wanted]), truth[wanted]), states, truth

    @torch.no_grad()
    def watched() -> float:
        generator = torch.Generator().manual_seed(7)
        ordered = sorted(held, key=len)
        parts = [ordered[k : k + 25] for k in range(0, len(ordered), 25)]
        return sum(float(loss(part, generator)[0]) for part in parts) / len(parts)

    stream = batches(rows, 3)
    for _ in range(done):
        next(stream)
    bar = tqdm(range(done, given.steps), initial=done, total=given.steps, desc="minilm-mlm")
    saved_at = time.monotonic()
    for step in bar:
        part = next(stream)
        value = loss(part, draw)[0]
        value.backward()
        nn.utils.clip_grad_norm_(list(learned.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 200 == 199 or step == done:
            held_out = watched()
            bar.write(f"step {step + 1}: held-out loss {held_out:.3f}, perplexity {math.exp(held_out):.1f}")
        if time.monotonic() - saved_at > 120 or step + 1 == given.steps:
            STATE.parent.mkdir(parents=True, exist_ok=True)
            new = STATE.with_suffix(".new")
            torch.save(
                {
                    "weights": {n: p.detach() for n, p in learned.items()},
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "draw": draw.get_state(),
                    "done": step + 1,
                },
                new,
            )
            new.replace(STATE)
            saved_at = time.monotonic()
    write(learned)


def write(learned: dict[str, nn.Parameter]) -> None:
    """The learned tensors in float16, under short names: ``layer.0.attention.self.query.A`` and so on."""
    out = {}
    for name, parameter in learned.items():
        short = (
            name.removeprefix("encoder.")
            .replace(".lora_A.default.weight", ".A")
            .replace(".lora_B.default.weight", ".B")
        )
        out[short] = parameter.detach().half().contiguous()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, OUT)
    print(
        f"written: {OUT.name}, {OUT.stat().st_size / 1e6:.2f} MB, {sum(t.numel() for t in out.values()):,} values"
    )


if __name__ == "__main__":
    main()
