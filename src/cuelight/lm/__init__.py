"""Text in, text out: language models behind one interface, one meter, one cache and one ledger.

    from cuelight import lm
    model = lm.connect("smollm2-135m")                              # built-in name, folder, hub id, loaded model
    model = lm.connect("http://127.0.0.1:8000/v1#model-name")       # any OpenAI-compatible server
    model.complete("The capital of France is", max_tokens=5).text
    model.score(["It was a joy. It was", "Dull. It was"], [" good", " bad"])   # [2, 2] log-probabilities

A call is counted, paid for and remembered here, whatever answers it: budgets are hard, an answer is never paid for
twice, and a killed search goes on from the cache to the same result.
"""

from cuelight.lm.base import LM, Completion, LMError, Request, Usage
from cuelight.lm.connecting import connect, scripted
from cuelight.lm.meter import Budget, BudgetError, Meter, Spent

__all__ = [
    "LM",
    "Budget",
    "BudgetError",
    "Completion",
    "LMError",
    "Meter",
    "Request",
    "Spent",
    "Usage",
    "connect",
    "scripted",
]
