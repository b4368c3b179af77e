"""How sure Whisper is of what it writes, measured while transformers generates, window after window of the audio.

The definitions are those of openai-whisper (`whisper/decoding.py` and `whisper/transcribe.py`): the log-probabilities
are those of the scores from which tokens are taken, and the end of text counts as a token.
"""

# B beams, L tokens of a step, n tokens so far, V vocabulary

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WindowMeasure:
    """A window of audio: its first frame, of 10 ms, and what was measured of the tokens written for the window."""

    seek: int
    no_speech_prob: float
    avg_logprob: float


@dataclass(slots=True)
class _Window:
    seek: int
    num_begin: int  # tokens before the first generated one
    no_speech_prob: float = 0.0
    sums: dict[Ids, float] = field(default_factory=dict)  # log-probability of the tokens of each beam, at the last step
    next_BV: torch.Tensor | None = None  # log-probabilities of what follows the beams of the last step
    rows: dict[Ids, int] = field(default_factory=dict)  # of `next_BV`
    ended: dict[Ids, float] = field(default_factory=dict)  # log-probability of tokens with the end of text behind them

    def restart(self, no_speech_prob: float) -> None:
        """Forget the tokens of an earlier try of the window."""
        self.no_speech_prob = no_speech_prob
        self.sums, self.rows, self.ended = {}, {}, {}
        self.next_BV = None

    def sum_of(self, ids: Ids) -> float | None:
        """Return the log-probability of tokens, None for tokens that no beam of the last step begins with."""
        if not ids:
            return 0.0
        before = ids[:-1]
        if before not in self.sums or self.next_BV is None:
            return None
        return self.sums[before] + float(self.next_BV[self.rows[before], ids[-1]])


class WindowMeasures(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Watches one generation of one audio file. transformers calls all methods but `watching` and `windows`.

    The generation is asked to call `begin_window` (`monitor_progress`), and has this among its logits processors, as
    the last one.
    """

    def __init__(self, *, start_id: int, end_id: int, no_speech_id: int) -> None:
        self._start_id = start_id
        self._end_id = end_id
        self._no_speech_id = no_speech_id
        self._windows: list[_Window] = []
        self._seek = 0
        self._logits_BLV: torch.Tensor | None = None

    @contextmanager
    def watching(self, head: nn.Module) -> Iterator[None]:
        """See the outputs of the layer that gives the vocabulary's logits, until the block is left."""
        handle = head.register_forward_hook(self._see)
        try:
            yield
        finally:
            handle.remove()
            self._logits_BLV = None

    def _see(self, module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        self._logits_BLV = output

    def begin_window(self, progress: torch.Tensor) -> None:
        """Note the first frame of the next window; `progress` is `[1, 2]`, with the number of all frames behind."""
        self._seek = int(progress[0, 0])

    def set_begin_index(self, begin_index: int) -> None:
        """Begin a window with so many tokens before the first generated one."""
        self._windows.append(_Window(self._seek, begin_index))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores `[B, V]` as they are; `input_ids` is `[B, n]`."""
        window = self._windows[-1]
        if input_ids.shape[1] == window.num_begin:
            window.restart(self._no_speech_prob(input_ids[0].tolist()))
        next_BV = scores.float().log_softmax(dim=-1)
        ends_B = next_BV[:, self._end_id].tolist()
        sums: dict[Ids, float] = {}
        rows: dict[Ids, int] = {}
        for row, written in enumerate(input_ids[:, window.num_begin :].tolist()):
            ids = tuple(written)
            total = window.sum_of(ids)
            assert total is not None  # a beam continues a beam of the step before
            sums[ids], rows[ids] = total, row
            window.ended[ids] = total + ends_B[row]
        window.sums, window.rows, window.next_BV = sums, rows, next_BV
        return scores

    def _no_speech_prob(self, ids: Sequence[int]) -> float:
        """Return the probability of the token for no speech right behind the start token."""
        assert self._logits_BLV is not None
        place = len(ids) - 1 - list(reversed(ids)).index(self._start_id)  # a prompt comes before the start token
        logits_V = self._logits_BLV[0, place].float()
        return float(logits_V.softmax(dim=-1)[self._no_speech_id])

    def windows(self, sequences: Sequence[Sequence[int]]) -> list[WindowMeasure]:
        """Return the window of each sequence, which are the tokens of windows in their order, the first ones included.

        A window whose tokens transformers has thrown away is passed over.
        """
        found: list[WindowMeasure] = []
        left = iter(self._windows)
        for sequence in sequences:
            found.append(next(each for each in (self._measure(window, sequence) for window in left) if each))
        return found

    def _measure(self, window: _Window, sequence: Sequence[int]) -> WindowMeasure | None:
        """Return the measures of a window, None where its generation has not written the sequence."""
        written = list(sequence[window.num_begin :])
        has_end = self._end_id in written
        ids = tuple(written[: written.index(self._end_id)] if has_end else written)
        total = window.ended.get(ids) if has_end else window.sum_of(ids)
        if total is None:
            return None
        return WindowMeasure(window.seek, window.no_speech_prob, total / (len(ids) + 1))
