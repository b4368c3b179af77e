"""What tiny models of pictures and words must answer: the formulas written apart, with transformers' own processors.

Each function takes the model that `make_answering_model` returns, and computes one picture alone.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BlipProcessor, ViltProcessor


def picture_of(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def _parts(folder: Path) -> tuple[Any, Any]:
    return AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def caption(model: Any, folder: Path, file: bytes, **options: Any) -> str:
    """Return the text about a picture."""
    processor, tokenizer = _parts(folder)
    ids = model.generate(**processor(images=picture_of(file), return_tensors="pt"), **options)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


@torch.inference_mode()
def label_scores(model: Any, folder: Path, file: bytes, question: str) -> list[tuple[float, str]]:
    """Return the score of each label of a ViLT, the best first."""
    inputs = ViltProcessor(*_parts(folder))(picture_of(file), question, return_tensors="pt")
    scores = torch.sigmoid(model(**inputs).logits[0]).tolist()
    return sorted(((score, model.config.id2label[index]) for index, score in enumerate(scores)), reverse=True)


@torch.inference_mode()
def blip_answer(model: Any, folder: Path, file: bytes, question: str, **options: Any) -> tuple[str, float]:
    """Return the answer of a BLIP and its probability, from a forward pass over the whole answer."""
    _, tokenizer = _parts(folder)
    inputs = BlipProcessor(*_parts(folder))(images=picture_of(file), text=question, return_tensors="pt")
    ids = model.generate(**inputs, **options)
    seen = model.vision_model(pixel_values=inputs["pixel_values"])[0]
    asked = model.text_encoder(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], encoder_hidden_states=seen
    )[0]
    logits = model.text_decoder(input_ids=ids, encoder_hidden_states=asked).logits
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    return text, _probability(logits[0], ids[0].tolist(), 1, model.config.text_config.sep_token_id)


@torch.inference_mode()
def git_answer(model: Any, folder: Path, file: bytes, question: str, **options: Any) -> tuple[str, float]:
    """Return what a GIT writes behind a question, and its probability."""
    processor, tokenizer = _parts(folder)
    pixels = processor(images=picture_of(file), return_tensors="pt")["pixel_values"]
    first = [tokenizer.cls_token_id, *tokenizer(question, add_special_tokens=False)["input_ids"]]
    ids = model.generate(pixel_values=pixels, input_ids=torch.tensor([first]), **options)
    logits = model(pixel_values=pixels, input_ids=ids).logits[0, -ids.shape[1] :]  # the image's places come first
    text = tokenizer.decode(ids[0, len(first) :], skip_special_tokens=True)
    return text, _probability(logits, ids[0].tolist(), len(first), model.config.eos_token_id)


@torch.inference_mode()
def donut_answer(model: Any, folder: Path, file: bytes, question: str, **options: Any) -> tuple[str, float]:
    """Return what a Donut writes behind its prompt up to the mark of the end, and the probability of its tokens."""
    processor, tokenizer = _parts(folder)
    pixels = processor(images=picture_of(file), return_tensors="pt")["pixel_values"]
    prompt = f"<s_docvqa><s_question>{question}</s_question><s_answer>"
    first = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = model.generate(pixel_values=pixels, decoder_input_ids=first, **options)
    logits = model(pixel_values=pixels, decoder_input_ids=ids).logits[0]
    text = tokenizer.decode(ids[0, first.shape[1] :], skip_special_tokens=True)
    return text.strip(), _probability(logits, ids[0].tolist(), first.shape[1], model.generation_config.eos_token_id)


def _probability(logits: torch.Tensor, ids: Sequence[int], num_first: int, end_id: int) -> float:
    """Multiply the probabilities of the tokens behind the first ones, to the end token."""
    product = 1.0
    for place in range(num_first, len(ids)):
        product *= float(logits[place - 1].double().softmax(dim=0)[ids[place]])
        if ids[place] == end_id:
            break
    return product


@torch.inference_mode()
def page_answers(
    model: Any,
    folder: Path,
    file: bytes,
    question: str,
    word_boxes: Sequence[tuple[str, Sequence[int]]],
    *,
    max_seq_len: int,
    doc_stride: int,
    max_answer_len: int = 15,
    top_k: int = 1,
    handle_impossible_answer: bool = False,
) -> list[dict[str, Any]]:
    """Return the answers of a LayoutLM by the formula of the pipeline of transformers 4.57, span by span.

    Unlike there, answers of equal words are one answer with the best of their scores.
    """
    words, boxes = [word for word, _ in word_boxes], [list(box) for _, box in word_boxes]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options: dict[str, Any] = {"max_length": max_seq_len, "stride": doc_stride, "truncation": "only_second"}
    options |= {"return_overflowing_tokens": True, "return_token_type_ids": True}
    more = {}
    if model.config.model_type == "layoutlm":
        encoding = tokenizer(question.split(), words, is_split_into_words=True, **options)
    else:
        encoding = tokenizer([question], [words], boxes=[boxes], **options)
    if model.config.model_type == "layoutlmv3":
        processor = AutoImageProcessor.from_pretrained(folder, apply_ocr=False)
        more["pixel_values"] = processor(images=picture_of(file), return_tensors="pt")["pixel_values"]
    answers: list[dict[str, Any]] = []
    null_score = 1e6
    for window, ids in enumerate(encoding["input_ids"]):
        parts, places = encoding.sequence_ids(window), encoding.word_ids(window)
        inputs = {
            name: torch.tensor([encoding[name][window]]) for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        if "bbox" in encoding:
            bbox = encoding["bbox"][window]
        else:
            bbox = []
            for token, part, place in zip(ids, parts, places, strict=True):
                outside = [1000] * 4 if token == tokenizer.sep_token_id else [0] * 4
                bbox.append(boxes[place] if part == 1 else outside)
        output = model(**inputs, bbox=torch.tensor([bbox]), **more)
        counts = [place for place, token in enumerate(ids) if parts[place] == 1 or token == tokenizer.cls_token_id]
        start = output.start_logits[0][counts].double().softmax(dim=0).tolist()
        end = output.end_logits[0][counts].double().softmax(dim=0).tolist()
        null_score = min(null_score, start[0] * end[0])
        spans = [
            (start[first] * end[last], counts[first], counts[last])
            for first in range(1, len(counts))
            for last in range(first, len(counts))
            if counts[last] - counts[first] < max_answer_len
        ]
        for score, first, last in spans:
            text = " ".join(words[places[first] : places[last] + 1])
            answers.append({"score": score, "answer": text, "start": places[first], "end": places[last]})
    best: dict[tuple[int, int], dict[str, Any]] = {}
    for answer in sorted(answers, key=lambda answer: -answer["score"]):
        best.setdefault((answer["start"], answer["end"]), answer)
    answers = list(best.values())
    if handle_impossible_answer:
        answers.append({"score": null_score, "answer": "", "start": 0, "end": 0})
    return sorted(answers, key=lambda answer: -answer["score"])[:top_k]
