"""Labels of a call and depths over HTTP with tiny random models, against transformers' own pipelines, to 1e-5."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection,
    pipeline,
)

from tests.fakes.close_answers import close
from tests.fakes.hostile_pictures import png
from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_media import picture_file
from tests.fakes.tiny_zero_shot import make_picture_model

MATCH, DETECT, DEPTH = "zero-shot-image-classification", "zero-shot-object-detection", "depth-estimation"
MODELS: dict[str, tuple[Any, str]] = {
    MATCH: (AutoModelForZeroShotImageClassification, "clip"),
    DETECT: (AutoModelForZeroShotObjectDetection, "owlvit"),
    DEPTH: (AutoModelForDepthEstimation, "dpt"),
}
FILES = [picture_file(40, 30, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(33, 90, seed=3)]
LABELS = ["a happy dog", "the cat", "ein Hündchen 🐕"]


class Served:
    """A model that is served, with the client of its server and the pipeline of its folder."""

    def __init__(self, task: str, folder: Path, client: httpx.Client) -> None:
        self.client = client
        self.pipe = pipeline(task, model=str(folder), device="cpu", dtype=torch.float32)

    def post(self, body: Any, path: str = "/") -> Any:
        answer = self.client.post(path, **({"content": body} if isinstance(body, bytes) else {"json": body}))
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def serving(folder: Path, task: str) -> Iterator[Served]:
    auto_class, model_type = MODELS[task]
    model = folder / "model"
    make_picture_model(model, model_type, auto_class)
    with (
        RunningRouter(
            folder, model=model, make_shard=lambda socket, path: RealRowShard(socket, path, task), task=task
        ) as router,
        router.client() as client,
    ):
        yield Served(task, model, client)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    with ExitStack() as stack:
        yield {task: stack.enter_context(serving(tmp_path_factory.mktemp(task), task)) for task in MODELS}


def coded(file: bytes) -> str:
    return base64.b64encode(file).decode()


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


@pytest.mark.parametrize("template", [None, "{}", "a picture of {}!"])
def test_labels_that_fit_an_image(served: dict[str, Served], template: str | None) -> None:
    one = served[MATCH]
    more = {} if template is None else {"hypothesis_template": template}
    expected = [one.pipe(opened(file), candidate_labels=LABELS, **more) for file in FILES]
    parameters = {"candidate_labels": LABELS, **more}
    files = [coded(file) for file in FILES]
    close(one.post({"inputs": files, "parameters": parameters}), expected)
    close(one.post({"inputs": files[:1], "parameters": parameters}), expected[:1])
    close(one.post({"inputs": files[1], "parameters": parameters}), expected[1])
    close(one.post({"inputs": {"image": files[2]}, "parameters": parameters}), expected[2])


def test_calls_with_other_labels_beside_each_other_are_as_alone(served: dict[str, Served]) -> None:
    one = served[MATCH]
    lists = [LABELS, ["my name", "london"], ["a day", "a dog", "is", "live", "sunny"]]
    calls = [(file, lists[number % 3]) for number, file in enumerate(FILES * 4)]
    expected = [one.pipe(opened(file), candidate_labels=labels) for file, labels in calls]
    with ThreadPoolExecutor(12) as pool:
        found = pool.map(
            lambda call: one.post({"inputs": coded(call[0]), "parameters": {"candidate_labels": call[1]}}), calls
        )
        close(list(found), expected)


@pytest.mark.parametrize("parameters", [{}, {"threshold": 0.5}, {"threshold": 0.4, "top_k": 3}])
def test_objects_that_labels_describe(served: dict[str, Served], parameters: dict[str, Any]) -> None:
    one = served[DETECT]
    expected = []
    for file in FILES:
        picture = opened(file)
        limits = {"xmin": picture.width, "xmax": picture.width, "ymin": picture.height, "ymax": picture.height}
        found = one.pipe(picture, candidate_labels=LABELS, **parameters)
        for each in found:  # the pipeline also gives corners outside of the image
            each["box"] = {side: min(max(value, 0), limits[side]) for side, value in each["box"].items()}
        expected.append(found)
    asked = {"candidate_labels": LABELS, **parameters}
    close(one.post({"inputs": [coded(file) for file in FILES], "parameters": asked}), expected)
    close(one.post({"inputs": [coded(FILES[0])], "parameters": asked}), expected[:1])
    query = "".join(f"&{name}={value}" for name, value in parameters.items())
    words = [word for word in LABELS if word.isascii()]
    pipe = one.pipe(opened(FILES[1]), candidate_labels=words, **parameters)
    assert [each["label"] for each in one.post(FILES[1], f"/?candidate_labels={','.join(words)}{query}")] == [
        each["label"] for each in pipe
    ]
    assert all(expected)


def test_depths_of_images(served: dict[str, Served]) -> None:
    one = served[DEPTH]
    found = one.post({"inputs": [coded(file) for file in FILES]})
    assert one.post(FILES[0]) == found[0]
    assert one.post({"inputs": [coded(FILES[0])]}) == found[:1]
    for file, each in zip(FILES, found, strict=True):
        expected = one.pipe(opened(file))
        np.testing.assert_allclose(each["predicted_depth"], expected["predicted_depth"].numpy(), atol=1e-5)
        picture = Image.open(io.BytesIO(base64.b64decode(each["depth"])))
        assert (picture.format, picture.mode) == ("PNG", "L")
        assert picture.tobytes() == expected["depth"].tobytes()


@pytest.mark.parametrize("task", MODELS)
def test_hostile_files_are_refused_beside_calls_that_go_on(served: dict[str, Served], task: str) -> None:
    one = served[task]
    asked = {} if task == DEPTH else {"candidate_labels": LABELS}
    good = {"inputs": coded(FILES[0]), "parameters": asked}
    expected = one.post(good)
    hostile = [png(40_000, 40_000), b"<svg xmlns='x'></svg>", FILES[0][:90], b"GIF89a", bytes(100)]
    with ThreadPoolExecutor(8) as pool:
        beside = [pool.submit(one.post, good) for _ in range(4)]
        for number, file in enumerate(hostile):
            files = [coded(FILES[1])] * number + [coded(file)]
            answer = one.client.post("/", json={"inputs": files, "parameters": asked})
            assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
            assert f"`inputs[{number}]`: " in answer.json()["error"]
        close([call.result() for call in beside], [expected] * 4)


@pytest.mark.parametrize("task", [MATCH, DETECT])
def test_a_label_of_too_many_tokens_is_refused_by_its_path(served: dict[str, Served], task: str) -> None:
    labels = ["the cat", "a dog " * 20]
    body = {"inputs": coded(FILES[0]), "parameters": {"candidate_labels": labels}}
    answer = served[task].client.post("/", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert "`parameters.candidate_labels`: " in answer.json()["error"]
    assert "and the model reads at most 30" in answer.json()["error"]
