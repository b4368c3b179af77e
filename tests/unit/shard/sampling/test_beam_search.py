"""The search by beams against transformers' `generate`, on tiny random models, with logits of whole forward passes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from textmill_shard.sampling.beam_search import BeamSearch
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import Beams, EarlyStopping
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

CPU = torch.device("cpu")
VOCAB, EOS = 40, 3
PROMPT = [5, 9, 12, 9, 5, 9]
STOPPING = {EarlyStopping.NO: False, EarlyStopping.YES: True, EarlyStopping.NEVER: "never"}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.manual_seed(2)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()
    config = BartConfig(
        vocab_size=VOCAB,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    bart = BartForConditionalGeneration(config).eval()
    for model in (gpt2, bart):
        model.generation_config.forced_eos_token_id = None
        for parameter in model.parameters():
            parameter.data.mul_(3.0)  # so that the logits are far from equal
    return {"gpt2": gpt2, "bart": bart}


def found(model: Any, beams: Beams, params: SamplingParams) -> tuple[list[list[int]], list[float]]:
    """Return what our search finds, with the logits of whole forward passes."""
    has_encoder = model.config.is_encoder_decoder
    text = SlotText(
        np.array([2] if has_encoder else PROMPT), encoder_ids=np.array(PROMPT if has_encoder else [], dtype=np.int64)
    )
    search = BeamSearch(beams, params, text, CPU)
    rows = [text.prompt_ids.tolist()] * beams.num_beams
    while True:
        ids = torch.tensor(rows)
        with torch.inference_mode():
            if has_encoder:
                logits = model(input_ids=torch.tensor([PROMPT] * len(rows)), decoder_input_ids=ids).logits[:, -1]
            else:
                logits = model(input_ids=ids).logits[:, -1]
        choice = search.advance(logits.float())
        if choice.is_over:
            sequences, scores = search.best()
            return [one.tolist() for one in sequences], list(scores)
        rows = [[*rows[parent], token] for parent, token in zip(choice.parents_W, choice.tokens_W, strict=True)]


def expected(model: Any, beams: Beams, params: SamplingParams) -> tuple[list[list[int]], list[float]]:
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
            num_beams=beams.num_beams,
            num_return_sequences=beams.num_sequences,
            length_penalty=beams.length_penalty,
            early_stopping=STOPPING[beams.early_stopping],
            max_new_tokens=params.max_new_tokens,
            min_new_tokens=params.min_new_tokens or None,
            repetition_penalty=params.repetition_penalty,
            no_repeat_ngram_size=params.no_repeat_ngram_size,
            encoder_no_repeat_ngram_size=params.encoder_no_repeat_ngram_size,
            bad_words_ids=[list(one) for one in params.bad_sequences] or None,
            forced_bos_token_id=params.forced_first_ids[0] if params.forced_first_ids else None,
            forced_eos_token_id=list(params.forced_last_ids) or None,
            eos_token_id=list(params.end_ids) or None,
            pad_token_id=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    num_first = 1 if model.config.is_encoder_decoder else len(PROMPT)
    sequences = []
    for row in output.sequences[:, num_first:].tolist():
        ends = [place for place, token in enumerate(row) if token in params.end_ids]
        sequences.append(row[: ends[0] + 1] if ends else row)
    return sequences, output.sequences_scores.tolist()


PLAIN = SamplingParams(max_new_tokens=12, end_ids=(EOS,))
CASES = {
    "plain": PLAIN,
    "no end": replace(PLAIN, end_ids=()),
    "two ends": replace(PLAIN, end_ids=(EOS, 7)),
    "at least six": replace(PLAIN, end_ids=(EOS, 7, 11), min_new_tokens=6),
    "bigrams once": replace(PLAIN, no_repeat_ngram_size=2, end_ids=()),
    "penalty": replace(PLAIN, repetition_penalty=1.7),
    "one token": replace(PLAIN, max_new_tokens=1),
    "bad sequences": replace(PLAIN, bad_sequences=((4,), (9, 12), (6,))),
    "forced end": replace(PLAIN, forced_last_ids=(EOS,)),
}
SEARCHES = [
    Beams(num_beams, num_sequences, length_penalty, stopping)
    for num_beams, num_sequences, length_penalty, stopping in (
        (2, 1, 1.0, EarlyStopping.NO),
        (4, 4, 2.0, EarlyStopping.YES),
        (3, 2, 0.6, EarlyStopping.NEVER),
        (8, 3, 0.0, EarlyStopping.NO),
        (4, 2, -0.5, EarlyStopping.NEVER),
    )
]


@pytest.mark.parametrize("beams", SEARCHES, ids=lambda beams: f"{beams.num_beams}-{beams.early_stopping.value}")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_the_sequences_are_those_of_transformers(models: dict[str, Any], name: str, case: str, beams: Beams) -> None:
    sequences, scores = found(models[name], beams, CASES[case])
    wanted, wanted_scores = expected(models[name], beams, CASES[case])
    assert sequences == wanted
    assert scores == pytest.approx(wanted_scores, rel=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        replace(PLAIN, forced_first_ids=(8,), forced_last_ids=(EOS,)),
        replace(PLAIN, encoder_no_repeat_ngram_size=2, no_repeat_ngram_size=3),
        replace(PLAIN, encoder_no_repeat_ngram_size=1),
    ],
    ids=["forced", "encoder bigrams", "encoder tokens"],
)
def test_rules_of_encoder_decoders_are_those_of_transformers(models: dict[str, Any], params: SamplingParams) -> None:
    beams = Beams(4, 4, 1.0, EarlyStopping.NO)
    assert found(models["bart"], beams, params)[0] == expected(models["bart"], beams, params)[0]


def test_a_late_search_answers_with_the_sequences_so_far() -> None:
    search = BeamSearch(Beams(2, 2, 1.0, EarlyStopping.NO), PLAIN, SlotText(np.array(PROMPT)), CPU)
    logits = torch.zeros(2, VOCAB)
    logits[:, 20], logits[:, 21] = 4.0, 3.0
    assert not search.advance(logits).is_over
    assert search.advance(logits, is_late=True).is_over
    sequences, scores = search.best()
    assert sequences[0].tolist() == [20, 20]
    assert sequences[1].tolist() in ([20, 21], [21, 20])
    logprobs = torch.log_softmax(logits[0], -1)
    assert scores[0] == pytest.approx(float(logprobs[20]), rel=1e-5)
