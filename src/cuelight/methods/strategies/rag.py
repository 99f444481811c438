"""Retrieval-augmented generation: passages of the user's documents stand before the question.

``together`` puts the ``k`` nearest into one prompt.  ``sequence`` is the original's RAG-Sequence: an answer is drafted from
each passage, each draft is scored behind every passage, and the draft with the largest sum over passages of p(passage) times
p(answer | passage) wins; p(passage) is a softmax of the retriever's scores.

Calls: 1; sequence: k + k.  Source: Lewis et al., "Retrieval-augmented generation for knowledge-intensive NLP tasks",
NeurIPS 2020, arXiv 2005.11401.  *Departures*: retriever and generator are frozen, the paper trains both; RAG-Token, which
mixes distributions token by token, is left out: it needs the model's whole distribution at every step.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cuelight.lm.documents import Documents
from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="rag",
        title="Retrieval-Augmented Generation (RAG)",
        group="hallucination",
        calls="1 (sequence: 2 * k)",
        paper="Lewis et al., Retrieval-augmented generation for knowledge-intensive NLP tasks",
        arxiv="2005.11401",
        year=2020,
        acquired="retrieval",
        turns="single",
    )
)
def rag(
    run: Run,
    question: str,
    *,
    documents: Annotated[Any, Field(description="A folder, a file, or a list of texts.")],
    k: Annotated[int, Field(ge=1, description="Passages that are retrieved.")] = 3,
    retriever: Annotated[
        str, Field(description="bm25, words, or a sentence encoder such as minilm-l6.")
    ] = "bm25",
    mix: Annotated[
        Literal["together", "sequence"], Field(description="One prompt, or a sum over passages.")
    ] = "together",
) -> str | None:
    passages = Documents.read(documents, retriever).search(question, k)
    run.note("retrieved", data=[{"title": p.title, "text": p.text, "score": p.score} for p in passages])
    if mix == "together" or not passages:
        context = "\n".join(f"[{n}] {p.title}: {p.text}" for n, p in enumerate(passages, 1))
        return run.parse(
            run.ask(f"{context}\n\nAnswer from the passages. {run.form}\nQ: {run.asked}\nA:", "answer")
        )
    prompts = [f"{p.title}: {p.text}\nQ: {run.asked}\nA:" for p in passages]
    drafts = run.ask_all(prompts, "draft", stop=("\n",), max_tokens=64)
    unique = list(dict.fromkeys(f" {draft}" for draft in drafts if draft))
    if not unique:
        return None
    scores = np.array([p.score for p in passages])
    prior = scores - np.logaddexp.reduce(scores)
    likely = np.array([run.score(prompt, unique, "p(answer | passage)") for prompt in prompts])
    mixed = np.logaddexp.reduce(likely + prior[:, None], axis=0)
    best = int(mixed.argmax())
    run.note("mixed", data=dict(zip(unique, map(float, mixed), strict=True)))
    run.trace.confidence = float(np.exp(mixed[best] - np.logaddexp.reduce(mixed)))
    return run.parse(f"The answer is {unique[best]}")
