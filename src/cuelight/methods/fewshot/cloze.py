"""Cloze: classification as filling a slot, the way PET, LM-BFF and OpenPrompt do it.

A template wraps the text and leaves a slot, the language model says what belongs there, a verbalizer turns that into
classes.  Any template (words, soft words, both) goes with any verbalizer and any model, tuned or frozen.  It is the
baseline of the few-label methods: with the model tuned and words as verbalizer it is prompt-based fine-tuning; with
the model frozen and nothing soft, zero-shot prompting, which ``--calibrate`` may correct.

Learns: all weights of a copy of the model (``--model frozen``: none), the template's soft words, a weighted, soft or
prototypical verbalizer.  Costs: one pass a step and a text; a word of several tokens one more for every length.

Sources: Schick, Schuetze 2021 (PET), arXiv 2001.07676; Gao et al. 2021 (LM-BFF), 2012.15723; Ding et al. 2022
(OpenPrompt), 2111.01998.  Departures: no masked-LM loss beside the task's (PET's auxiliary one), no search for words
and templates (LM-BFF); AdamW for everything, rates of small models.
"""

from __future__ import annotations

from typing import ClassVar

from cuelight.methods.base import Card
from cuelight.methods.cloze import Cloze


class ClozeTuning(Cloze):
    """Any template, any verbalizer, any language model."""

    card: ClassVar[Card] = Card(
        name="cloze",
        title="Cloze: a template, a slot and a verbalizer",
        family="fewshot",
        modality="text",
        learns="all weights of a copy of the model, or none; soft words of the template; what the verbalizer learns",
        cost="full fine-tuning, or with a frozen model one pass and what is learned",
        kinds=("causal", "seq2seq", "masked"),
        tasks=("classification",),
        paper="Exploiting Cloze Questions for Few Shot Text Classification and Natural Language Inference",
        arxiv="2001.07676",
        year=2021,
    )
