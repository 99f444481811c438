"""Rows that share lines: exactly what the padded batch gives, with less of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuelight.prompts import Condition, answer_logits, conditioning
from cuelight.prompts.conditioning import TextBatch
from cuelight.prompts.lines import share_lines
from tiny_models import backbone


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_every_token_has_one_place_and_no_line_is_longer_than_the_longest_row(lengths: list[int]) -> None:
    host = backbone("llama")
    longest = max(lengths)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    lines = share_lines(host, mask, cached=0)
    if lines is None:
        return
    assert lines.row.numel() <= 0.9 * mask.numel() and lines.row.shape[1] == longest
    for row, length in enumerate(lengths):
        at = int(lines.start[row])
        place = lines.row[lines.line[row], at : at + length]
        assert (place == row).all() and len(place) == length
        assert lines.column[lines.line[row], at : at + length].tolist() == list(range(length))
        assert int((lines.row == row).sum()) == length


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("shared", [True, False])
def test_scores_and_gradients_equal_the_padded_batch(
    name: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny random models in double precision: the mechanism is what is tested."""
    host = backbone(name, double=True)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 14, 6, 2, 11, 4])
    mask = (torch.arange(14)[None] < lengths[:, None]).long()
    text = torch.randint(1, 50, (6, 14), generator=draw) * mask
    answer = torch.randint(1, 50, (6, 2), generator=draw)
    batch = TextBatch(text, mask, answer, torch.tensor([[1, 1], [1, 0]] * 3))
    size = (4, host.tower.width) if shared else (6, 4, host.tower.width)
    prompt = torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(9, host.tower.width, generator=draw, dtype=torch.float64, requires_grad=True)
    asked = []

    def watched(*arguments: object) -> object:
        asked.append(share_lines(*arguments))  # type: ignore[arg-type]
        return asked[-1]

    found = []
    for share in (watched, lambda *_: None):
        monkeypatch.setattr(conditioning, "share_lines", share)
        logits, targets = answer_logits(host, batch, Condition(prompt=prompt, offset=offset))
        loss = torch.nn.functional.cross_entropy(logits, targets)
        found.append((logits, *torch.autograd.grad(loss, (prompt, offset))))
    window = getattr(host.model.config, "sliding_window", None)
    assert asked[0] is not None or window  # a window shorter than the rows is left to the padded batch
    for one, other in zip(*found, strict=True):
        # Llama keeps its norms and rotations in single precision even in a double model.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
