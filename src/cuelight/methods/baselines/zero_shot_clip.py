"""Zero-shot CLIP: the class whose name, read in a template, lies nearest to the picture.  Nothing learns.

Several templates are averaged (``--templates``), each feature normalised before the mean, as CLIP's ensembles are.
What every method of the family is measured against; on new classes it is hard to beat.

Source: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021, arXiv
2103.00020.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cuelight.methods.base import Card
from cuelight.methods.contrastive import Contrastive


class ZeroShotCLIP(Contrastive):
    """The backbone, the class names and the templates."""

    card: ClassVar[Card] = Card(
        name="zero-shot-clip",
        title="Zero-shot CLIP",
        family="baselines",
        modality="vision-language",
        learns="nothing",
        cost="the classes' texts once, and one pass of the image tower",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Learning Transferable Visual Models From Natural Language Supervision",
        arxiv="2103.00020",
        year=2021,
    )

    def class_features(self) -> Tensor:
        return self.zero_shot()
