"""Instance-adaptive prompting: of several zero-shot triggers, the one whose information flows best for this question.

The flow is read from the model: saliency, the attention times the gradient of the rationale's loss with respect to it
(absolute values, summed over heads, mean over layers), from the question to the trigger, from the question to the rationale
and from the trigger to the rationale.  A trigger's score is the weighted sum of the three means.  ``sequential`` takes the
first trigger above ``threshold``; ``vote`` lets the answers of the ``top`` best triggers vote.

Calls: at most 2 for each trigger (rationale and answer), and a backward pass for each; a local causal transformers model.
Source: Yuan et al., "Instance-adaptive zero-shot chain-of-thought prompting", NeurIPS 2024, arXiv 2409.20441.
*Departures*: weights, threshold and the choice of layers are the paper's to tune for a model; here equal weights and
all layers, and without ``threshold`` the sequential form takes the best of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cuelight.lm.base import LMError
from cuelight.methods.strategy import Run, StrategyCard, majority, strategy

if TYPE_CHECKING:
    from cuelight.backbones.backbone import Backbone

TRIGGERS = (
    "Let's think step by step.",
    "Let's solve this problem by splitting it into steps.",
    "First, let's look at what is given, then at what is asked.",
    "Let's be careful and check every number.",
)


@strategy(
    StrategyCard(
        name="instance-adaptive",
        title="Instance-adaptive Prompting (IAP)",
        group="reasoning",
        calls="at most 2 for each trigger, and a backward pass",
        paper="Yuan et al., Instance-adaptive zero-shot chain-of-thought prompting",
        arxiv="2409.20441",
        year=2024,
    )
)
def instance_adaptive(
    run: Run,
    question: str,
    *,
    triggers: Annotated[
        tuple[str, ...], Field(min_length=1, description="The triggers to choose from.")
    ] = TRIGGERS,
    form: Annotated[
        Literal["sequential", "vote"], Field(description="First good trigger, or a vote.")
    ] = "vote",
    threshold: Annotated[float | None, Field(description="A score that is good enough (sequential).")] = None,
    top: Annotated[int, Field(ge=1, description="Triggers that vote.")] = 3,
    weights: Annotated[
        tuple[float, float, float],
        Field(description="Weights of question-trigger, question-rationale and trigger-rationale flow."),
    ] = (1.0, 1.0, 1.0),
) -> str | None:
    host = getattr(run.lm, "backbone", None)
    if host is None or host.kind != "causal":
        raise LMError(
            f"model {run.lm.name}: instance-adaptive prompting reads attention and gradients; use a local causal model"
        )
    head = f"Q: {run.asked}\nA:"
    scored: list[tuple[float, str, str]] = []
    for trigger in triggers:
        rationale = run.ask(f"{head} {trigger}", "rationale")
        flows = saliency(host, head, f" {trigger}", f" {rationale}") if rationale else (0.0, 0.0, 0.0)
        score = sum(w * f for w, f in zip(weights, flows, strict=True))
        run.note("saliency", trigger, flows=flows, score=score)
        scored.append((score, trigger, rationale))
        if form == "sequential" and threshold is not None and score >= threshold:
            scored = [scored[-1]]
            break
    best = sorted(scored, key=lambda entry: -entry[0])[: top if form == "vote" else 1]
    prompts = [f"{head} {trigger} {rationale}\nTherefore, the answer is" for _, trigger, rationale in best]
    said = run.ask_all(prompts, "answer", max_tokens=64)
    answer, votes = majority([run.parse(f"The answer is {text}") for text in said])
    run.note("votes", data=votes)
    return answer


def saliency(host: Backbone, question: str, trigger: str, rationale: str) -> tuple[float, float, float]:
    """Mean saliency of question to trigger, question to rationale and trigger to rationale.

    The loss is the rationale's mean negative log-likelihood.  The model's weights get no gradient.
    """
    import torch

    model: Any = host.model
    tokens = [host.tokenizer(t, add_special_tokens=False).input_ids for t in (question, trigger, rationale)]
    ids = torch.tensor([[t for part in tokens for t in part]], device=host.device)
    q, p = len(tokens[0]), len(tokens[0]) + len(tokens[1])
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.enable_grad():
            vectors = model.get_input_embeddings()(ids).detach().requires_grad_(True)
            found = model(inputs_embeds=vectors, output_attentions=True, use_cache=False)
            loss = torch.nn.functional.cross_entropy(found.logits[0, p - 1 : -1].float(), ids[0, p:])
            gradients = torch.autograd.grad(loss, found.attentions)
    finally:
        model.set_attn_implementation(before)
    flow = torch.stack(
        [(a * g).abs().sum(1)[0].float() for a, g in zip(found.attentions, gradients, strict=True)]
    ).mean(0)  # [to, from]
    parts = (flow[q:p, :q], flow[p:, :q], flow[p:, q:p])
    return tuple(float(part.detach().mean()) if part.numel() else 0.0 for part in parts)  # type: ignore[return-value]
