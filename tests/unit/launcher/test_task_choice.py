"""The task that the files of a model say, in their order, and the tasks that are refused."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from textmill_launcher.errors import SettingsError, UnsupportedTask
from textmill_launcher.settings import load_settings
from textmill_launcher.task_choice import TASKS, choose_task, example_of, reads_texts, task_of_class

from tests.task_classes import NO_TASK, tasks_of_classes

TASKS_OF_LABELS = ("zero-shot-image-classification", "zero-shot-object-detection")  # that a call brings
FILE_TASKS = (
    "image-segmentation",
    "image-to-text",
    "visual-question-answering",
    "document-question-answering",
    "image-classification",
    "object-detection",
    *TASKS_OF_LABELS,
    "depth-estimation",
    "audio-classification",
    "automatic-speech-recognition",
)


def folder_with(folder: Path, class_name: str | None = None, *, readme: str = "", **config: Any) -> Path:
    architectures = {} if class_name is None else {"architectures": [class_name]}
    (folder / "config.json").write_text(json.dumps({**architectures, **config}))
    if readme:
        (folder / "README.md").write_text(f"---\nlicense: mit\n{readme}\n---\npipeline_tag: fill-mask\n")
    return folder


def test_every_class_of_transformers_has_the_task_of_its_first_mapping() -> None:
    expected = tasks_of_classes()
    assert len(expected) > 1200
    found = {name: task_of_class(name) or NO_TASK for name in expected}
    assert {name: (found[name], task) for name, task in expected.items() if found[name] != task} == {}


# The rows of the contract's table, by one class name each.
@pytest.mark.parametrize(
    ("class_name", "task"),
    [
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("WavLMForSequenceClassification", "audio-classification"),
        ("TapasForQuestionAnswering", "table-question-answering"),
        ("LayoutLMForQuestionAnswering", "document-question-answering"),
        ("ViltForQuestionAnswering", "visual-question-answering"),
        ("XLMForQuestionAnsweringSimple", "question-answering"),
        ("OwlViTForObjectDetection", "zero-shot-object-detection"),
        ("YolosForObjectDetection", "object-detection"),
        ("DetrForSegmentation", "image-segmentation"),
        ("CLIPModel", "zero-shot-image-classification"),
        ("BlipForImageTextRetrieval", "zero-shot-image-classification"),
        ("DPTForDepthEstimation", "depth-estimation"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("VitsModel", "text-to-audio"),
        ("RobertaForTokenClassification", "token-classification"),
        ("NomicBertForSequenceClassification", "text-classification"),
        ("FlaubertWithLMHeadModel", "fill-mask"),
        ("BartForConditionalGeneration", "text2text-generation"),
        ("MarianMTModel", "text2text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("LlavaForConditionalGeneration", "text-generation"),
        ("VisionEncoderDecoderModel", "image-to-text"),
        ("MPNetModel", "feature-extraction"),
        ("ViTModel", None),
        ("BertForNextSentencePrediction", None),
    ],
)
def test_task_of_a_class(class_name: str, task: str | None) -> None:
    assert task_of_class(class_name) == task


def test_the_first_source_that_says_a_task_counts(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "BertForSequenceClassification")
    assert choose_task(folder, None).task == "text-classification"
    folder = folder_with(tmp_path, "BertForSequenceClassification", task_specific_params={"sentiment-analysis": {}})
    assert choose_task(folder, None).source == "task_specific_params of config.json"
    folder = folder_with(tmp_path, "BertForSequenceClassification", readme="pipeline_tag: zero-shot-classification")
    assert choose_task(folder, None).task == "zero-shot-classification"
    assert choose_task(folder, "text-ranking").task == "rerank"
    encoder = folder_with(tmp_path, "BertModel")
    (tmp_path / "README.md").unlink()
    assert choose_task(encoder, None).task == "feature-extraction"
    (tmp_path / "modules.json").write_text("[]")
    assert choose_task(encoder, None).task == "sentence-similarity"


@pytest.mark.parametrize(
    ("class_name", "config", "task"),
    [
        ("MarianMTModel", {"model_type": "marian"}, "translation"),
        ("M2M100ForConditionalGeneration", {"model_type": "m2m_100"}, "translation"),
        ("PegasusForConditionalGeneration", {"model_type": "pegasus"}, "summarization"),
        (
            "BartForConditionalGeneration",
            {"model_type": "bart", "task_specific_params": {"summarization": {}}},
            "summarization",
        ),
        (
            "T5ForConditionalGeneration",
            {
                "model_type": "t5",
                "task_specific_params": {"summarization": {}, "translation_en_to_de": {}, "translation_en_to_fr": {}},
            },
            "text2text-generation",
        ),
        (
            "T5ForConditionalGeneration",
            {"model_type": "t5", "task_specific_params": {"translation_en_to_de": {}, "translation_en_to_fr": {}}},
            "translation",
        ),
        ("NewForTokenClassification", {}, "feature-extraction"),
        ("NewForTokenClassification", {"id2label": {"0": "PER"}}, "token-classification"),
        ("LlamaForCausalLM", {"task_specific_params": {"conversational": {}}}, "text-generation"),
        (None, {}, "text-generation"),
    ],
)
def test_what_the_config_says_beside_the_class(
    tmp_path: Path, class_name: str | None, config: dict[str, Any], task: str
) -> None:
    assert choose_task(folder_with(tmp_path, class_name, **config), None).task == task


def test_a_tag_that_the_class_cannot_do_is_refused_with_both_names(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "BertForTokenClassification", readme='pipeline_tag: "summarization"')
    with pytest.raises(UnsupportedTask, match=r"README.md says summarization.*made for token-classification") as error:
        choose_task(folder, None)
    assert error.value.exit_code == 16
    with pytest.raises(UnsupportedTask, match=r"--task says fill-mask.*: give --task token-classification"):
        choose_task(folder, "fill-mask")
    folder = folder_with(tmp_path, "VivitForVideoClassification")
    with pytest.raises(UnsupportedTask, match=r"made for video-classification: which is not served"):
        choose_task(folder, "fill-mask")


@pytest.mark.parametrize(
    ("class_name", "tag"),
    [
        ("BertForMaskedLM", "image-text-to-text"),
        ("BertForMaskedLM", "ner"),
        ("BertForMaskedLM", "translation_en_to_de"),
        ("GitForCausalLM", "conversational"),
        ("ViltForQuestionAnswering", "text-generation"),
    ],
)
def test_a_refusal_has_the_word_that_stands_in_the_file(tmp_path: Path, class_name: str, tag: str) -> None:
    folder = folder_with(tmp_path, class_name, readme=f"pipeline_tag: {tag}")
    with pytest.raises(UnsupportedTask, match=f"README.md says {tag}, and the class {class_name} is made for"):
        choose_task(folder, None)
    (folder / "README.md").unlink()
    folder = folder_with(tmp_path, class_name, task_specific_params={"conversational": {}})
    with pytest.raises(
        UnsupportedTask, match=r"task_specific_params of config\.json says conversational, and the class"
    ):
        choose_task(folder, None)


def test_a_tapex_checkpoint_is_refused_with_what_its_class_can_do(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "BartForConditionalGeneration")
    (folder / "README.md").write_text("---\npipeline_tag: table-question-answering\n---\n")
    words = (
        r"says table-question-answering, and the class BartForConditionalGeneration is made for text2text-generation"
    )
    with pytest.raises(UnsupportedTask, match=words + ": give --task text2text-generation"):
        choose_task(folder, None)


def test_a_model_of_tables_needs_no_tokenizer_json(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "TapasForQuestionAnswering")
    assert choose_task(folder, None).task == "table-question-answering"
    assert not choose_task(folder, None).writes_text
    assert not reads_texts(folder, None)


def test_a_class_without_a_task_is_refused_with_its_name_and_the_tasks(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTask, match=r"BertForNextSentencePrediction.*--task, one of.*fill-mask"):
        choose_task(folder_with(tmp_path, "BertForNextSentencePrediction"), None)


@pytest.mark.parametrize(
    ("class_name", "task", "reason"),
    [
        ("VivitForVideoClassification", "video-classification", "videos are not decoded"),
    ],
)
def test_a_task_that_is_not_served_is_refused_with_the_reason(
    tmp_path: Path, class_name: str, task: str, reason: str
) -> None:
    with pytest.raises(UnsupportedTask, match=rf"{task} .*is not served, because .*{reason}"):
        choose_task(folder_with(tmp_path, class_name), None)


@pytest.mark.parametrize("tag", ["text-to-image", "image-to-video", "tabular-regression", "audio-to-audio"])
def test_a_tag_that_is_not_served_is_refused_with_the_reason(tmp_path: Path, tag: str) -> None:
    folder = folder_with(tmp_path, "SomethingElse", readme=f"pipeline_tag: {tag}")
    with pytest.raises(UnsupportedTask, match=rf"{tag} .*is not served, because "):
        choose_task(folder, None)


def test_encoders_with_a_masked_head_give_vectors_when_a_file_says_so(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "DistilBertForMaskedLM", readme="pipeline_tag: sentence-similarity")
    assert choose_task(folder, None).task == "sentence-similarity"


@pytest.mark.parametrize(
    ("class_name", "tag", "task"),
    [
        ("VisionEncoderDecoderModel", "image-text-to-text", "image-to-text"),
        ("GitForCausalLM", "image-text-to-text", "image-to-text"),
        ("GitForCausalLM", "visual-question-answering", "visual-question-answering"),
        ("VisionEncoderDecoderModel", "document-question-answering", "document-question-answering"),
        ("BlipForConditionalGeneration", "image-text-to-text", "image-to-text"),
        ("Pix2StructForConditionalGeneration", "any-to-any", "image-to-text"),
        ("BlipForQuestionAnswering", "image-text-to-text", "visual-question-answering"),
        ("ViltForQuestionAnswering", "any-to-any", "visual-question-answering"),
        ("LayoutLMForQuestionAnswering", "image-text-to-text", "document-question-answering"),
        ("LlavaForConditionalGeneration", "image-text-to-text", "text-generation"),
    ],
)
def test_models_that_read_pictures_and_write(tmp_path: Path, class_name: str, tag: str, task: str) -> None:
    assert choose_task(folder_with(tmp_path, class_name, readme=f"pipeline_tag: {tag}"), None).task == task
    with pytest.raises(UnsupportedTask, match="--task says fill-mask"):
        choose_task(tmp_path, "fill-mask")


@pytest.mark.parametrize(
    ("class_name", "word", "task"),
    [
        ("BertForSequenceClassification", "sentiment-analysis", "text-classification"),
        ("BertForSequenceClassification", "text-ranking", "rerank"),
        ("BertForSequenceClassification", "zero-shot-classification", "zero-shot-classification"),
        ("T5ForConditionalGeneration", "translation_en_to_fr", "translation"),
        ("BertModel", "sentence-embeddings", "feature-extraction"),
        ("BertModel", "text-retrieval", "sentence-similarity"),
        ("BertModel", "Feature-Extraction", "feature-extraction"),
        ("LlavaForConditionalGeneration", "image-text-to-text", "text-generation"),
        ("LlavaForConditionalGeneration", "any-to-any", "text-generation"),
        ("Qwen2VLForConditionalGeneration", "video-text-to-text", "text-generation"),
        ("BlipForConditionalGeneration", "image-text-to-text", "image-to-text"),
        ("VisionEncoderDecoderModel", "image-captioning", "image-to-text"),
        ("ViltForQuestionAnswering", "image-text-to-text", "visual-question-answering"),
        ("LayoutLMForQuestionAnswering", "any-to-any", "document-question-answering"),
        ("VitsModel", "text-to-speech", "text-to-audio"),
    ],
)
def test_a_name_of_the_flag_means_what_the_class_does(tmp_path: Path, class_name: str, word: str, task: str) -> None:
    folder = folder_with(tmp_path, class_name)
    for settings in (load_settings(["--task", word], {}), load_settings([], {"TASK": word})):
        assert choose_task(folder, settings.task).task == task
    assert choose_task(folder, load_settings([], {"HF_TASK": word}).task).task == task


@pytest.mark.parametrize("word", ["image-text-to-text", "any-to-any", "ner", "text-retrieval"])
def test_a_flag_that_the_class_cannot_do_is_refused_under_its_own_word(tmp_path: Path, word: str) -> None:
    folder = folder_with(tmp_path, "ViTForImageClassification")
    with pytest.raises(
        UnsupportedTask, match=f"--task says {word}, and the class ViTForImageClassification is made for"
    ):
        choose_task(folder, load_settings(["--task", word], {}).task)


@pytest.mark.parametrize("word", ["audio-text-to-text", "text-to-image", "mask-generation", "text-to-3d"])
def test_a_task_that_is_not_served_is_refused_at_the_flag_with_the_reason(word: str) -> None:
    with pytest.raises(SettingsError, match=rf"--task is '{word}', wanted one of .*{word} is not served, because "):
        load_settings(["--task", word], {})


def test_a_model_that_speaks_brings_its_own_tokenizer(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "VitsModel")
    assert choose_task(folder, None).task == "text-to-audio"
    assert choose_task(folder, "text-to-speech").task == "text-to-audio"
    assert not reads_texts(folder, None)
    assert reads_texts(folder_with(tmp_path, "BertForMaskedLM"), None)


def test_each_task_has_an_example_call() -> None:
    for task in TASKS:
        path, words = example_of(task)
        assert path.partition("?")[0] in ("/", "/generate")
        assert ("candidate_labels" in path) == (task in TASKS_OF_LABELS)
        if words.startswith("--data-binary"):
            assert task in FILE_TASKS
        else:
            assert "inputs" in json.loads(shlex.split(words)[-1])
