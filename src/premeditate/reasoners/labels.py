"""The probability of each of a few labels as the answer, without generating text.

Many questions about the same pictures share everything up to the question. That prefix runs once per set of pictures,
its key-value cache is spread over the questions, and these run together as short rows: K questions cost little more
than one. Shapes: G sets of pictures, R rows, n prefix and m suffix tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SHARED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Model types whose positions can be given from outside, so that a cached prefix can be continued."""


@dataclass(frozen=True)
class Labels:
    """`variants[l]`: the token sequences that count as label l. Where every label is one token, its spellings in other
    cases (Yes, YES) count too; else only the label as it is written, scored token by token."""

    names: tuple[str, ...]
    variants: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def read(cls, tokenizer: Any, names: Sequence[str]) -> Labels:
        """Raises ValueError for labels that cannot be told apart."""

        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        exact = [encode(name) for name in names]
        if len(names) < 2 or not all(exact) or len(set(exact)) < len(names):
            raise ValueError(f"labels must be two or more different words, not {', '.join(map(repr, names)) or 'none'}")
        if any(len(tokens) > 1 for tokens in exact):
            return cls(tuple(names), tuple((tokens,) for tokens in exact))
        found: list[tuple[tuple[int, ...], ...]] = []
        for name, own in zip(names, exact, strict=True):
            spellings = dict.fromkeys([own, *(encode(spell(name)) for spell in (str.lower, str.capitalize, str.upper))])
            found.append(tuple(s for s in spellings if len(s) == 1 and (s == own or s not in exact)))
        return cls(tuple(names), tuple(found))

    @property
    def endings(self) -> list[tuple[int, ...]]:
        """What must be appended to the prompt, in turn, to read all labels off: all but each label's last token."""
        return list(dict.fromkeys(tokens[:-1] for variants in self.variants for tokens in variants))

    def probabilities(self, logits: dict[tuple[int, ...], Tensor]) -> list[dict[str, float]]:
        """`logits[ending]`: [R, len(ending) + 1, V], last position last. One distribution over labels per row."""
        import torch

        logs = {ending: values.float().log_softmax(-1) for ending, values in logits.items()}
        columns = []
        for variants in self.variants:
            sums = []
            for tokens in variants:
                values = logs[tokens[:-1]]
                sums.append(torch.stack([values[:, i, token] for i, token in enumerate(tokens)]).sum(0))
            columns.append(torch.stack(sums).logsumexp(0))
        shares = torch.stack(columns, -1).cpu().double().softmax(-1).tolist()  # mps has no float64
        return [dict(zip(self.names, row, strict=True)) for row in shares]


def plain(model: Any, encoded: dict[str, Tensor], labels: Labels) -> list[dict[str, float]]:
    """One full pass per row over a left-padded batch. `encoded`: the processor's output."""
    import torch

    out: dict[tuple[int, ...], Tensor] = {}
    for ending in labels.endings:
        batch = dict(encoded)
        if ending:
            rows = len(encoded["input_ids"])
            tail = torch.tensor([ending] * rows, device=encoded["input_ids"].device)
            batch["input_ids"] = torch.cat([encoded["input_ids"], tail], 1)
            batch["attention_mask"] = torch.cat([encoded["attention_mask"], torch.ones_like(tail)], 1)
            if "mm_token_type_ids" in batch:
                types = batch["mm_token_type_ids"]
                batch["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(tail).to(types.dtype)], 1)
        out[ending] = model(**batch, logits_to_keep=len(ending) + 1).logits
    return labels.probabilities(out)


@dataclass
class _Padded:
    """Left-padded token rows: ids, mask and kind (0 text, 1 image), all [R, length]."""

    ids: Tensor
    mask: Tensor
    kinds: Tensor

    @classmethod
    def of(cls, ids: Sequence[Tensor], kinds: Sequence[Tensor], pad: int) -> _Padded:
        import torch

        length = max(len(row) for row in ids)
        out = cls(
            torch.full((len(ids), length), pad, dtype=torch.long, device=ids[0].device),
            torch.zeros((len(ids), length), dtype=torch.long, device=ids[0].device),
            torch.zeros((len(ids), length), dtype=kinds[0].dtype, device=ids[0].device),
        )
        for i, (row, kind) in enumerate(zip(ids, kinds, strict=True)):
            if len(row):
                out.ids[i, -len(row) :], out.mask[i, -len(row) :], out.kinds[i, -len(row) :] = row, 1, kind
        return out

    def rows(self, indices: Tensor | slice) -> _Padded:
        return _Padded(self.ids[indices], self.mask[indices], self.kinds[indices])

    def join(self, other: _Padded) -> _Padded:
        import torch

        pairs = ((self.ids, other.ids), (self.mask, other.mask), (self.kinds, other.kinds))
        return _Padded(*(torch.cat(pair, 1) for pair in pairs))


def shared(
    model: Any,
    encoded: dict[str, Tensor],
    owner: Sequence[int],
    labels: Labels,
    pad: int,
    max_rows: int,
    between: Callable[[], None],
) -> list[dict[str, float]] | None:
    """Like `plain`, with the prefix of each set of pictures run once. None where the rows do not share their pictures.

    `encoded`: left-padded rows, but the pixels of each *set* only once, sets in order. `owner` [R]: the set of each
    row, ascending from 0. `between` is called before each pass.
    """
    import torch

    masks = encoded["attention_mask"].bool()
    ids = [row[mask] for row, mask in zip(encoded["input_ids"], masks, strict=True)]
    kinds = [row[mask] for row, mask in zip(encoded["mm_token_type_ids"], masks, strict=True)]
    sets = owner[-1] + 1
    members = [[r for r, o in enumerate(owner) if o == s] for s in range(sets)]
    lengths = [_common([ids[r] for r in rows]) for rows in members]
    if any(bool(kinds[r][lengths[owner[r]] :].any()) for r in range(len(ids))):
        return None
    grid = encoded["image_grid_thw"]
    each = len(grid) // sets
    prefix = _Padded.of([ids[rows[0]][:n] for rows, n in zip(members, lengths, strict=True)],
                        [kinds[rows[0]][:n] for rows, n in zip(members, lengths, strict=True)], pad)  # fmt: skip
    between()
    cache = model(
        input_ids=prefix.ids, attention_mask=prefix.mask, mm_token_type_ids=prefix.kinds, image_grid_thw=grid,
        pixel_values=encoded["pixel_values"], use_cache=True, logits_to_keep=1,
    ).past_key_values  # fmt: skip
    out: dict[tuple[int, ...], list[Tensor]] = {ending: [] for ending in labels.endings}
    device = prefix.ids.device
    for start in range(0, len(ids), max_rows):
        chunk = range(start, min(start + max_rows, len(ids)))
        sets_of = torch.tensor([owner[r] for r in chunk], device=device)
        for ending in labels.endings:
            between()
            tail = torch.tensor(ending, dtype=torch.long, device=device)
            suffix = _Padded.of([torch.cat([ids[r][lengths[owner[r]] :], tail]) for r in chunk],
                                [torch.zeros(len(ids[r]) - lengths[owner[r]] + len(ending), dtype=kinds[r].dtype,
                                             device=device) for r in chunk], pad)  # fmt: skip
            whole = prefix.rows(sets_of).join(suffix)
            grids = grid.view(sets, each, 3)[sets_of].flatten(0, 1)
            positions, _ = model.model.get_rope_index(
                whole.ids, image_grid_thw=grids, attention_mask=whole.mask, mm_token_type_ids=whole.kinds
            )
            spread = copy.deepcopy(cache)
            spread.batch_select_indices(sets_of)
            logits = model(
                input_ids=suffix.ids, attention_mask=whole.mask, past_key_values=spread,
                position_ids=positions[..., prefix.ids.shape[1] :], logits_to_keep=len(ending) + 1,
            ).logits  # fmt: skip
            out[ending].append(logits)
    return labels.probabilities({ending: torch.cat(parts) for ending, parts in out.items()})


def _common(rows: Sequence[Tensor]) -> int:
    """Length of the longest common prefix that leaves at least one token of every row."""
    length = min(len(row) for row in rows) - 1
    for row in rows[1:]:
        differ = (row[:length] != rows[0][:length]).nonzero()
        if len(differ):
            length = int(differ[0])
    return length
