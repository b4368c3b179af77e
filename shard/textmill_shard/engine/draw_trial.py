"""Samples the rows of a step whose requests ask for everything, to find what the largest step takes of the memory."""

# T tokens of the step, D width of the hidden states, n positions of a prompt, N rows, V vocabulary

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from textmill_shard.engine.wish_upload import build_step_rows
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.draw import FULL_ROWS
from textmill_shard.sampling.logprobs import SLICE_TOKENS, prompt_logprobs
from textmill_shard.sampling.part_prompts import part_prompt_logprobs
from textmill_shard.sampling.part_sampler import PartSampler
from textmill_shard.sampling.row_scan import RowScanner
from textmill_shard.sampling.row_selection import StepRows
from textmill_shard.sampling.sampler import Draft, Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS
from textmill_shard.slots.sampling_params import SamplingParams

NUM_ALTERNATIVES = 5

# What a first pass over the scores does for requests, as far as a kernel does that. Typical-p needs the entropy.
_IN_ONE_PASS = SamplingParams(
    do_sample=True,
    top_p=0.9,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias=((0, 0.1),),
    wants_logprobs=True,
    top_n_tokens=NUM_ALTERNATIVES,
    has_grammar=True,
)
# Beside that what the stages do one by one. `min_new_tokens` is a part of the mask where a request has a grammar, and
# forced ids are a part of few steps.
_BY_STAGES = replace(
    _IN_ONE_PASS,
    typical_p=0.9,
    dry_multiplier=0.1,
    allowed_ids=(0, 1),
    bad_sequences=((0, 1),),
    no_repeat_ngram_size=2,
    encoder_no_repeat_ngram_size=2,
    watermark=True,
)


class DrawTrial:
    """Draws as the ranks draw a step, with a sampler of its own, whose state takes the memory of the real one.

    Where ranks share a vocabulary, all of them make equal calls.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        vocab_size: int,
        longest_text: int,
        device: torch.device,
        scanner: RowScanner | None,
        vocabulary: SharedVocabulary | None,
        project: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """`longest_text` is the number of tokens of the longest request. `scanner` and `vocabulary` are the model's.

        `project` gives the logits [n, V] of hidden states [n, D], of the ids of this rank. None: the model has no
        log-probabilities of prompts.
        """
        self._project = project
        self._vocabulary = vocabulary
        self._sampler = Sampler(num_slots=num_slots, device=device, scanner=scanner)
        self._parts = None if vocabulary is None else PartSampler(self._sampler, vocabulary)
        self._vocab_size = vocab_size
        # Lists of ids are as wide for each slot as for the slot with the longest text, and no id stands there twice.
        self._longest_ids = np.arange(min(longest_text, vocab_size), dtype=np.int64)
        self._fill(num_slots)

    @torch.inference_mode()
    def sample(self, output: ForwardOutput) -> None:
        """Rate a prompt by its hidden states, and draw for each row of logits, by a first pass and by all stages."""
        if output.hidden_TD is not None and self._project is not None:
            self._rate(self._project, output.hidden_TD)
        num_rows = len(output.logits_NV)
        for params in (_IN_ONE_PASS, _BY_STAGES):
            self._admit(params, num_rows)
            rows = build_step_rows(self._sampler.select(np.arange(num_rows)), self._sampler.device)
            draft = self._draft(output, rows)
            self._sampler.append(rows, draft.sampled.tokens_N)

    def _rate(self, project: Callable[[torch.Tensor], torch.Tensor], hidden_TD: torch.Tensor) -> None:
        """Find log-probabilities and alternatives of as many positions of a prompt as are rated together."""
        hidden_nD = hidden_TD[:SLICE_TOKENS]
        targets_n = torch.zeros(len(hidden_nD), dtype=torch.int64, device=hidden_nD.device)
        if self._vocabulary is None:
            prompt_logprobs(project, hidden_nD, targets_n, NUM_ALTERNATIVES)
        else:
            part_prompt_logprobs(project, self._vocabulary, hidden_nD, targets_n, NUM_ALTERNATIVES)

    def _fill(self, num_slots: int) -> None:
        """Take the memory of the state that grows with the texts, of which a grammar's masks are a part."""
        for params in (_IN_ONE_PASS, _BY_STAGES):
            self._sampler.admit(0, params, SlotText(self._longest_ids, encoder_ids=self._longest_ids))
        self._sampler.grammar_mask.set_allowed(0, np.ones(self._vocab_size, dtype=bool))

    def _admit(self, params: SamplingParams, num_rows: int) -> None:
        allowed_V = np.ones(self._vocab_size, dtype=bool)
        for slot in range(num_rows):
            ids = NO_IDS if slot else self._longest_ids
            self._sampler.admit(slot, params, SlotText(ids, encoder_ids=ids))
            self._sampler.grammar_mask.set_allowed(slot, allowed_V)

    def _draft(self, output: ForwardOutput, rows: StepRows) -> Draft:
        """Draw, and draw some rows from all of their scores, which rows need at times."""
        sampler, parts = self._sampler, self._parts
        if parts is None:
            draft = sampler.draft(output.logits_NV, rows)
            return _settled(draft, sampler.settle)
        given = parts.give(output.logits_NV, rows)
        joined = parts.join(given, parts.exchange(given))
        draft = parts.draft(given, joined, rows)
        whole = parts.join_rows(given, np.arange(len(output.logits_NV)))
        return _settled(draft, lambda opened: parts.settle(opened, whole))


def _settled(draft: Draft, settle: Callable[[Draft], object]) -> Draft:
    """Settle the first rows, as many as are settled together, as if their candidates did not suffice."""
    drawn = draft.drawn
    if drawn is None or drawn.open_rows is None:
        return draft
    is_first_S = torch.zeros_like(drawn.open_rows.needs_all_S)
    is_first_S[:FULL_ROWS] = True
    for tail in (False, True):
        marks = (torch.zeros_like(is_first_S), is_first_S) if tail else (is_first_S, torch.zeros_like(is_first_S))
        open_rows = replace(drawn.open_rows, needs_all_S=marks[0], needs_tail_S=marks[1])
        settle(replace(draft, drawn=replace(drawn, open_rows=open_rows)))
    return draft
