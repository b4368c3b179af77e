"""Tasks of images with texts of the call, and depths, in front of a shard whose numbers can be counted by hand."""

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.fakes.fake_row_shard import MASK, RowShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router

MATCH, DETECT, DEPTH = "zero-shot-image-classification", "zero-shot-object-detection", "depth-estimation"
KINDS = {
    MATCH: RowShardOptions(heads=("pair_scores",), media="image"),
    DETECT: RowShardOptions(heads=("boxes",), media="image", max_batch_files=1),
    DEPTH: RowShardOptions(heads=("depths",), media="image", max_batch_files=1),
}
FILE = b"\x89PNG and so on"  # the fake shard reads no format


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningRouter]]:
    with ExitStack() as stack:
        yield {
            task: stack.enter_context(task_router(tmp_path_factory.mktemp(task), task, options))
            for task, options in KINDS.items()
        }


@pytest.fixture(scope="module")
def clients(routers: dict[str, RunningRouter]) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        yield {task: stack.enter_context(router.client()) for task, router in routers.items()}


def coded(file: bytes) -> str:
    return base64.b64encode(file).decode()


def posted(client: httpx.Client, body: Any, path: str = "/") -> Any:
    """Send JSON, or bytes without a type, and return the answer."""
    answer = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, body: Any, path: str = "/") -> tuple[str, str]:
    answer = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == 422, answer.text
    return answer.json()["error_type"], answer.json()["error"]


def fitting(*labels: str, template: str = "This is a photo of {}.") -> list[dict[str, Any]]:
    """Return the answer of the fake shard, which finds long texts fitting."""
    scored = sorted(((len(template.replace("{}", label)) / 64, label) for label in labels), reverse=True)
    return [{"label": label, "score": score} for score, label in scored]


ASKED = {"candidate_labels": ["cat", "a dog"]}


@pytest.mark.parametrize(
    ("body", "path", "num_images"),
    [
        ({"inputs": coded(FILE), "parameters": ASKED}, "/", None),
        ({"inputs": {"image": coded(FILE)}, "parameters": ASKED}, "/", None),
        ({"inputs": {"image": "data:image/png;base64," + coded(FILE)}, "parameters": ASKED}, "/", None),
        ({"inputs": coded(FILE), "parameters": {"candidate_labels": "cat, a dog"}}, "/", None),
        (FILE, "/?candidate_labels=cat,a%20dog", None),
        (FILE, "/?candidate_labels=cat&candidate_labels=a%20dog", None),
        ({"inputs": [coded(FILE)], "parameters": ASKED}, f"/pipeline/{MATCH}", 1),
        ({"inputs": [{"image": coded(FILE)}, coded(FILE)], "parameters": ASKED}, "/", 2),
        ({"inputs": [coded(FILE)] * 9, "parameters": ASKED}, "/models/a/b", 9),
    ],
)
def test_labels_that_fit_an_image(
    clients: dict[str, httpx.Client], body: Any, path: str, num_images: int | None
) -> None:
    answer = fitting("cat", "a dog")
    assert [one["label"] for one in answer] == ["a dog", "cat"]
    assert posted(clients[MATCH], body, path) == (answer if num_images is None else [answer] * num_images)


def test_the_template_is_replaced_as_text_and_sent_with_each_image(
    clients: dict[str, httpx.Client], routers: dict[str, RunningRouter]
) -> None:
    labels = ["{0}", "ein Hündchen 🐕", "{x.__class__}"]
    parameters = {"candidate_labels": labels, "hypothesis_template": "Bild: {}"}
    found = posted(clients[MATCH], {"inputs": [coded(b"one"), coded(b"two")], "parameters": parameters})
    assert found == [fitting(*labels, template="Bild: {}")] * 2
    media = routers[MATCH].shard.batches[-1].message.media
    assert [list(texts.texts) for texts in media.texts] == [[f"Bild: {label}" for label in labels]] * len(media.files)


@pytest.mark.parametrize("task", [MATCH, DETECT])
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (None, "`parameters.candidate_labels` is missing"),
        ({}, "`parameters.candidate_labels` is missing"),
        ({"candidate_labels": []}, "labels, found 0"),
        ({"candidate_labels": ["x"] * 257}, "to 256 labels, found 257"),
        ({"candidate_labels": ["cat", " "]}, "`parameters.candidate_labels[1]` must not be empty"),
        ({"candidate_labels": ["cat", "cat"]}, "`parameters.candidate_labels[1]` stands there twice"),
        ({"candidate_labels": ["cat", " cat "]}, "`parameters.candidate_labels[1]` stands there twice"),
        ({"candidate_labels": ["cat", "x" * 2001]}, "`parameters.candidate_labels[1]` has 2001 characters"),
        ({"candidate_labels": ["cat", 3]}, "`parameters.candidate_labels[1]`"),
        ({"candidate_labels": 7}, "`parameters.candidate_labels`"),
        ({"candidate_labels": ["cat", "BAD label"], "hypothesis_template": "{}"}, "candidate_labels`: the text is bad"),
    ],
    ids=str,
)
def test_labels_that_are_none_are_refused_by_their_path(
    clients: dict[str, httpx.Client], task: str, parameters: Any, sentence: str
) -> None:
    error_type, error = refused(clients[task], {"inputs": coded(FILE), "parameters": parameters})
    assert error_type == "validation"
    assert sentence in error


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"inputs": coded(FILE), "parameters": {"candidate_labels": ["cat"]}}, "must hold 2 to 256 labels, found 1"),
        ({"inputs": coded(FILE), "parameters": {**ASKED, "hypothesis_template": "none"}}, "`parameters.hypothesis_te"),
        ({"inputs": coded(FILE), "parameters": {**ASKED, "hypothesis_template": "{} {}"}}, "`parameters.hypothesis_te"),
        ({"inputs": coded(FILE), "parameters": {**ASKED, "hypothesis_template": "{:>9}"}}, "`parameters.hypothesis_te"),
        ({"inputs": {"image": "https://a.b/c.png"}, "parameters": ASKED}, "`inputs.image` is an address"),
        ({"inputs": {"image": "no base64!"}, "parameters": ASKED}, "`inputs.image` must be a file in base64"),
        ({"inputs": {"image": coded(b"BAD file")}, "parameters": ASKED}, "`inputs.image`: the file is bad"),
        ({"inputs": {"picture": "aGk="}, "parameters": ASKED}, "`inputs.image` is missing"),
        ({"inputs": ["aGk=", coded(b"BAD file")], "parameters": ASKED}, "`inputs[1]`: the file is bad"),
        ({"inputs": [], "parameters": ASKED}, "`inputs` must hold at least one file"),
        (FILE, "`parameters.candidate_labels` is missing"),
        (b"", "`parameters.candidate_labels` is missing"),
    ],
    ids=str,
)
def test_other_bodies_are_refused_by_their_path(clients: dict[str, httpx.Client], body: Any, sentence: str) -> None:
    error_type, error = refused(clients[MATCH], body)
    assert error_type == "validation"
    assert sentence in error


def described(score: float, number: int, label: str) -> dict[str, Any]:
    corners = {"xmin": number, "ymin": 10 + number, "xmax": 20 + number, "ymax": len(FILE)}
    return {"score": score, "label": label, "box": corners}


def test_objects_that_labels_describe(clients: dict[str, httpx.Client]) -> None:
    client, one = clients[DETECT], {"candidate_labels": ["cat"]}
    whole = [described(0.75, 2, "cat"), described(0.5, 1, "a dog"), described(0.25, 0, "cat")]
    assert posted(client, {"inputs": coded(FILE), "parameters": ASKED}) == whole
    assert posted(client, {"inputs": {"image": coded(FILE)}, "parameters": {**ASKED, "threshold": 0.3}}) == whole[:2]
    assert posted(client, FILE, "/?candidate_labels=cat,a%20dog&top_k=1") == whole[:1]
    alone = [{**each, "label": "cat"} for each in whole]
    assert posted(client, {"inputs": [coded(FILE)] * 2, "parameters": one}) == [alone, alone]
    for wrong, name in (({"threshold": 1.5}, "threshold"), ({"top_k": 0}, "top_k")):
        assert f"`parameters.{name}`" in refused(client, {"inputs": coded(FILE), "parameters": {**one, **wrong}})[1]


def depths(file: bytes) -> dict[str, Any]:
    first = len(file)
    rows = [[first + place / 4 for place in range(3)], [first + place / 4 for place in range(3, 6)]]
    return {"predicted_depth": rows, "depth": coded(MASK)}


def test_depths_of_an_image(clients: dict[str, httpx.Client]) -> None:
    client = clients[DEPTH]
    assert posted(client, FILE) == depths(FILE)
    assert posted(client, {"inputs": coded(FILE)}) == depths(FILE)
    assert posted(client, {"inputs": {"image": coded(FILE)}, "parameters": {}}) == depths(FILE)
    assert posted(client, {"inputs": [coded(b"a"), coded(b"bc")]}) == [depths(b"a"), depths(b"bc")]
    assert posted(client, {"inputs": [coded(b"a")]}) == [depths(b"a")]
    vertex = client.post("/vertex", json={"instances": [{"inputs": coded(FILE)}]})
    assert vertex.json() == {"predictions": [depths(FILE)]}
    assert "`inputs[1]`: the file is bad" in refused(client, {"inputs": ["aGk=", coded(b"BAD file")]})[1]


def test_depths_of_more_pixels_than_an_answer_has_are_refused(
    clients: dict[str, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textmill_router.tasks.depth_estimation.MAX_PIXELS", 12)
    assert len(posted(clients[DEPTH], {"inputs": [coded(b"a")] * 2})) == 2
    error_type, error = refused(clients[DEPTH], {"inputs": [coded(b"a")] * 3})
    assert error_type == "validation"
    assert "`inputs` has 18 pixels in all images, and an answer has depths of at most 12" in error


def test_depths_that_are_not_finite_fail_the_call(tmp_path: Any) -> None:
    with task_router(tmp_path, DEPTH, KINDS[DEPTH]) as router, router.client() as client:
        router.shard.poison(lambda file: file == b"odd")
        answer = client.post("/", content=b"odd")
        assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")


def test_info_document_and_headers(clients: dict[str, httpx.Client]) -> None:
    info = clients[MATCH].get("/info").json()
    assert (info["task"], info["tasks"], info["labels"]) == (MATCH, [MATCH], {})
    answer = clients[MATCH].post("/", json={"inputs": [coded(FILE)] * 2, "parameters": ASKED})
    assert (answer.headers["x-compute-images"], answer.headers["x-task"]) == ("2", MATCH)
    for task, names in (
        (MATCH, {"candidate_labels", "hypothesis_template"}),
        (DETECT, {"candidate_labels", "threshold", "top_k"}),
        (DEPTH, set()),
    ):
        operation = clients[task].get("/openapi.json").json()["paths"]["/"]["post"]
        assert {one["name"] for one in operation["parameters"]} == names
        content = operation["requestBody"]["content"]
        assert list(content) == ["application/octet-stream", "application/json"]
        assert posted(clients[task], content["application/json"]["example"])
    assert refused(clients[DEPTH], {"inputs": coded(FILE), "parameters": ASKED}, f"/pipeline/{MATCH}")[0] == "task"


def test_a_bad_image_of_a_list_of_objects_is_named_by_its_path(clients: dict[str, httpx.Client]) -> None:
    for task in (MATCH, DETECT, DEPTH):
        parameters = None if task == DEPTH else ASKED
        images = [{"image": coded(FILE)}, {"image": "###"}]
        found = refused(clients[task], {"inputs": images, "parameters": parameters})
        assert "`inputs[1].image` must be a file in base64" in found[1]
