"""The passes that are launched at the start compile every kernel that a draw can ask for later."""

# N rows, V vocabulary, C candidates

from collections.abc import Iterator
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from textmill_shard.model.scan_trial import compile_scans
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.triton_kernels import launching
from textmill_shard.triton_kernels.kernels import TritonKernels

from tests.fakes.sampling_hand import step_rows

CPU = torch.device("cpu")
VOCABULARY = 5000
NUM_SLOTS = 4
# What a request may ask for that a first pass knows, each for itself.
WISHES: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.2},
    {"presence_penalty": 0.5},
    {"logit_bias": ((3, 1.0),)},
    {"has_grammar": True},
    {"wants_logprobs": True, "top_n_tokens": 3},
)
DRAWS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_k": 40, "top_p": 0.9},
    {"do_sample": True, "min_p": 0.1},
)


# What kernels write, as far as the sampler computes with that.
RESULTS = ("scores", "candidates", "best", "not_finite", "log_mass", "tempered_mass", "noise")


class Variants:
    """Notes for which variants the kernels that are launched have to be compiled, and launches nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: set[Any] = set()
        monkeypatch.setattr(launching, "launch", self._note)

    def _note(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, constants: dict[str, Any], **how: Any) -> None:
        """Triton tells apart types, pointers and numbers that 16 divides, and 1, unless a kernel says otherwise."""
        alike = kernel.kwargs["do_not_specialize"] or ()
        kinds: list[Any] = []
        for name, value in zip(kernel.arg_names, arguments, strict=False):
            if torch.is_tensor(value):
                kinds.append((value.dtype, value.data_ptr() % 16 == 0))
            elif isinstance(value, int):
                kinds.append("number" if name in alike else (value == 1, value % 16 == 0))
            else:
                kinds.append(value)
        self.found.add((kernel.fn.__name__, tuple(kinds), tuple(constants.items()), tuple(how.items())))
        for name, value in zip(kernel.arg_names, arguments, strict=False):
            if name in RESULTS and torch.is_tensor(value):
                value.zero_()


def batches() -> Iterator[list[SamplingParams]]:
    """Return requests with all wishes together, for each choice of wishes, beside one that wishes nothing."""
    for chosen in chain.from_iterable(combinations(WISHES, count) for count in range(len(WISHES) + 1)):
        wishes = {name: value for wish in chosen for name, value in wish.items()}
        for draw in DRAWS:
            params = SamplingParams(**wishes, **draw)
            yield [params]
            yield [params, SamplingParams()]
            yield [params, SamplingParams(do_sample=True), params]


def test_no_batch_needs_a_kernel_that_the_start_has_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = Variants(monkeypatch)
    kernels: Any = TritonKernels(num_multiprocessors=1, capability=(9, 0))
    compile_scans(kernels, vocab_size=VOCABULARY, device=CPU)
    compiled = set(variants.found)
    assert {name for name, *_ in compiled} == {"scan_parts", "merge_parts", "gumbel"}
    sampler = Sampler(num_slots=NUM_SLOTS, device=CPU, scanner=DeviceRowScanner(kernels))
    allowed_V = torch.ones(VOCABULARY, dtype=torch.bool).numpy()
    num_batches = 0
    for batch in batches():
        for slot, params in enumerate(batch):
            sampler.admit(slot, params, SlotText(torch.arange(1, 4).numpy()))
            sampler.grammar_mask.set_allowed(slot, allowed_V)
        rows = step_rows(sampler, range(len(batch)))
        logits_NV = torch.randn(len(batch), VOCABULARY)
        variants.found.clear()
        draft = sampler.draft(logits_NV, rows)
        assert variants.found <= compiled, batch
        num_batches += 1
        if draft.drawn is not None and draft.drawn.open_rows is not None:
            draft.drawn.open_rows.needs_tail_S[:] = True
            sampler.settle(draft)
            assert variants.found <= compiled, batch
    assert num_batches == 2 ** len(WISHES) * len(DRAWS) * 3


def test_the_variants_of_the_start_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is compiled at the first start of a machine."""
    variants = Variants(monkeypatch)
    kernels: Any = TritonKernels(num_multiprocessors=1, capability=(9, 0))
    compile_scans(kernels, vocab_size=VOCABULARY, device=CPU)
    assert len(variants.found) == 6 + 2 + 1
