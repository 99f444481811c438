"""Soft prompts: the slots they take, the values they start from, and running a backbone under them."""

from cuelight.prompts.conditioning import Condition, answer_logits, choice_scores, generate
from cuelight.prompts.initial import Initialisation, initial_prompt
from cuelight.prompts.slots import fill_text_slots, insert_tokens, slot_ids

__all__ = [
    "Condition",
    "Initialisation",
    "answer_logits",
    "choice_scores",
    "fill_text_slots",
    "generate",
    "initial_prompt",
    "insert_tokens",
    "slot_ids",
]
