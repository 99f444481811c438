"""SLM's claims: chosen rows above random ones, an ensemble above its members, and what wording does to zero-shot.

Ten intents each of BANKING77 and CLINC150, some of them close to each other; a pool of 400 rows, 300 test rows, three
seeds.  minilm-mlm (a masked model of 23 M) is tuned on 5 and 15 % of the pool, 20 steps of 8 in every round, at the
better of two rates on validation rows of the first set with another seed.  ``active`` is the default, a round of diversity
and two of entropy; with the same seed all arms start from the same pool.  The controls, the surest rows and one cluster,
have 15 %.  The ensemble is of three templates on the random rows of 15 %.  Zero-shot asks flan-t5-small with the prompts P0
to P3 for 100 test rows; 30 validation rows choose the prompt.  P0 and P3 are calibrated besides by texts without content
(``--calibrate contextual``), P3 also with the definitions moved to the next class.

    python -m benchmarks.claims.slm            # goes on where it was interrupted
"""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd
import torch

import cuelight
from benchmarks.claims.grid import (
    SEARCH_SEED,
    SEEDS,
    arguments_of,
    listed,
    remembered,
    search,
    shown,
    spread,
    verdict,
)
from benchmarks.common import data_file, write_result
from cuelight.methods.fewshot.slm import LEVELS, SLM, combined

BUDGETS = {"5 %": 20, "15 %": 60}
FULL = "15 %"
POOL, TEST, VALIDATION = 400, 300, 50
ASKED = {"max_test": 100, "max_validation": 30}
ARMS = {"random": "random", "active": "diversity+entropy"}
CONTROLS = {"certain": "certain", "one cluster": "one-cluster"}
RATES = [{"model_rate": rate} for rate in (1e-4, 2e-4)]
TEMPLATES = ("{text} This is about {mask}.", "Topic: {mask}. {text}", "{text} In one word: {mask}.")
SETS: dict[str, dict[str, tuple[str, str]]] = {
    # class: one word for the tuned model, and what it means
    "banking77": {
        "card_arrival": ("arrival", "a new card has not come yet"),
        "lost_or_stolen_card": ("stolen", "a card was lost or taken by somebody"),
        "card_not_working": ("broken", "a card does not work"),
        "declined_card_payment": ("declined", "a payment by card was turned down"),
        "pending_card_payment": ("pending", "a payment by card is still on its way"),
        "request_refund": ("money", "the customer wants money back"),
        "card_payment_fee_charged": ("fee", "a payment by card cost extra"),
        "exchange_rate": ("exchange", "what one currency is worth in another"),
        "cancel_transfer": ("cancel", "a transfer is to be stopped"),
        "change_pin": ("code", "the customer wants another PIN"),
    },
    "clinc150": {
        "weather": ("weather", "sun, rain and temperature"),
        "translate": ("translate", "what something is called in another language"),
        "timer": ("timer", "count down some minutes"),
        "alarm": ("alarm", "ring at some hour"),
        "calendar": ("calendar", "what is planned for a day"),
        "reminder": ("reminder", "what the user wanted to be told again"),
        "directions": ("directions", "which way to go"),
        "traffic": ("traffic", "how busy roads are"),
        "recipe": ("recipe", "how to cook a dish"),
        "calories": ("energy", "how much energy is in food"),
    },
}


def main() -> None:
    given = arguments_of(__doc__, "slm", steps=20)
    hosts = {name: cuelight.load_backbone(name) for name in ("minilm-mlm", "flan-t5-small")}

    def few(name: str, seed: int, budget: int, strategy: str, **options: Any) -> cuelight.Run:
        words = {intent: word for intent, (word, _) in SETS[name].items()}
        return cuelight.tune(
            "slm",
            backbone=hosts["minilm-mlm"],
            data=rows_of(name, seed),
            seed=seed,
            template=TEMPLATES[0],
            label_words=words,
            budget=budget,
            strategy=strategy,
            max_length=64,
            batch_size=8,
            steps=given.steps,
            evaluate_every=given.steps,
            keep="last",
            **options,
        )

    def figures(name: str, seed: int, budget: int, strategy: str, **options: Any) -> dict[str, float]:
        """Figures on the test rows, and on the validation rows, at which only the search looks."""

        def measure() -> dict[str, float]:
            run = few(name, seed, budget, strategy, **options)
            best = run.training.best if run.training else {}
            return {**run.metrics, "validation": best.get("accuracy", 0.0)}

        return remembered(given.folder, [name, strategy, seed, budget, given.steps, options], measure)

    def validate(arm: str, options: dict[str, Any]) -> float:
        return figures("banking77", SEARCH_SEED, BUDGETS[FULL], ARMS[arm], **options)["validation"]

    chosen, record = search(dict.fromkeys(ARMS, RATES), validate)
    sets: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else SETS:
        untuned = figures(name, 0, 0, "random", model="frozen")["accuracy"]
        budgets: dict[str, Any] = {}
        for share, budget in BUDGETS.items():
            arms = {**ARMS, **(CONTROLS if share == FULL else {})}
            budgets[share] = {}
            for arm, strategy in arms.items():
                options = chosen.get(arm, chosen["active"])
                found = [figures(name, seed, budget, strategy, **options) for seed in SEEDS]
                macro = [f["macro_f1"] for f in found]
                budgets[share][arm] = spread([f["accuracy"] for f in found], macro_f1=macro, options=options)
                print(name, share, arm, budgets[share][arm], flush=True)
        members = [
            remembered(
                given.folder,
                [name, "ensemble", seed, given.steps, chosen["random"]],
                lambda: ensemble(
                    few(name, seed, BUDGETS[FULL], "random", templates=TEMPLATES[1:], **chosen["random"]),  # noqa: B023
                    rows_of(name, seed),  # noqa: B023
                ),
            )
            for seed in SEEDS
        ]
        asked = remembered(given.folder, [name, "zero-shot"], lambda: zero_shot(hosts["flan-t5-small"], name))  # noqa: B023
        sets[name] = {
            "untuned": untuned,
            "budgets": budgets,
            "area": {arm: area(budgets, arm) for arm in ARMS},
            "ensemble": {key: spread([m[key] for m in members]) for key in members[0]},
            "zero-shot": asked,
        }
        print(name, sets[name]["ensemble"], asked, flush=True)
    if not given.only:
        result = {"methods": ["slm"], "search": record, "sets": sets, "summary": summary(sets)}
        write_result("claims", "slm", "benchmarks.claims.slm", result)


def rows_of(name: str, seed: int, *, max_test: int = TEST, max_validation: int = VALIDATION) -> Any:
    """The ten intents: a pool and validation rows drawn by the seed, test rows that are the same for all."""
    table = pd.read_parquet(data_file(f"text/{name}.parquet"))
    table = table[table.label_name.isin(SETS[name]) & table.split.isin(("train", "validation", "test"))]
    table = table[["text", "label_name", "split"]].rename(columns={"label_name": "label"})
    return cuelight.data.read(
        table, seed=seed, max_train=POOL, max_validation=max_validation, max_test=max_test
    )


def area(budgets: dict[str, Any], arm: str) -> dict[str, Any]:
    """Area under accuracy over budget, by the trapezium rule, as the mean height over the budgets' range."""
    sizes = list(BUDGETS.values())
    areas = []
    for k in range(len(SEEDS)):
        heights = torch.tensor([budgets[share][arm]["values"][k] for share in BUDGETS])
        areas.append(float(torch.trapezoid(heights, torch.tensor(sizes)) / (sizes[-1] - sizes[0])))
    return spread(areas)


def said(method: SLM, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All members' class probabilities ``[members, n, C]`` of rows, and their labels."""
    method.eval()
    items, parts = method.task.encode(list(rows)), []
    with torch.no_grad():
        for k in range(0, len(items), 32):
            parts.append(method.tables(method.task.collate(items[k : k + 32]).to(method.backbone.device)))
    return torch.cat(parts, 1).cpu(), torch.tensor([item.label for item in items])


def right(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    return float((probabilities.argmax(-1) == labels).double().mean())


def ensemble(run: cuelight.Run, splits: Any) -> dict[str, float]:
    """Accuracy and log-loss of members and of what they make together."""
    method = run.prompt.method
    assert isinstance(method, SLM)
    tables, labels = said(method, splits.test)
    loss = -tables.clamp(min=1e-12)[:, range(len(labels)), labels].log().mean(1)
    mean = combined(tables)
    alone = [right(table, labels) for table in tables]
    return {
        "mean": right(mean, labels),
        "vote": right(combined(tables, vote=True), labels),
        "members": statistics.mean(alone),
        "best member": max(alone),
        "log-loss": float(-mean.clamp(min=1e-12)[range(len(labels)), labels].log().mean()),
        "members' log-loss": float(loss.mean()),
    }


def zero_shot(host: Any, name: str) -> dict[str, Any]:
    """Accuracy of P0 to P3 and of the one that the validation rows choose."""
    splits = rows_of(name, 0, **ASKED)
    meanings = [meaning for _, meaning in SETS[name].values()]
    names = [intent.replace("_", " ") for intent in SETS[name]]

    def ask(level: str, meanings: list[str], calibrate: str = "none") -> cuelight.Run:
        definitions = "".join(f"{word}: {text}\n" for word, text in zip(names, meanings, strict=True))
        template = LEVELS[level].replace("{definitions}", definitions)
        return cuelight.tune(
            "slm", backbone=host, data=splits, model="frozen", template=template, calibrate=calibrate
        )

    runs = {level: ask(level, meanings) for level in LEVELS}
    runs |= {f"{level}, calibrated": ask(level, meanings, "contextual") for level in ("P0", "P3")}
    moved = ask("P3", meanings[-1:] + meanings[:-1], "contextual")
    held_out = {level: run.prompt.evaluate(splits.validation)["accuracy"] for level, run in runs.items()}
    accuracy = {level: run.metrics["accuracy"] for level, run in runs.items()}
    return {
        "accuracy": accuracy,
        "validation": held_out,
        "P3, calibrated, definitions moved": moved.metrics["accuracy"],
        "picked": max(held_out, key=held_out.__getitem__),
        "picked on": len(splits.validation),
        "standard error": statistics.mean((a * (1 - a) / len(splits.test)) ** 0.5 for a in accuracy.values()),
    }


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, entry in sets.items():
        budgets, areas, together, asked = (entry[k] for k in ("budgets", "area", "ensemble", "zero-shot"))
        curves = "; ".join(f"{share}: {listed(arms)}" for share, arms in budgets.items())
        sentences.append(f"{name} (accuracy, %; {POOL} rows in the pool).  {curves}.")
        pairs = zip(areas["active"]["values"], areas["random"]["values"], strict=True)
        better = sum(a >= r for a, r in pairs)
        sentences.append(
            f"Area under the curve, active at least random {verdict(areas['active']['mean'] >= areas['random']['mean'])} "
            f"({shown(areas['active'])} and {shown(areas['random'])}; in {better} of {len(SEEDS)} seeds)."
        )
        full = budgets[FULL]
        for control in CONTROLS:
            worse = full[control]["mean"] < full["active"]["mean"]
            below = full[control]["mean"] < full["random"]["mean"]
            sentences.append(
                f"At {FULL} {control} is worse than active {verdict(worse)}, than random {verdict(below)}."
            )
        crossed = [share for share in BUDGETS if budgets[share]["random"]["mean"] > entry["untuned"]]
        sentences.append(
            f"Untuned the model has {100 * entry['untuned']:.1f}; random rows are above that "
            + (f"from {crossed[0]} on." if crossed else "at no budget.")
        )
        accuracy = {k: together[k] for k in ("mean", "vote", "members", "best member")}
        mean, alone, best = (accuracy[k]["mean"] for k in ("mean", "members", "best member"))
        losses = [together[k]["mean"] for k in ("log-loss", "members' log-loss")]
        sentences.append(
            f"Ensemble of {len(TEMPLATES)} templates ({listed(accuracy)}): at least the mean member "
            f"{verdict(mean >= alone)}, at least the best {verdict(mean >= best)}; log-loss {losses[0]:.3f}, of members "
            f"{losses[1]:.3f}."
        )
        levels, error = asked["accuracy"], asked["standard error"]
        figures = ", ".join(f"{level} {100 * value:.1f}" for level, value in levels.items())
        apart = [levels["P3"] - levels["P0"], levels["P3, calibrated"] - levels["P0, calibrated"]]
        sentences.append(
            f"Zero-shot: {figures}; P0 and P3 further apart than a standard error ({100 * error:.1f}) "
            f"{verdict(abs(apart[0]) > error)}, P3 above P0 {verdict(apart[0] > 0)}, calibrated {verdict(apart[1] > 0)}; "
            f"{asked['picked on']} validation rows pick {asked['picked']}."
        )
        moved = asked["P3, calibrated, definitions moved"]
        sentences.append(
            f"Definitions moved to the next class make it worse {verdict(moved < levels['P3, calibrated'])} "
            f"({100 * moved:.1f})."
        )
    return " ".join(sentences)


if __name__ == "__main__":
    main()
