"""Every task of images and audio over HTTP with a tiny random model, against transformers' own pipeline, to 1e-5."""

import base64
import io
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    pipeline,
)

from tests.fakes.close_answers import close
from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_media import (
    RATE,
    make_media_model,
    make_whisper,
    picture_file,
    sound,
    sound_file,
    write_character_tokenizer,
)

# The class and the type of the model of each task.
MODELS: dict[str, tuple[Any, str]] = {
    "image-classification": (AutoModelForImageClassification, "vit"),
    "object-detection": (AutoModelForObjectDetection, "yolos"),
    "image-segmentation": (AutoModelForUniversalSegmentation, "mask2former"),
    "audio-classification": (AutoModelForAudioClassification, "hubert"),
    "automatic-speech-recognition": (AutoModelForCTC, "wav2vec2"),
}
PICTURES = [picture_file(40, 30, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(33, 90, seed=3)]


class Served:
    """A model that is served, with the client of its server and its folder."""

    def __init__(self, folder: Path, client: httpx.Client) -> None:
        self.folder = folder
        self.client = client

    def post(self, body: Any, path: str = "/") -> Any:
        answer = self.client.post(path, **({"content": body} if isinstance(body, bytes) else {"json": body}))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def pipeline(self, task: str) -> Any:
        return pipeline(task, model=str(self.folder), device="cpu", dtype=torch.float32)


@contextmanager
def serving(folder: Path, task: str) -> Iterator[Served]:
    auto_class, model_type = MODELS[task]
    model = folder / "model"
    changes = {"pad_token_id": 0} if task == "automatic-speech-recognition" else {"num_labels": 4}
    changes |= {"num_labels": 7} if task.endswith("classification") else {}
    make_media_model(model, model_type, auto_class, **changes)
    if task == "automatic-speech-recognition":
        write_character_tokenizer(model)
    with running(folder, task) as served:
        yield served


@contextmanager
def running(folder: Path, task: str) -> Iterator[Served]:
    """Serve the model of a folder."""
    model = folder / "model"
    with (
        RunningRouter(
            folder, model=model, make_shard=lambda socket, path: RealRowShard(socket, path, task), task=task
        ) as router,
        router.client() as client,
    ):
        yield Served(model, client)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("whisper")
    make_whisper(folder / "model", seed=4)
    with running(folder, "automatic-speech-recognition") as served:
        yield served


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A Whisper whose files ask for beams."""
    folder = tmp_path_factory.mktemp("searching")
    make_whisper(folder / "model", seed=4)
    settings = json.loads((folder / "model" / "generation_config.json").read_text())
    (folder / "model" / "generation_config.json").write_text(json.dumps({**settings, "num_beams": 3}))
    with running(folder, "automatic-speech-recognition") as served:
        yield served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    with ExitStack() as stack:
        yield {task: stack.enter_context(serving(tmp_path_factory.mktemp(task), task)) for task in MODELS}


def coded(file: bytes) -> str:
    return base64.b64encode(file).decode()


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def heard(seconds: float, seed: int) -> dict[str, Any]:
    return {"raw": sound(seconds, seed=seed), "sampling_rate": RATE}


@pytest.mark.parametrize(
    "parameters", [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}]
)
def test_image_classification(served: dict[str, Served], parameters: dict[str, Any]) -> None:
    one = served["image-classification"]
    pipe = one.pipeline("image-classification")
    expected = [pipe(opened(file), **parameters) for file in PICTURES]
    close(one.post({"inputs": [coded(file) for file in PICTURES], "parameters": parameters}), expected)
    close(one.post({"inputs": coded(PICTURES[0]), "parameters": parameters}), expected[0])
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    close(one.post(PICTURES[1], f"/?{query}"), expected[1])
    close(one.post({"inputs": [coded(PICTURES[2])], "parameters": parameters}), expected[2:])


def test_sixteen_images_at_once_are_as_alone(served: dict[str, Served]) -> None:
    one = served["image-classification"]
    pipe = one.pipeline("image-classification")
    files = [picture_file(20 + 5 * number, 40, seed=number) for number in range(16)]
    expected = [pipe(opened(file)) for file in files]
    with ThreadPoolExecutor(16) as pool:
        close(list(pool.map(one.post, files)), expected)
    close(one.post({"inputs": [coded(file) for file in files]}), expected)


@pytest.mark.parametrize("threshold", [None, 0.1, 0.2])
def test_object_detection(served: dict[str, Served], threshold: float | None) -> None:
    one = served["object-detection"]
    pipe = one.pipeline("object-detection")
    parameters = {} if threshold is None else {"threshold": threshold}
    expected = []
    for file in PICTURES:
        picture = opened(file)
        limits = {"xmin": picture.width, "xmax": picture.width, "ymin": picture.height, "ymax": picture.height}
        found = pipe(picture, **parameters)
        for each in found:  # the pipeline also gives corners outside of the image
            each["box"] = {side: min(max(value, 0), limits[side]) for side, value in each["box"].items()}
        expected.append(found)
    close(one.post({"inputs": [coded(file) for file in PICTURES], "parameters": parameters}), expected)
    assert threshold is None or all(expected)


@pytest.mark.parametrize("subtask", [None, "panoptic", "instance", "semantic"])
def test_image_segmentation(served: dict[str, Served], subtask: str | None) -> None:
    one = served["image-segmentation"]
    pipe = one.pipeline("image-segmentation")
    parameters = {"threshold": 0.22, "mask_threshold": 0.4, "overlap_mask_area_threshold": 0.0}
    expected = [pipe(opened(file), subtask=subtask, **parameters) for file in PICTURES]
    asked = parameters | ({"subtask": subtask} if subtask else {})
    found = one.post({"inputs": [coded(file) for file in PICTURES], "parameters": asked})
    for segments, wanted in zip(found, expected, strict=True):
        for segment, each in zip(segments, wanted, strict=True):
            mask = Image.open(io.BytesIO(base64.b64decode(segment.pop("mask"))))
            assert (mask.format, mask.mode) == ("PNG", "L")
            assert mask.tobytes() == each.pop("mask").tobytes()
            if each["score"] is None:  # @huggingface/inference refuses null
                del each["score"]
    close(found, expected)
    assert any(found)


@pytest.mark.parametrize(
    "parameters", [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}]
)
def test_audio_classification(served: dict[str, Served], parameters: dict[str, Any]) -> None:
    one = served["audio-classification"]
    pipe = one.pipeline("audio-classification")
    lengths = (0.3, 1.0, 0.3, 0.7)
    expected = [pipe(heard(seconds, seed), **{"top_k": 5, **parameters}) for seed, seconds in enumerate(lengths)]
    files = [sound_file(seconds, seed=seed) for seed, seconds in enumerate(lengths)]
    close(one.post({"inputs": [coded(file) for file in files], "parameters": parameters}), expected)
    close(one.post({"inputs": coded(files[1]), "parameters": parameters}), expected[1])


@pytest.mark.parametrize("timestamps", [None, "word", "char"])
def test_speech_by_characters(served: dict[str, Served], timestamps: str | None) -> None:
    one = served["automatic-speech-recognition"]
    pipe = one.pipeline("automatic-speech-recognition")
    asked = {} if timestamps is None else {"return_timestamps": timestamps}
    for seconds, chunks in ((0.5, {}), (2.3, {"chunk_length_s": 0.5, "stride_length_s": 0.1})):
        expected = pipe(heard(seconds, 0), **asked, **chunks)
        found = one.post({"inputs": coded(sound_file(seconds)), "parameters": {**asked, **chunks}})
        assert found["text"] == expected["text"]
        # The pipeline's times are whole steps of 10 ms; ours have four digits.
        close(
            [[chunk["text"], *chunk["timestamp"]] for chunk in found.get("chunks", [])],
            [[chunk["text"], *(round(time, 4) for time in chunk["timestamp"])] for chunk in expected.get("chunks", [])],
        )
        answer = one.client.post("/", content=sound_file(seconds))
        assert float(answer.headers["x-compute-audio-length"]) == pytest.approx(seconds, abs=1e-3)


def test_a_file_that_cannot_be_read_is_named_and_others_beside_it_are_answered(served: dict[str, Served]) -> None:
    one = served["image-classification"]
    pipe = one.pipeline("image-classification")
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(one.post, file) for file in PICTURES]
        bad = one.client.post("/", json={"inputs": [coded(PICTURES[0]), coded(b"<svg xmlns='x'></svg>")]})
        close([answer.result() for answer in good], [pipe(opened(file)) for file in PICTURES])
    assert (bad.status_code, bad.json()["error_type"]) == (422, "validation")
    assert "`inputs[1]`: the file is of the format SVG" in bad.json()["error"]


def spoken(expected: Any, *, has_times: bool) -> dict[str, Any]:
    """Return the answer of the pipeline as ours is written: times as lists, none without a wish for them."""
    if not has_times:
        return {"text": expected["text"]}
    chunks = [{"text": chunk["text"], "timestamp": list(chunk["timestamp"])} for chunk in expected["chunks"]]
    return {"text": expected["text"], "chunks": chunks}


@pytest.mark.filterwarnings("ignore:std\\(\\)")  # of transformers' times of words
@pytest.mark.parametrize(
    ("seconds", "timestamps", "num_beams"),
    # The tiny model reads windows of 2 s, so the last files are read in several.
    [
        (0.4, None, 1),
        (1.5, True, 1),
        (1.5, "word", 1),
        (1.5, True, 3),
        (3.0, None, 1),
        (3.0, True, 1),
        (3.0, "word", 1),
    ],
)
def test_speech_by_whisper(whisper: Served, seconds: float, timestamps: Any, num_beams: int) -> None:
    pipe = whisper.pipeline("automatic-speech-recognition")
    options = {"max_new_tokens": 8, "language": "de", "num_beams": num_beams}
    # The pipeline refuses long audio without timestamps, which Whisper uses inside; the text is that with timestamps.
    needed = True if seconds > 2 and timestamps is None else timestamps
    asked = {} if needed is None else {"return_timestamps": needed}
    expected = pipe(heard(seconds, 2), generate_kwargs=dict(options), **asked)
    parameters: dict[str, Any] = {"generation_parameters": options}
    if timestamps is not None:
        parameters["return_timestamps"] = timestamps
    found = whisper.post({"inputs": coded(sound_file(seconds, seed=2)), "parameters": parameters})
    close(found, spoken(expected, has_times=timestamps is not None))
    assert found["text"]


@pytest.mark.parametrize(
    "options", [{}, {"language": "french"}, {"task": "translate"}, {"task": "transcribe", "language": "en"}]
)
def test_languages_and_translation_of_whisper(whisper: Served, options: dict[str, str]) -> None:
    """Without a wish the pipeline leaves the task to the checkpoint's files; a call here means to transcribe."""
    pipe = whisper.pipeline("automatic-speech-recognition")
    expected = pipe(
        heard(1.5, 4), generate_kwargs={"max_new_tokens": 8, "num_beams": 1, "task": "transcribe", **options}
    )
    parameters = {"generate_kwargs": {"max_new_tokens": 8, **options}}
    found = whisper.post({"inputs": coded(sound_file(1.5, seed=4)), "parameters": parameters})
    assert found == {"text": expected["text"]}


def test_whisper_answers_files_beside_each_other(whisper: Served) -> None:
    lengths = [0.5, 2.0, 1.0, 0.7]
    pipe = whisper.pipeline("automatic-speech-recognition")
    expected = [
        {
            "text": pipe(
                heard(length, seed), generate_kwargs={"max_new_tokens": 8, "num_beams": 1, "task": "transcribe"}
            )["text"]
        }
        for seed, length in enumerate(lengths)
    ]
    files = [coded(sound_file(length, seed=seed)) for seed, length in enumerate(lengths)]
    assert whisper.post({"inputs": files, "parameters": {"max_new_tokens": 8}}) == expected


def test_a_language_that_whisper_lacks_is_refused(whisper: Served) -> None:
    answer = whisper.client.post("/", json={"inputs": coded(sound_file(1.0)), "parameters": {"language": "it"}})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert "such as en, de, fr" in answer.json()["error"]


def transcribed(served: Served, seconds: float, seed: int, path: str = "transcriptions", **fields: Any) -> Any:
    answer = served.client.post(
        f"/v1/audio/{path}", data=fields, files={"file": ("a.wav", sound_file(seconds, seed=seed))}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("seconds", [1.5, 3.0])
def test_a_prompt_of_openai_comes_before_the_speech(whisper: Served, seconds: float) -> None:
    """The ids are those of Whisper's own processor, of which the end alone fits: half of 64 places, less two."""
    pipe = whisper.pipeline("automatic-speech-recognition")
    options = {"num_beams": 1, "task": "transcribe", "language": "de"}
    texts = set()
    for prompt in ("", "Textmill", "a long text " * 10):
        ids = pipe.tokenizer.get_prompt_ids(prompt, return_tensors="pt")
        given = {"prompt_ids": torch.cat([ids[:1], ids[1:][-30:]])} if prompt else {}
        asked = {"return_timestamps": True} if seconds > 2 else {}
        expected = pipe(heard(seconds, 6), generate_kwargs={**options, **given}, **asked)["text"]
        assert transcribed(whisper, seconds, 6, language="de", prompt=prompt)["text"] == expected.strip()
        texts.add(expected)
    assert len(texts) > 1  # a prompt changes the words


def segments_of_transformers(pipe: Any, samples: Any, language: str, num_beams: int) -> list[dict[str, Any]]:
    """Return the segments of transformers' generation, with the measures of openai-whisper by its formulas.

    The log-probabilities are computed from the scores of each step, and that of no speech by a pass of the encoder and
    the start token.
    """
    model, extractor, tokenizer = pipe.model, pipe.feature_extractor, pipe.tokenizer
    config, seeks = model.generation_config, []
    shape = {"truncation": False, "padding": "longest"} if len(samples) > extractor.n_samples else {}
    inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **shape)
    with torch.inference_mode():
        found = model.generate(
            **inputs,
            language=language,
            task="transcribe",
            num_beams=num_beams,
            return_timestamps=True,
            return_segments=True,
            return_dict_in_generate=True,
            output_scores=True,
            monitor_progress=lambda progress: seeks.append(int(progress[0, 0])),
        )["segments"][0]
    expected, before = [], None
    for segment in found:
        result = segment["result"]
        if before is not result:  # the first of a window
            before, seek = result, seeks.pop(0)
            window = inputs["input_features"][:, :, seek : seek + extractor.nb_max_frames]
            window = torch.nn.functional.pad(window, (0, extractor.nb_max_frames - window.shape[-1]))
            start = torch.tensor([[config.decoder_start_token_id]])
            with torch.inference_mode():
                logits = model(input_features=window, decoder_input_ids=start).logits[0, 0]
            no_speech = float(logits.softmax(-1)[tokenizer.convert_tokens_to_ids("<|nospeech|>")])
            tokens = result["sequences"][segment["idxs"][0] :].tolist()[: len(result["scores"])]
            if config.eos_token_id in tokens:
                tokens = tokens[: tokens.index(config.eos_token_id) + 1]
            logprobs = [
                float(scores.log_softmax(-1)[token]) for scores, token in zip(result["scores"], tokens, strict=False)
            ]
            words = [token for token in tokens if token != config.eos_token_id]
            text = tokenizer.decode([one for one in words if one <= config.no_timestamps_token_id]).strip().encode()
            shared = {
                "seek": seek,
                "avg_logprob": pytest.approx(sum(logprobs) / (len(words) + 1), abs=1e-5),
                "compression_ratio": pytest.approx(len(text) / len(zlib.compress(text))),
                "no_speech_prob": pytest.approx(no_speech, abs=1e-6),
            }
        ids = segment["tokens"].tolist()
        said = tokenizer.decode([one for one in ids if one <= config.no_timestamps_token_id])
        end = float(segment["end"]) if ids[-1] > config.no_timestamps_token_id else len(samples) / RATE
        times = {"start": pytest.approx(float(segment["start"])), "end": pytest.approx(end)}
        if said.strip():
            expected.append({"text": said, "tokens": ids, "temperature": 0.0, **times, **shared})
    return [{"id": number, **segment} for number, segment in enumerate(expected)]


@pytest.mark.parametrize("seconds", [1.5, 3.0, 5.0])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_words_and_segments_of_openai(whisper: Served, searching: Served, seconds: float, num_beams: int) -> None:
    served = whisper if num_beams == 1 else searching
    pipe = served.pipeline("automatic-speech-recognition")
    options = {"num_beams": num_beams, "task": "transcribe", "language": "fr"}
    words = pipe(heard(seconds, 3), generate_kwargs=dict(options), return_timestamps="word")["chunks"]
    both = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    found = transcribed(served, seconds, 3, language="fr", **both)
    assert (found["language"], found["duration"]) == ("french", seconds)
    ends = [seconds if one["timestamp"][1] is None else one["timestamp"][1] for one in words]
    assert [(one["word"], one["start"], one["end"]) for one in found["words"]] == [
        (one["text"].strip(), pytest.approx(one["timestamp"][0]), pytest.approx(end))
        for one, end in zip(words, ends, strict=True)
    ]
    expected = segments_of_transformers(pipe, sound(seconds, seed=3), "fr", num_beams)
    assert expected
    assert found["segments"] == expected
    assert transcribed(served, seconds, 3, language="fr", response_format="verbose_json")["segments"] == expected
