"""Chain-of-Note: a note on every retrieved document, whether it answers, gives context or is irrelevant, and then the answer.

The answer comes from a document, is inferred from the context, or is "unknown" when nothing supports one.

Calls: 1.  Source: Yu et al., "Chain-of-note: enhancing robustness in retrieval-augmented language models", EMNLP 2024, arXiv
2311.09210.  *Departures*: the paper also trains a Llama-2 on notes of a larger model; here the model is only asked.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from cuelight.lm.documents import Documents
from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="chain-of-note",
        title="Chain-of-Note (CoN) prompting",
        group="hallucination",
        calls="1",
        paper="Yu et al., Chain-of-note: enhancing robustness in retrieval-augmented language models",
        arxiv="2311.09210",
        year=2023,
        acquired="model-generated",
        turns="multi",
        shown_on="Llama-2, DPR",
    )
)
def chain_of_note(
    run: Run,
    question: str,
    *,
    documents: Annotated[Any, Field(description="A folder, a file, or a list of texts.")],
    k: Annotated[int, Field(ge=1, description="Passages that are retrieved.")] = 3,
    retriever: Annotated[
        str, Field(description="bm25, words, or a sentence encoder such as minilm-l6.")
    ] = "bm25",
) -> str | None:
    passages = Documents.read(documents, retriever).search(question, k)
    run.note("retrieved", data=[{"title": p.title, "text": p.text, "score": p.score} for p in passages])
    context = "\n".join(f"Document {n} ({p.title}): {p.text}" for n, p in enumerate(passages, 1))
    text = run.ask(
        f"{context}\n\nQ: {run.asked}\nWrite a note on each document: does it answer the question, does it only give context, "
        "or is it irrelevant? Then answer from the document that answers it; if none does, infer the answer from the "
        f'context; if nothing supports an answer, answer "unknown". {run.form}\nNotes:',
        "notes and answer",
    )
    notes, marker, said = text.rpartition("answer is")
    run.note("notes", notes.strip())
    return "unknown" if marker and said.strip(" .:\"'").lower().startswith("unknown") else run.parse(text)
