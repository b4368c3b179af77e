"""Models of pictures and words as the shard runs them, against formulas written apart, in fp32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from textmill_shard.errors import ModelError
from textmill_shard.tasks.media_loader import LoadedMedia, MediaLimits, load_media
from textmill_shard.tasks.rows import (
    DocumentParams,
    FailureCode,
    HeadName,
    MediaRow,
    PageSpans,
    RowFailure,
    Writing,
    WritingParams,
)
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import AutoModelForImageTextToText, GenerationConfig

from tests.fakes import answer_formulas as formulas
from tests.fakes.tiny_answers import ANSWERS, MAX_PAGE_TOKENS, make_answering_model
from tests.fakes.tiny_media import picture_file, write_json
from tests.fakes.word_tokenizer import write_word_tokenizer

CAPTIONS, QUESTIONS, PAGES = "image-to-text", "visual-question-answering", "document-question-answering"
PAGES_OF_WORDS = ("layoutlm", "layoutlmv3", "lilt")
FILES = [picture_file(40, 30, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(33, 90, seed=3)]
PAGE = "my name is sarah and i live in london the happy dog is in the sunny day and a cat"
WORDS = PAGE.split()
WORD_BOXES = [(word, [40 * place, 10 + place, 40 * place + 30, 40 + place]) for place, word in enumerate(WORDS)]


def load(folder: Path, task: str) -> LoadedMedia:
    torch.set_num_threads(1)
    limits = MediaLimits(max_pixels=1 << 20, max_seconds=10.0)
    return load_media(TaskOptions(model_dir=folder, task=task), limits, lambda phase, share: None)


def ran(loaded: LoadedMedia, *rows: MediaRow) -> list[Any]:
    return loaded.runner.run(loaded.head, loaded.runner.read(rows))


@pytest.mark.parametrize("kind", ["vit-gpt2", "trocr", "donut", "blip", "git", "pix2struct"])
@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 7}, {"max_new_tokens": 5, "num_beams": 3, "length_penalty": 0.5}],
    ids=["greedy", "beams"],
)
def test_captions_of_a_batch_are_those_of_each_image_alone(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    model = make_answering_model(tmp_path, kind, CAPTIONS, seed=8)
    loaded = load(tmp_path, CAPTIONS)
    assert (loaded.head, loaded.labels, loaded.max_batch_files) == (HeadName.WRITINGS, (), 8)
    found = ran(loaded, *(MediaRow(file, WritingParams(**options)) for file in FILES))
    assert found == [Writing(formulas.caption(model, tmp_path, file, **options)) for file in FILES]
    assert len({answer.text for answer in found}) > 1  # the pictures count


def test_rows_that_ask_for_other_things_share_a_batch(tmp_path: Path) -> None:
    model = make_answering_model(tmp_path, "vit-gpt2", CAPTIONS, seed=8)
    asked: list[dict[str, Any]] = [
        {"max_new_tokens": 9},
        {"max_new_tokens": 9, "no_repeat_ngram_size": 1},
        {"max_new_tokens": 9, "min_new_tokens": 3, "repetition_penalty": 1.5},
        {"max_new_tokens": 9},
    ]
    found = ran(load(tmp_path, CAPTIONS), *(MediaRow(FILES[0], WritingParams(**options)) for options in asked))
    assert found == [Writing(formulas.caption(model, tmp_path, FILES[0], **options)) for options in asked]
    assert len({answer.text for answer in found}) == 3


def test_captions_begin_from_the_settings_of_the_folder(tmp_path: Path) -> None:
    settings = {
        "max_length": 6,
        "num_beams": 2,
        "no_repeat_ngram_size": 2,
        "decoder_start_token_id": 2,
        "eos_token_id": 3,
    }
    model = make_answering_model(tmp_path, "vit-gpt2", CAPTIONS, seed=8, settings=settings)
    model.generation_config = GenerationConfig(**settings)
    loaded = load(tmp_path, CAPTIONS)
    (found,) = ran(loaded, MediaRow(FILES[0], WritingParams()))
    assert found.text == formulas.caption(model, tmp_path, FILES[0])
    (longer,) = ran(loaded, MediaRow(FILES[0], WritingParams(max_length=9)))
    assert longer.text == formulas.caption(model, tmp_path, FILES[0], max_length=9)
    assert len(longer.text) > len(found.text)


@pytest.mark.parametrize(
    ("kind", "part"),
    [("vit-gpt2", None), ("vit-gpt2", "decoder"), ("trocr", "decoder"), ("git", None), ("pix2struct", "text_config")],
)
def test_folders_without_settings_keep_them_in_config_json(tmp_path: Path, kind: str, part: str | None) -> None:
    make_answering_model(tmp_path, kind, CAPTIONS, seed=8)
    config = json.loads((tmp_path / "config.json").read_text())
    (config if part is None else config[part]).update({"num_beams": 3, "max_length": 7, "no_repeat_ngram_size": 2})
    write_json(tmp_path / "config.json", config)
    peer = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    (found,) = ran(load(tmp_path, CAPTIONS), MediaRow(FILES[0], WritingParams()))
    assert found.text == formulas.caption(peer, tmp_path, FILES[0])


def test_blip_obeys_the_settings_that_its_wrapper_in_transformers_drops(tmp_path: Path) -> None:
    settings = {"num_beams": 3, "max_length": 7, "no_repeat_ngram_size": 2}
    model = make_answering_model(tmp_path, "blip", CAPTIONS, seed=8)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"].update(settings)
    write_json(tmp_path / "config.json", config)
    (found,) = ran(load(tmp_path, CAPTIONS), MediaRow(FILES[0], WritingParams()))
    assert found.text == formulas.caption(model, tmp_path, FILES[0], **settings)
    assert found.text != formulas.caption(model, tmp_path, FILES[0], max_new_tokens=6)


def test_a_text_without_a_length_has_the_pipelines_256_tokens_or_the_positions(tmp_path: Path) -> None:
    model = make_answering_model(
        tmp_path, "vit-gpt2", CAPTIONS, seed=8, settings={"decoder_start_token_id": 2, "eos_token_id": None}
    )
    model.generation_config = GenerationConfig(decoder_start_token_id=2, eos_token_id=None)
    loaded = load(tmp_path, CAPTIONS)
    for asked in (WritingParams(), WritingParams(max_new_tokens=400)):
        (found,) = ran(loaded, MediaRow(FILES[0], asked))
        assert found.text == formulas.caption(model, tmp_path, FILES[0], max_new_tokens=63)  # of 64 positions


def test_a_text_that_is_drawn_says_so(tmp_path: Path) -> None:
    make_answering_model(tmp_path, "vit-gpt2", CAPTIONS, settings={"do_sample": True, "decoder_start_token_id": 2})
    loaded = load(tmp_path, CAPTIONS)
    (drawn,) = ran(loaded, MediaRow(FILES[0], WritingParams(max_new_tokens=3)))
    (chosen,) = ran(loaded, MediaRow(FILES[0], WritingParams(max_new_tokens=3, do_sample=False)))
    assert (drawn.is_drawn, chosen.is_drawn) == (True, False)


def test_a_generation_gives_a_sign_at_each_token(tmp_path: Path) -> None:
    make_answering_model(tmp_path, "git", CAPTIONS)
    loaded = load(tmp_path, CAPTIONS)
    signs: list[int] = []
    rows = loaded.runner.read([MediaRow(FILES[0], WritingParams(max_new_tokens=9, min_new_tokens=9))])
    loaded.runner.run(loaded.head, rows, on_part=signs.append)
    assert len(signs) >= 9


def test_a_row_whose_scores_are_no_numbers_fails_alone(tmp_path: Path) -> None:
    model = make_answering_model(tmp_path, "vit-gpt2", CAPTIONS, seed=8)
    loaded = load(tmp_path, CAPTIONS)
    good, bad = loaded.runner.read([MediaRow(file, WritingParams(max_new_tokens=3)) for file in FILES[:2]])
    assert not isinstance(good, RowFailure)
    assert not isinstance(bad, RowFailure)
    bad.inputs["pixel_values"].fill_(float("nan"))
    found = loaded.runner.run(loaded.head, [good, bad])
    assert found[0] == Writing(formulas.caption(model, tmp_path, FILES[0], max_new_tokens=3))
    assert isinstance(found[1], RowFailure)
    assert found[1].code is FailureCode.NOT_FINITE


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-40}, {"temperature": 1e-44, "num_beams": 3}, {"repetition_penalty": 1e-45, "temperature": 1.5}],
    ids=["temperature", "beams", "penalty"],
)
def test_a_row_whose_parameters_leave_nothing_to_draw_from_fails_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    model = make_answering_model(tmp_path, "vit-gpt2", CAPTIONS, seed=8)
    drawn = WritingParams(max_new_tokens=6, do_sample=True, **options)
    bad, good, other = ran(
        load(tmp_path, CAPTIONS),
        MediaRow(FILES[0], drawn),
        MediaRow(FILES[0], WritingParams(max_new_tokens=3)),
        MediaRow(FILES[0], WritingParams(max_new_tokens=3, do_sample=True, top_k=1, temperature=1e-6)),
    )
    assert isinstance(bad, RowFailure)
    assert bad.code is FailureCode.NOT_FINITE
    assert "with the parameters of this call; raise `temperature`" in bad.message
    assert good == Writing(formulas.caption(model, tmp_path, FILES[0], max_new_tokens=3))
    assert other == Writing(good.text, is_drawn=True)


def test_the_labels_of_a_question(tmp_path: Path) -> None:
    model = make_answering_model(tmp_path, "vilt", QUESTIONS)
    loaded = load(tmp_path, QUESTIONS)
    assert (loaded.head, loaded.labels) == (HeadName.LABELS, ANSWERS)
    questions = ["what is the cat?", "is it sunny?", "what is the cat?"]
    found = ran(loaded, *(MediaRow(file, None, (asked,)) for file, asked in zip(FILES, questions, strict=True)))
    for answer, file, asked in zip(found, FILES, questions, strict=True):
        expected = formulas.label_scores(model, tmp_path, file, asked)
        scores = sorted(zip((1 / (1 + np.exp(-answer))).tolist(), ANSWERS, strict=True), reverse=True)
        assert [label for _, label in scores] == [label for _, label in expected]
        assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "task", "formula"),
    [
        ("blip", QUESTIONS, formulas.blip_answer),
        ("git", QUESTIONS, formulas.git_answer),
        ("donut", PAGES, formulas.donut_answer),
    ],
    ids=["blip", "git", "donut"],
)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_written_answer_has_the_probability_of_its_tokens(
    tmp_path: Path, kind: str, task: str, formula: Any, options: dict[str, Any]
) -> None:
    model = make_answering_model(tmp_path, kind, task, seed=8)
    loaded = load(tmp_path, task)
    asked = WritingParams(max_new_tokens=4, with_probability=True, **options)
    questions = ["what is the cat?", "what is the dog?", "is it a sunny day in london?"]
    found = ran(loaded, *(MediaRow(file, asked, (text,)) for file, text in zip(FILES, questions, strict=True)))
    expected = [
        formula(model, tmp_path, file, text, max_new_tokens=4, **options)
        for file, text in zip(FILES, questions, strict=True)
    ]
    assert [answer.text for answer in found] == [text for text, _ in expected]
    assert [answer.probability for answer in found] == pytest.approx(
        [value for _, value in expected], rel=1e-4, abs=1e-9
    )
    assert len({answer.text for answer in found}) > 1


@pytest.mark.parametrize("kind", PAGES_OF_WORDS)
@pytest.mark.parametrize(
    ("window", "stride", "longest", "top_k"), [(MAX_PAGE_TOKENS, 30, 15, 1), (40, 6, 4, 5), (40, 0, 1, 3)]
)
def test_the_words_of_a_page(tmp_path: Path, kind: str, window: int, stride: int, longest: int, top_k: int) -> None:
    model = make_answering_model(tmp_path, kind, PAGES, seed=2)
    loaded = load(tmp_path, PAGES)
    assert (loaded.head, loaded.max_row_tokens, loaded.max_batch_files) == (HeadName.DOCUMENTS, MAX_PAGE_TOKENS, 1)
    boxes = np.array([box for _, box in WORD_BOXES])
    params = DocumentParams(boxes, window, stride, longest, top_k)
    for file in FILES[:2]:
        (found,) = ran(loaded, MediaRow(file, params, ("who am i", *WORDS)))
        assert isinstance(found, PageSpans)
        answers = formulas.page_answers(
            model,
            tmp_path,
            file,
            "who am i",
            WORD_BOXES,
            max_seq_len=window,
            doc_stride=stride,
            max_answer_len=longest,
            top_k=100_000,
            handle_impossible_answer=True,
        )
        [null] = [answer["score"] for answer in answers if not answer["answer"]]
        assert found.null_score == pytest.approx(null, abs=1e-7)
        expected = [answer for answer in answers if answer["answer"]][:top_k]
        assert [(int(start), int(end)) for start, end in zip(found.starts, found.ends, strict=True)] == [
            (answer["start"], answer["end"]) for answer in expected
        ]
        assert found.scores.tolist() == pytest.approx([answer["score"] for answer in expected], abs=1e-6)


@pytest.mark.parametrize("kind", PAGES_OF_WORDS)
def test_words_of_any_script_answer_and_words_without_tokens_do_not(tmp_path: Path, kind: str) -> None:
    model = make_answering_model(tmp_path, kind, PAGES, seed=2)
    words = ["é", "", "e\u0301", "你好", "\u200b", "🐕", "שלום", "cat"]
    word_boxes = [(word, [10 * place, 0, 10 * place, 1000]) for place, word in enumerate(words)]
    params = DocumentParams(np.array([box for _, box in word_boxes]), MAX_PAGE_TOKENS, 5, 15, 5)
    (found,) = ran(load(tmp_path, PAGES), MediaRow(FILES[0], params, ("wer? 谁", *words)))
    expected = formulas.page_answers(
        model, tmp_path, FILES[0], "wer? 谁", word_boxes, max_seq_len=MAX_PAGE_TOKENS, doc_stride=5, top_k=5
    )
    assert isinstance(found, PageSpans)
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == [
        (answer["start"], answer["end"]) for answer in expected
    ]
    assert found.scores.tolist() == pytest.approx([answer["score"] for answer in expected], abs=1e-6)
    assert 1 not in {*found.starts.tolist(), *found.ends.tolist()}


@pytest.mark.parametrize("kind", PAGES_OF_WORDS)
def test_words_answer_once_with_the_best_of_their_scores(tmp_path: Path, kind: str) -> None:
    """Words of several tokens, in windows that overlap, make many spans of tokens."""
    model = make_answering_model(tmp_path, kind, PAGES, seed=2)
    words = ["catdogxyz,zyx!?", "sunnyq.w.e.r.t.y", "zzzzzz-11111"]
    word_boxes = [(word, [10 * place, 0, 10 * place, 1000]) for place, word in enumerate(words)]
    params = DocumentParams(np.array([box for _, box in word_boxes]), 30, 8, 15, 6)
    (found,) = ran(load(tmp_path, PAGES), MediaRow(FILES[0], params, ("who am i", *words)))
    assert isinstance(found, PageSpans)
    expected = formulas.page_answers(
        model, tmp_path, FILES[0], "who am i", word_boxes, max_seq_len=30, doc_stride=8, top_k=6
    )
    places = list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
    assert places == [(answer["start"], answer["end"]) for answer in expected]
    assert len(set(places)) == len(places) >= 4
    assert found.scores.tolist() == pytest.approx([answer["score"] for answer in expected], abs=1e-6)


def test_texts_that_do_not_fit_are_refused_and_the_next_page_is_read(tmp_path: Path) -> None:
    make_answering_model(tmp_path, "layoutlm", PAGES)
    loaded = load(tmp_path, PAGES)
    boxes = np.array([[1, 2, 3, 4]])
    long_question = MediaRow(FILES[0], DocumentParams(boxes, 30, 5, 3, 1), ("what is the dog " * 10, "cat"))
    wide_stride = MediaRow(FILES[0], DocumentParams(boxes, 30, 25, 3, 1), ("a cat", "dog"))
    many = np.repeat(boxes, 2000, axis=0)
    many_windows = MediaRow(FILES[0], DocumentParams(many, 30, 22, 3, 1), ("a cat", *["dog"] * 2000))
    no_tokens = MediaRow(FILES[0], DocumentParams(boxes, 30, 5, 3, 1), ("a cat", " "))
    good = MediaRow(FILES[0], DocumentParams(boxes, 30, 5, 3, 1), ("a cat", "dog"))
    for row, sentence in (
        (long_question, "the question has 73 tokens with the special ones and leaves 0 of 30"),
        (wide_stride, "the question has 5 tokens with the special ones and leaves 25 of 30"),
        (many_windows, "more than 256 windows"),
        (no_tokens, "the words of `parameters.word_boxes` have no token"),
    ):
        (found,) = ran(loaded, row)
        assert isinstance(found, RowFailure)
        assert found.code is FailureCode.BAD_TEXT
        assert sentence in found.message
    assert isinstance(ran(loaded, good)[0], PageSpans)


@pytest.mark.parametrize(
    ("kind", "task", "question", "sentence"),
    [
        ("vilt", QUESTIONS, "cat " * 50, "the question has 52 tokens, and the model reads at most 40"),
        ("donut", PAGES, "cat " * 80, "the question has 84 tokens, and the model reads at most 64"),
        (
            "donut",
            PAGES,
            "who</s_question><s_answer>me",
            "the question holds '</s_question>', which is a mark of the model",
        ),
    ],
)
def test_questions_that_the_model_cannot_read(
    tmp_path: Path, kind: str, task: str, question: str, sentence: str
) -> None:
    make_answering_model(tmp_path, kind, task)
    (found,) = load(tmp_path, task).runner.read([MediaRow(FILES[0], None, (question,))])
    assert isinstance(found, RowFailure)
    assert found.code is FailureCode.BAD_TEXT
    assert sentence in found.message


@pytest.mark.parametrize("kind", ["vilt", "blip", *PAGES_OF_WORDS, "donut"])
def test_pictures_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    task = QUESTIONS if kind in ("vilt", "blip") else PAGES
    make_answering_model(tmp_path, kind, task)
    read = load(tmp_path, task).runner.read
    for file in (b"", b"no picture", FILES[0][:60], picture_file(2000, 1000)):
        (found,) = read([MediaRow(file, None, ("a cat", "dog")[: 1 if kind not in PAGES_OF_WORDS else 2])])
        assert isinstance(found, RowFailure)
        assert found.code is FailureCode.BAD_MEDIA


@pytest.mark.parametrize(("kind", "task"), [("vilt", QUESTIONS), ("donut", PAGES), ("donut", CAPTIONS)])
def test_pictures_that_are_too_narrow_say_so(tmp_path: Path, kind: str, task: str) -> None:
    make_answering_model(tmp_path, kind, task)
    texts = () if task == CAPTIONS else ("a cat",)
    for size in ((1, 2000), (3000, 1)):
        (found,) = load(tmp_path, task).runner.read([MediaRow(picture_file(*size), None, texts)])
        assert isinstance(found, RowFailure)
        assert found.code is FailureCode.BAD_MEDIA
        assert found.message.startswith(f"an image of {size[0]} x {size[1]} pixels is too narrow or too small")


@pytest.mark.parametrize(
    ("kind", "made_for", "task", "sentence"),
    [
        (
            "pix2struct",
            CAPTIONS,
            QUESTIONS,
            "pix2struct cannot be served as visual-question-answering, because they read a question as a picture",
        ),
        ("vit-gpt2", CAPTIONS, PAGES, "Donut alone reads questions"),
        ("vilt", QUESTIONS, CAPTIONS, "vilt cannot be served as image-to-text, because the types are"),
    ],
)
def test_models_that_cannot_do_the_task_are_refused(
    tmp_path: Path, kind: str, made_for: str, task: str, sentence: str
) -> None:
    make_answering_model(tmp_path, kind, made_for)
    with pytest.raises(ModelError, match=sentence):
        load(tmp_path, task)


def test_a_donut_that_knows_no_questions_is_refused(tmp_path: Path) -> None:
    make_answering_model(tmp_path, "donut", CAPTIONS)
    write_word_tokenizer(tmp_path)  # without the marks of questions
    with pytest.raises(
        ModelError, match=r"its tokenizer has no marks of questions .* serve the model as image-to-text"
    ):
        load(tmp_path, PAGES)


@pytest.mark.parametrize(
    ("kind", "task", "reason"),
    [
        ("layoutlmv2", PAGES, "they look at the page by detectron2"),
        ("udop", PAGES, "their encoder reads a page, its words and a task's prompt in a form of their own"),
        ("lxmert", QUESTIONS, "they read features of regions of a picture"),
        ("visual_bert", QUESTIONS, "they read features of regions of a picture"),
        ("blip-2", QUESTIONS, "a large language model writes their texts"),
    ],
)
def test_types_whose_inputs_are_not_made_here_are_refused(tmp_path: Path, kind: str, task: str, reason: str) -> None:
    write_json(tmp_path / "config.json", {"model_type": kind})
    with pytest.raises(ModelError, match=f"{kind} cannot be served as {task}, because {reason}"):
        load(tmp_path, task)
