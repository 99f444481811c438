"""Classification tasks out of pictures with captions: clusters are classes, and each class has two kinds of pictures.

Captions are clustered into topics, a topic's pairs into pseudo-classes (by picture and caption together), and a
pseudo-class's pictures into two visual domains.  A task draws some classes of one topic, learns from one domain and is
examined on the other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["PseudoClass", "draw_task", "phrase", "pseudo_classes"]

_WORD = re.compile(r"[a-z][a-z'-]+")


@dataclass(frozen=True)
class PseudoClass:
    """A cluster of pairs: its topic, its name, and the places of its pictures in two visual domains."""

    topic: int
    name: str
    domains: tuple[tuple[int, ...], tuple[int, ...]]


def pseudo_classes(
    images: Tensor,
    captions: Tensor,
    texts: Sequence[str],
    *,
    shots: int,
    size: int = 12,
    topics: int | None = None,
    avoid: Sequence[str] = (),
    seed: int = 0,
) -> list[PseudoClass]:
    """Three levels of spherical k-means, from captions to topics, classes and domains.

    Args:
        images, captions: normalised features ``[N, d]``.
        texts: the captions.
        shots: pictures that each domain of a class has at least; smaller classes are dropped.
        size: mean number of pairs in a class.
        topics: default a tenth of the root of N, at least 8 (at most one for every four classes' pairs).
        avoid: names that no class may have.
        seed: of the clustering.
    """
    count = len(images)
    wanted = max(8, round(count**0.5 / 10)) if topics is None else topics
    wanted = max(1, min(wanted, count // (4 * size)))
    joint = normalize(images + captions, dim=-1).numpy()
    first = _clusters(captions.numpy(), wanted, seed)
    barred = {name.lower() for name in avoid}
    found: list[PseudoClass] = []
    for topic in range(wanted):
        members = np.flatnonzero(first == topic)
        second = _clusters(joint[members], max(1, round(len(members) / size)), seed)
        for part in range(second.max() + 1):
            places = members[second == part]
            if len(places) < 2 * shots:
                continue
            halves = _clusters(images[places].numpy(), 2, seed)
            domains = [tuple(int(p) for p in places[halves == k]) for k in (0, 1)]
            if min(map(len, domains)) < shots:
                continue
            middle = captions[places].mean(0)
            nearest = places[int((captions[places] @ middle).argmax())]
            taken = {c.name for c in found if c.topic == topic}
            name = phrase([texts[p] for p in places], taken) or _short(texts[nearest])
            if name.lower() not in barred and name not in taken:
                found.append(PseudoClass(topic, name, (domains[0], domains[1])))
    return found


def phrase(texts: Sequence[str], taken: set[str]) -> str | None:
    """The run of one or two content words that most of ``texts`` have; None when fewer than half share one.

    Of equally common ones the longer; names in ``taken`` are left out.
    """
    seen: Counter[str] = Counter()
    for text in texts:
        words = _WORD.findall(text.lower())
        runs = {" ".join(words[k : k + n]) for n in (1, 2) for k in range(len(words) - n + 1)}
        seen.update(run for run in runs if not any(w in ENGLISH_STOP_WORDS for w in run.split()))
    best = [(n, len(run.split()), run) for run, n in seen.items() if n * 2 >= len(texts) and run not in taken]
    return max(best)[2] if best else None


def draw_task(
    classes: Sequence[PseudoClass], ways: int, shots: int, draw: np.random.RandomState, *, same: bool = False
) -> tuple[list[PseudoClass], list[list[int]], list[list[int]]]:
    """Some classes of one topic, and for each the places of pictures to learn from and to be examined on.

    Args:
        ways: classes in a task; fewer where the topic has fewer, and classes of all topics where it has one.
        shots: pictures of each class on each side.
        same: both sides from one domain, where it has enough pictures, for comparison.
    """
    topics = [c.topic for c in classes]
    counts = Counter(topics)
    open_ = [t for t in counts if counts[t] > 1]
    topic = open_[draw.randint(len(open_))] if open_ else None
    pool = [c for c in classes if topic is None or c.topic == topic]
    chosen = [pool[k] for k in draw.permutation(len(pool))[:ways]]
    support, query = [], []
    for one in chosen:
        side = draw.randint(2)
        learn, check = one.domains[side], one.domains[1 - side]
        if same:
            learn = max(one.domains, key=len)
            order = list(draw.permutation(learn)) if len(learn) >= 2 * shots else []
            if order:
                support.append([int(p) for p in order[:shots]])
                query.append([int(p) for p in order[shots : 2 * shots]])
                continue
            learn, check = one.domains[side], one.domains[1 - side]
        support.append([int(p) for p in draw.permutation(learn)[:shots]])
        query.append([int(p) for p in draw.permutation(check)[:shots]])
    return chosen, support, query


def _clusters(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which of ``count`` clusters each row is in; on the sphere, since rows are of length 1."""
    count = min(count, len(vectors))
    if count < 2:
        return np.zeros(len(vectors), dtype=int)
    return KMeans(count, n_init=3, random_state=seed % 2**32).fit_predict(vectors.astype(np.float64))


def _short(text: str) -> str:
    return " ".join(text.rstrip(" .").split()[:8])
