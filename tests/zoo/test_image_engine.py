"""Every family of models with images has the tokens of transformers through the real step loop."""

import pytest
from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.plan import Budget

from tests.fakes.native_cases import native_cache_folder
from tests.fakes.step_harness import drop
from tests.zoo.image_drive import BLOCK_SIZE, ImageModel, ImageText, load_image_model, make_image_model, make_text
from tests.zoo.image_engine import MAX_STEP_TOKENS, ImageShard, greedy_reference, image_facts, media_of
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO

NUM_NEW = 6
WIDE = Budget(MAX_STEP_TOKENS, MAX_STEP_TOKENS, MAX_STEP_TOKENS)


@pytest.fixture(scope="module", params=IMAGE_ZOO, ids=lambda entry: entry.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    entry: ImageEntry = request.param
    return make_image_model(entry, tmp_path_factory.mktemp(entry.model_type))


@pytest.fixture(scope="module")
def runner(model: ImageModel) -> ModelRunner:
    return load_image_model(model, native_cache_dir=native_cache_folder())


@pytest.fixture(scope="module")
def texts(model: ImageModel, runner: ModelRunner) -> list[ImageText]:
    """Return texts with two images, with one image and with none."""
    return [make_text(model.entry, runner, num_images=count, seed=seed) for seed, count in enumerate((2, 1, 0))]


@pytest.fixture(scope="module")
def expected(model: ImageModel, texts: list[ImageText]) -> list[list[int]]:
    return [greedy_reference(model, text, NUM_NEW) for text in texts]


def small_budget(runner: ModelRunner, texts: list[ImageText]) -> Budget:
    """Return the budget that cuts every image which may be cut."""
    media = media_of(runner)
    longest = 5
    if media.uncut_spans:
        longest = max(span.num_tokens for text in texts for span, _ in text.spans)
    if media.is_prompt_span:
        longest = max(text.num_prompt for text in texts)
    return Budget(max_step_tokens=longest + 4, max_prefill_tokens=longest, max_chunk_tokens=3)


def test_whole_then_chunked_beside_a_text_then_from_the_prefix_cache(
    runner: ModelRunner, texts: list[ImageText], expected: list[list[int]]
) -> None:
    two, _, plain = texts
    with ImageShard(runner) as shard:
        shard.put_images(two)
        shard.send(admits=[shard.admit_text(0, two, num_new=NUM_NEW)], budget=WIDE)
        assert shard.run_to_end(0)[0] == expected[0]
        assert shard.num_encoded == 2
        # In chunks, beside a text that decodes. The images are known, so that the tower does not run.
        shard.results.clear()
        shard.send(
            admits=[shard.admit_text(2, plain, num_new=NUM_NEW), shard.admit_text(1, two, num_new=NUM_NEW)],
            budget=small_budget(runner, texts),
        )
        tokens = shard.run_to_end(1, 2)
        assert tokens[1] == expected[0]
        assert tokens[2] == expected[2]
        if not image_facts(runner).uncut_prompts:  # else there is no prefix cache
            span = max((span for span, _ in two.spans), key=lambda span: span.start)
            inside = -(-(span.start + 1) // BLOCK_SIZE) * BLOCK_SIZE
            assert span.start < inside < span.start + span.num_tokens
            shard.results.clear()
            shard.send(admits=[shard.admit_text(3, two, num_new=NUM_NEW, cached_of=0, cached=inside)])
            assert shard.run_to_end(3)[3] == expected[0]
        assert shard.num_encoded == 2


def test_preempted_and_after_the_death_of_the_shard(
    runner: ModelRunner, texts: list[ImageText], expected: list[list[int]]
) -> None:
    _, one, plain = texts
    with ImageShard(runner) as shard:
        shard.put_images(one)
        shard.send(admits=[shard.admit_text(0, one, num_new=2), shard.admit_text(1, plain, num_new=NUM_NEW)])
        tokens = shard.run_to_end(0, 1)
        assert (tokens[0], tokens[1]) == (expected[1][:2], expected[2])
        # Preempted after two tokens, and admitted again with them.
        shard.results.clear()
        again = shard.admit_text(2, one, output=expected[1][:2], num_new=NUM_NEW)
        shard.send(admits=[again], drops=[drop(0)], budget=small_budget(runner, texts))
        assert shard.run_to_end(2)[2] == expected[1][2:]
        assert shard.num_encoded == 1
    with ImageShard(runner) as shard:
        shard.put_images(one)
        shard.send(admits=[shard.admit_text(0, one, output=expected[1][:3], num_new=NUM_NEW)])
        assert shard.run_to_end(0)[0] == expected[1][3:]
