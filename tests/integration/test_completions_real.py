"""/v1/completions with the demo model: the openai client, and log-likelihoods as evaluation harnesses ask for them."""

from pathlib import Path

import openai
import pytest
from transformers import AutoTokenizer

from tests.fakes.likelihoods import MAX_DIFFERENCE, Scored, accuracy_of, pairs_of, score_by_transformers
from tests.fakes.multiple_choice import make_items

TIMEOUT_S = 60
PROMPT = "The capital of France is"
ITEMS = make_items()
PROMPTS_A_CALL = 4  # --max-client-batch-size


def test_client_gets_text_reason_and_usage(client: openai.OpenAI, demo_model_folder: Path) -> None:
    answer = client.completions.create(model="tgi", prompt=PROMPT, max_tokens=8, temperature=0)
    [choice] = answer.choices
    assert choice.text.startswith(" Paris")
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    ids = AutoTokenizer.from_pretrained(demo_model_folder).encode(PROMPT)
    again = client.completions.create(model="tgi", prompt=ids, max_tokens=8, temperature=0)
    assert again.choices[0].text == choice.text


def test_client_streams_the_same_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tgi", prompt=PROMPT, max_tokens=12, temperature=0, stop=["\n\n"])
    events = list(
        client.completions.create(
            model="tgi",
            prompt=PROMPT,
            max_tokens=12,
            temperature=0,
            stop=["\n\n"],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(event.choices[0].text for event in events[:-1]) == whole.choices[0].text
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert events[-1].choices == []
    assert events[-1].usage.total_tokens == whole.usage.total_tokens


def test_client_gets_choices_prompt_by_prompt(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        answer = client.completions.create(
            model="tgi", prompt=[PROMPT, "Once upon a time"], max_tokens=6, n=2, seed=7, temperature=1.2, echo=True
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.text for choice in answer.choices]

    texts = ask()
    assert [text.startswith(PROMPT) for text in texts] == [True, True, False, False]
    assert len(set(texts)) == 4
    assert ask() == texts


def test_prompt_logprobs_are_the_echoed_ones_which_are_those_of_transformers(client: openai.OpenAI) -> None:
    [echoed] = client.completions.create(model="tgi", prompt=PROMPT, max_tokens=0, echo=True, logprobs=3).choices
    extra = {"prompt_logprobs": 3, "return_token_ids": True}
    [choice] = client.completions.create(model="tgi", prompt=PROMPT, max_tokens=1, extra_body=extra).choices
    chat = client.chat.completions.create(
        model="tgi", messages=[{"role": "user", "content": "Hi"}], max_tokens=1, extra_body=extra
    )
    shown, ids = choice.model_extra["prompt_logprobs"], choice.model_extra["prompt_token_ids"]
    own = [entry and entry[str(id_)]["logprob"] for entry, id_ in zip(shown, ids, strict=True)]
    assert own == echoed.logprobs.token_logprobs
    assert own[0] is None
    for entry, top in zip(shown[1:], echoed.logprobs.top_logprobs[1:], strict=True):
        assert {one["decoded_token"]: one["logprob"] for one in entry.values()} == top
        ranks = [one["rank"] for one in entry.values() if one["rank"] is not None]
        best_first = sorted((one for one in entry.values() if one["rank"]), key=lambda one: -one["logprob"])
        assert sorted(ranks) == [1, 2, 3] == [one["rank"] for one in best_first]
    assert len(chat.model_extra["prompt_logprobs"]) == chat.usage.prompt_tokens


def test_best_of_has_the_highest_mean_logprob(client: openai.OpenAI) -> None:
    """The best sequence is the one of the highest mean among the sequences that the seed gives with `n`."""
    answer = client.completions.create(
        model="tgi", prompt=PROMPT, max_tokens=6, n=2, seed=3, temperature=1.5, logprobs=0, top_p=0.99
    )
    means = [sum(choice.logprobs.token_logprobs) / 6 for choice in answer.choices]
    best = client.completions.create(
        model="tgi", prompt=PROMPT, max_tokens=6, best_of=2, seed=3, temperature=1.5, top_p=0.99
    )
    assert best.choices[0].text == answer.choices[means.index(max(means))].text
    assert best.usage.completion_tokens == 12


def test_echoed_tokens_spell_the_text(client: openai.OpenAI) -> None:
    text = "Straße in 東京: \N{GRINNING FACE}, naïve"
    [choice] = client.completions.create(
        model="tgi", prompt=text, max_tokens=4, temperature=0, echo=True, logprobs=2
    ).choices
    logprobs = choice.logprobs
    assert choice.text.startswith(text)
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    ends = [*logprobs.text_offset[1:], len(choice.text)]
    for token, start, end in zip(logprobs.tokens, logprobs.text_offset, ends, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[start:end].startswith(token) or token.startswith(choice.text[start:end])
    for token, logprob, top in zip(
        logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
    ):
        assert top[token] == logprob
        assert max(top.values()) >= logprob


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"prompt": "x " * 5000}, openai.UnprocessableEntityError, "This model's maximum context length is"),
        ({"suffix": "end"}, openai.UnprocessableEntityError, "fill-in-the-middle"),
        ({"max_tokens": -1}, openai.UnprocessableEntityError, "`max_tokens`"),
    ],
)
def test_client_raises_its_own_errors(
    client: openai.OpenAI, fields: dict[str, object], kind: type[openai.APIStatusError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        client.completions.create(**{"model": "tgi", "prompt": PROMPT, **fields})
    assert caught.value.type == "invalid_request_error"


# 200 texts by the server and 200 by transformers, on two cores.
@pytest.mark.slow
def test_loglikelihoods_and_accuracy_are_those_of_transformers(client: openai.OpenAI, demo_model_folder: Path) -> None:
    assert len(ITEMS) == 100
    pairs = pairs_of(ITEMS, AutoTokenizer.from_pretrained(demo_model_folder))
    found: list[Scored] = []
    for start in range(0, len(pairs), PROMPTS_A_CALL):
        batch = pairs[start : start + PROMPTS_A_CALL]
        answer = client.completions.create(
            model="tgi",
            prompt=[pair.ids for pair in batch],
            max_tokens=1,
            temperature=0,
            echo=True,
            logprobs=1,
            seed=1234,
        )
        for pair, choice in zip(batch, answer.choices, strict=True):
            place = slice(len(pair.context_ids), -1)  # all but the generated token
            tokens, tops = choice.logprobs.tokens[place], choice.logprobs.top_logprobs[place]
            assert len(tokens) == len(pair.ids) - len(pair.context_ids)
            found.append(
                Scored(
                    sum(choice.logprobs.token_logprobs[place]),
                    all(max(top, key=top.__getitem__) == token for token, top in zip(tokens, tops, strict=True)),
                )
            )
    expected = score_by_transformers(pairs, demo_model_folder)
    for own, wanted in zip(found, expected, strict=True):
        assert own.logprob == pytest.approx(wanted.logprob, abs=MAX_DIFFERENCE)
        assert own.is_greedy == wanted.is_greedy
    accuracy = accuracy_of(found)
    assert accuracy == accuracy_of(expected)
    assert accuracy > 0.6  # the model knows some answers, so the comparison has a meaning
