"""Every task over HTTP with a tiny random model, against transformers' own pipeline in fp32, to 1e-5."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from tests.fakes.close_answers import close
from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.word_tokenizer import vocabulary, write_word_tokenizer

TEXTS = [
    "the happy dog",
    "My name is Sarah, and I live in London.",
    "sunny",
    "The café is “happy” — naïve 🎉 day!",
    "שלום the dog 你好 день",
    "a" * 40,
    " ".join(["the sunny day and my happy cat"] * 3),
]
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
# The class of the model of each task, and the labels.
MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "feature-extraction": (AutoModel, ()),
    "text-classification": (AutoModelForSequenceClassification, ("contradiction", "neutral", "entailment")),
    "rerank": (AutoModelForSequenceClassification, ("LABEL_0",)),
    "token-classification": (AutoModelForTokenClassification, ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
    "fill-mask": (AutoModelForMaskedLM, ()),
    "question-answering": (AutoModelForQuestionAnswering, ()),
}


def make_model(folder: Path, auto_class: Any, labels: tuple[str, ...]) -> None:
    """Write a random BERT whose scores differ enough that no two change places by rounding."""
    write_word_tokenizer(folder)
    config_file = folder / "tokenizer_config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "model_max_length": 48}))
    changes = {"num_labels": len(labels), "id2label": dict(enumerate(labels))} if labels else {}
    if labels:
        changes["label2id"] = {label: index for index, label in enumerate(labels)}
    config = AutoConfig.for_model("bert", vocab_size=len(dict.fromkeys(vocabulary())), **_SMALL, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = auto_class.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.15)
    model.save_pretrained(folder)


class Served:
    """A model that is served, with the client of its server and its folder."""

    def __init__(self, folder: Path, client: httpx.Client) -> None:
        self.folder = folder
        self.client = client

    def post(self, body: Any, path: str = "/") -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def pipeline(self, task: str) -> Any:
        return pipeline(task, model=str(self.folder), device="cpu", dtype=torch.float32)


@contextmanager
def serving(folder: Path, task: str) -> Iterator[Served]:
    auto_class, labels = MODELS[task]
    model = folder / "model"
    make_model(model, auto_class, labels)
    with (
        RunningRouter(
            folder, model=model, make_shard=lambda socket, path: RealRowShard(socket, path, task), task=task
        ) as router,
        router.client() as client,
    ):
        yield Served(model, client)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    with ExitStack() as stack:
        yield {task: stack.enter_context(serving(tmp_path_factory.mktemp(task), task)) for task in MODELS}


def vectors(folder: Path, texts: list[str]) -> list[list[float]]:
    """Return the mean of the last states of each text alone, divided by its length: the formula written apart."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for text in texts:
        with torch.inference_mode():
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=48)
            mean = model(**inputs).last_hidden_state[0].mean(dim=0)
        found.append((mean / mean.norm()).tolist())
    return found


def test_vectors(served: dict[str, Served]) -> None:
    one = served["feature-extraction"]
    expected = vectors(one.folder, TEXTS)
    close(one.post({"inputs": TEXTS}), expected)
    close(one.post({"inputs": TEXTS[:1]}), expected[:1])
    close(one.post({"inputs": TEXTS[0]}), expected[0])
    close([entry["embedding"] for entry in one.post({"input": TEXTS}, "/v1/embeddings")["data"]], expected)
    first = torch.tensor(expected[0])
    similar = one.post({"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}})
    close(similar, [float(first @ torch.tensor(other)) for other in expected[1:]])


def test_sixty_four_texts_at_once_are_as_alone(served: dict[str, Served]) -> None:
    one = served["feature-extraction"]
    words = ["dog", "cat", "day", "name", "sarah", "london", "happy", "sunny"]
    texts = [" ".join(words[(start + step) % 8] for step in range(1 + start % 40)) for start in range(64)]
    expected = vectors(one.folder, texts)
    with ThreadPoolExecutor(64) as pool:
        close(list(pool.map(lambda text: one.post({"inputs": text}), texts)), expected)
    close(one.post({"inputs": texts}), expected)


@pytest.mark.parametrize("function", [None, "softmax", "sigmoid", "none"])
def test_text_classification(served: dict[str, Served], function: str | None) -> None:
    one = served["text-classification"]
    more = {} if function is None else {"function_to_apply": function}
    expected = one.pipeline("text-classification")(TEXTS, top_k=None, **more)
    close(one.post({"inputs": TEXTS, "parameters": more}), expected)
    close(one.post({"inputs": TEXTS[1], "parameters": more}), [expected[1]])
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    close(
        one.post({"inputs": pair, "parameters": more})[0], one.pipeline("text-classification")(pair, top_k=None, **more)
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot(served: dict[str, Served], multi_label: bool) -> None:
    one = served["text-classification"]
    labels = ["dog", "happy day", "london"]
    expected = one.pipeline("zero-shot-classification")(
        TEXTS[:5], labels, multi_label=multi_label, hypothesis_template="my name is {}."
    )
    parameters = {"candidate_labels": labels, "multi_label": multi_label, "hypothesis_template": "my name is {}."}
    close(one.post({"inputs": TEXTS[:5], "parameters": parameters}), expected)
    close(one.post({"inputs": TEXTS[1], "parameters": parameters}), expected[1])


def test_zero_shot_cuts_the_text_and_keeps_the_label(served: dict[str, Served]) -> None:
    one = served["text-classification"]
    text = " ".join(["the sunny day and my happy cat"] * 20)
    labels = ["dog", "london"]
    expected = one.pipeline("zero-shot-classification")(text, labels)
    close(one.post({"inputs": text, "parameters": {"candidate_labels": labels}}), expected)


def test_rerank(served: dict[str, Served]) -> None:
    one = served["rerank"]
    query = "the happy dog"
    scores = [
        entry["score"]
        for entry in one.pipeline("text-classification")([{"text": query, "text_pair": text} for text in TEXTS[1:]])
    ]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    found = one.post({"query": query, "texts": TEXTS[1:]}, "/rerank")
    close(found, [{"index": index, "score": scores[index]} for index in order])


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(served: dict[str, Served], strategy: str) -> None:
    one = served["token-classification"]
    pipe = one.pipeline("token-classification")
    for ignored in (["O"], [], ["O", "PER", "B-PER"]):
        expected = pipe(TEXTS, aggregation_strategy=strategy, ignore_labels=ignored)
        parameters = {"aggregation_strategy": strategy, "ignore_labels": ignored}
        found = one.post({"inputs": TEXTS, "parameters": parameters})
        close(found, expected)
    close(
        one.post({"inputs": TEXTS[0], "parameters": {"ignore_labels": []}}),
        pipe(TEXTS[0], aggregation_strategy="simple", ignore_labels=[]),
    )


def test_long_texts_are_read_in_windows_whose_middles_count(served: dict[str, Served]) -> None:
    one = served["token-classification"]
    text = " ".join(["the sunny day and my happy cat in london"] * 20)
    tokenizer = AutoTokenizer.from_pretrained(one.folder)
    model = AutoModelForTokenClassification.from_pretrained(one.folder, dtype=torch.float32).eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    room, stride = 46, 10
    best: list[tuple[int, list[float]]] = [(-1, [])] * len(ids)
    start = 0
    while True:  # each token takes the window in which it stands farther from an end that cuts the text
        stop = min(start + room, len(ids))
        with torch.inference_mode():
            row = torch.tensor([[2, *ids[start:stop], 3]])
            scores = model(input_ids=row).logits[0].softmax(-1)[1:-1].tolist()
        for place in range(start, stop):
            left = place - start if start else len(ids)
            right = stop - 1 - place if stop < len(ids) else len(ids)
            if min(left, right) > best[place][0]:
                best[place] = (min(left, right), scores[place - start])
        if stop == len(ids):
            break
        start += room - stride
    parameters = {"aggregation_strategy": "none", "ignore_labels": [], "stride": stride}
    found = one.post({"inputs": text, "parameters": parameters})
    assert [entity["index"] for entity in found] == list(range(1, len(ids) + 1))
    close([entity["score"] for entity in found], [max(scores) for _, scores in best])


def test_fill_mask(served: dict[str, Served]) -> None:
    one = served["fill-mask"]
    pipe = one.pipeline("fill-mask")
    texts = ["the [MASK] dog", "My name is [MASK], and I live in London.", "[MASK]"]
    close(one.post({"inputs": texts}), pipe(texts))
    close(one.post({"inputs": texts[0], "parameters": {"top_k": 20}}), pipe(texts[0], top_k=20))
    two = "[MASK] is my [MASK] day"
    close(one.post({"inputs": two}), pipe(two))
    targets = ["dog", "cat", "london"]
    close(one.post({"inputs": texts[0], "parameters": {"targets": targets}}), pipe(texts[0], targets=targets))


def spans_by_formula(
    one: Served,
    question: str,
    context: str,
    max_answer_len: int,
    *,
    top_k: int = 1,
    stride: int = 24,
    aligns: bool = True,
) -> tuple[list[tuple[float, str]], float]:
    """Return the score and the text of each span of a context, from the raw logits of its windows.

    The last number is the least score of "no answer" among the windows.
    """
    tokenizer = AutoTokenizer.from_pretrained(one.folder)
    model = AutoModelForQuestionAnswering.from_pretrained(one.folder, dtype=torch.float32).eval()
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=48,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    scores: dict[str, list[Any]] = {}
    nothing = []
    for window, ids in enumerate(windows["input_ids"]):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]))
        inside = [place for place, sequence in enumerate(windows.sequence_ids(window)) if sequence == 1]
        counted = [0, *inside]
        start, end = (row[0][counted].softmax(-1).tolist() for row in (logits.start_logits, logits.end_logits))
        nothing.append(start[0] * end[0])
        spans = [
            (start[1 + first] * end[1 + last], first, last)
            for first in range(len(inside))
            for last in range(first, min(first + max_answer_len, len(inside)))
        ]
        offsets = windows["offset_mapping"][window]
        for score, first, last in sorted(spans, reverse=True)[: 2 * top_k + 10]:
            left, right = offsets[inside[first]][0], offsets[inside[last]][1]
            if aligns:
                left = windows.word_to_chars(window, windows.token_to_word(window, inside[first]), 1).start
                right = windows.word_to_chars(window, windows.token_to_word(window, inside[last]), 1).end
            text = context[left:right]
            entry = scores.setdefault(text.lower(), [0.0, text])
            entry[0] += score
    return sorted(((score, text) for score, text in scores.values()), reverse=True), min(nothing)


def test_question_answering(served: dict[str, Served]) -> None:
    one = served["question-answering"]
    question, context = "what is my name?", "My name is Sarah and I live in London, the sunny day"
    expected, _ = spans_by_formula(one, question, context, 15)
    found = one.post({"inputs": {"question": question, "context": context}})
    close((found["score"], found["answer"]), expected[0])
    assert context[found["start"] : found["end"]] == found["answer"]
    listed = one.post({"inputs": [{"question": question, "context": context}]})
    close(listed, [found])


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 3},
        {"top_k": 2, "max_answer_len": 1},
        {"top_k": 4, "doc_stride": 8},
        {"top_k": 2, "align_to_words": False},
        {"top_k": 2, "max_seq_len": 48, "max_question_len": 64},
        {"top_k": 30, "handle_impossible_answer": True},
    ],
    ids=lambda one: "-".join(one),
)
def test_question_answering_reads_long_contexts_in_windows(
    served: dict[str, Served], parameters: dict[str, Any]
) -> None:
    one = served["question-answering"]
    question = "what is my name?"
    context = " ".join(["My name is Sarah and I live in London, the sunny day naïve 🎉 день"] * 6)
    top_k = parameters["top_k"]
    expected, nothing = spans_by_formula(
        one,
        question,
        context,
        parameters.get("max_answer_len", 15),
        top_k=top_k,
        stride=parameters.get("doc_stride", 24),
        aligns=parameters.get("align_to_words", True),
    )
    if parameters.get("handle_impossible_answer"):
        expected = sorted([*expected, (nothing, "")], reverse=True)
    found = one.post({"inputs": {"question": question, "context": context}, "parameters": parameters})
    close([entry["score"] for entry in found], [score for score, _ in expected[:top_k]])
    for entry in found:
        assert context[entry["start"] : entry["end"]] == entry["answer"]


def test_the_parameters_of_vectors(served: dict[str, Served]) -> None:
    one = served["feature-extraction"]
    tokenizer = AutoTokenizer.from_pretrained(one.folder)
    model = AutoModel.from_pretrained(one.folder, dtype=torch.float32).eval()
    text = " ".join(["the sunny day and my happy cat in london"] * 9)

    def mean(ids: list[int]) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)

    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    first, last = mean([2, *whole[:46], 3]), mean([2, *whole[-46:], 3])
    close(one.post({"inputs": text}), (first / first.norm()).tolist())
    close(one.post({"inputs": text, "normalize": False}), first.tolist())
    close(one.post({"inputs": text, "truncation_direction": "left"}), (last / last.norm()).tolist())
    close(one.post({"inputs": [text], "dimensions": 8}), [(first[:8] / first[:8].norm()).tolist()])
    close(one.post({"inputs": text, "parameters": {"normalize": False, "dimensions": 8}}), first[:8].tolist())
    for body in (
        {"inputs": text, "truncate": False},
        {"inputs": ""},
        {"inputs": []},
        {"inputs": text, "dimensions": 99},
    ):
        assert one.client.post("/", json=body).status_code == 422


@pytest.mark.parametrize(
    ("task", "parameters"),
    [("text-classification", {}), ("token-classification", {"ignore_labels": []}), ("fill-mask", {"top_k": 3})],
)
def test_sixty_four_calls_of_mixed_lengths_are_as_alone(
    served: dict[str, Served], task: str, parameters: dict[str, Any]
) -> None:
    one = served[task]
    words = ["dog", "cat", "day", "name", "sarah", "london", "happy", "sunny"]
    texts = [" ".join(words[(start + step) % 8] for step in range(1 + start % 40)) for start in range(64)]
    if task == "fill-mask":
        texts = [f"{text} [MASK]" for text in texts]
    pipe = one.pipeline(task)
    how = {"top_k": None} if task == "text-classification" else dict(parameters)
    if task == "token-classification":
        how["aggregation_strategy"] = "simple"
    expected = [pipe(text, **how) for text in texts]
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda text: one.post({"inputs": text, "parameters": parameters}), texts))
    close([answer[0] for answer in found] if task == "text-classification" else found, expected)
    listed = one.post({"inputs": texts[:1], "parameters": parameters})
    close(listed, expected[:1])


def test_texts_that_are_too_long_or_empty(served: dict[str, Served]) -> None:
    text = " ".join(["the sunny day and my happy cat"] * 20)
    one = served["text-classification"]
    assert one.client.post("/", json={"inputs": text}).status_code == 422
    cut = one.pipeline("text-classification")(text, top_k=None, truncation=True, max_length=48)
    close(one.post({"inputs": text, "parameters": {"truncation": True}}), [cut])
    assert served["fill-mask"].client.post("/", json={"inputs": f"{text} [MASK]"}).status_code == 422
    for task in ("text-classification", "token-classification", "fill-mask"):
        for inputs in ("", [], ["dog", ""]):
            answer = served[task].client.post("/", json={"inputs": inputs})
            assert answer.status_code == 422, (task, inputs)
    for empty in ({"question": "", "context": "a dog"}, {"question": "what?", "context": ""}):
        assert served["question-answering"].client.post("/", json={"inputs": empty}).status_code == 422


def test_architectures_that_write_text_or_none_are_refused_at_the_right_place(served: dict[str, Served]) -> None:
    answer = served["fill-mask"].client.post("/embed", json={"inputs": "a"})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "task")
