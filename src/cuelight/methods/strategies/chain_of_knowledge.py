"""Chain-of-Knowledge: where sampled chains disagree, each rationale is corrected in turn with what is looked up for it.

The chains vote; when the majority's share reaches ``agree``, that is the answer.  Else the model chooses among the knowledge
sources, and for every sentence of the majority's chain, in order, it writes a query for the source, passages are retrieved,
and the sentence is rewritten with them before the next is treated.  The answer is given from the corrected sentences.

Calls: samples; on disagreement also 1 for the sources, 2 for each sentence, and 1.  Source: Li et al., "Chain-of-knowledge:
grounding large language models via dynamic knowledge adapting over heterogeneous sources", ICLR 2024, arXiv 2305.13269.
*Departures*: the paper's sources are Wikidata, Wikipedia, tables and more, with trained query writers; here they are the
user's documents, one collection or several by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from cuelight.lm.answers import normal
from cuelight.lm.documents import Documents
from cuelight.methods.strategy import DEMOS, Demos, Run, StrategyCard, demos_of, majority, strategy, worked


@strategy(
    StrategyCard(
        name="chain-of-knowledge",
        title="Chain-of-Knowledge (CoK) prompting",
        group="hallucination",
        calls="samples; on disagreement also 1 + 2 for each sentence + 1",
        paper="Li et al., Chain-of-knowledge: grounding large language models via dynamic knowledge adapting",
        arxiv="2305.13269",
        year=2023,
        acquired="model-generated",
        turns="multi",
        shown_on="GPT-3.5",
    )
)
def chain_of_knowledge(
    run: Run,
    question: str,
    *,
    documents: Annotated[
        Any, Field(description="A folder, a file, a list of texts; in Python also {domain: documents}.")
    ],
    samples: Annotated[int, Field(ge=1, description="Chains that vote.")] = 5,
    agree: Annotated[float, Field(gt=0, le=1, description="Share of votes that needs no correction.")] = 0.6,
    k: Annotated[int, Field(ge=1, description="Passages for each query.")] = 2,
    temperature: Annotated[float, Field(ge=0, description="Temperature of the chains.")] = 0.7,
    demos: Annotated[Demos, Field(description="Examples with rationales.")] = DEMOS,
) -> str | None:
    texts = run.sample(f"{worked(demos_of(demos))}Q: {run.asked}\nA:", samples, "chain", temperature)
    answers = [run.parse(text) for text in texts]
    best, votes = majority(answers)
    share = votes[best] / samples if best else 0.0
    run.note("votes", data=votes)
    run.trace.confidence = share
    if best is not None and share >= agree:
        return best
    sources = documents if isinstance(documents, dict) else {"documents": documents}
    said = run.ask(
        f"Q: {run.asked}\nSources: {', '.join(sources)}\nWhich sources help? Name them:",
        "sources",
        max_tokens=48,
    )
    domains = [name for name in sources if name.lower() in said.lower()] or list(sources)
    libraries = [Documents.read(sources[name]) for name in domains]
    chain = next(
        (t for t, a in zip(texts, answers, strict=True) if a and best and normal(a) == normal(best)), texts[0]
    )
    corrected: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", chain):
        if not sentence.strip() or "answer is" in sentence.lower():
            continue
        before = " ".join(corrected)
        query = run.ask(
            f"Q: {run.asked}\n{before}\nSentence: {sentence}\nWrite a search query that checks it:",
            "query",
            max_tokens=48,
        )
        passages = [p for library in libraries for p in library.search(query or sentence, k)]
        run.note("retrieved", data=[{"title": p.title, "text": p.text} for p in passages], query=query)
        known = "\n".join(f"{p.title}: {p.text}" for p in passages)
        corrected.append(
            run.ask(f"{known}\n\nQ: {run.asked}\n{before}\nSentence: {sentence}\nRewrite the sentence so that it agrees with the "
                    "texts above, in one sentence:", "rewrite")
        )  # fmt: skip
    return run.parse(run.ask(f"Q: {run.asked}\n{' '.join(corrected)}\n{run.form}\nA:", "answer"))
