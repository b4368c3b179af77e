"""`suffix` on tiny models with the tokens of published formats, through a real shard, compared with transformers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, CodeLlamaTokenizer

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID, make_byte_tokenizer
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.real_shard import RealShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_models import make_tiny_llama

PREFIX = "def f(x):\n  "
SUFFIX = "\n  return é"
NUM_TOKENS = 12
MAX_DIFFERENCE = 1e-3  # of natural logarithms, for fp32 with sums in another order


@dataclass(frozen=True, slots=True)
class Family:
    """A tokenizer, the prompt of prefix and suffix by its published format, and the token that ends the middle."""

    tokenizer: tokenizers.Tokenizer
    prompt_ids: Callable[[str, str], list[int]]
    end: str


def byte_family(
    tokens: list[str],
    form: Callable[[list[int], list[int], list[int]], list[int]],
    *,
    begins: bool,
    end: str,
    special: bool = True,
) -> Family:
    """Return a family whose texts are bytes, with the format's tokens behind the two special tokens."""
    tokenizer = make_byte_tokenizer(add_begin=begins)
    tokenizer.add_tokens([tokenizers.AddedToken(token, special=special, normalized=False) for token in tokens])
    ids = list(range(END_ID + 1, END_ID + 1 + len(tokens)))

    def prompt_ids(prefix: str, suffix: str) -> list[int]:
        return [BEGIN_ID] * begins + form(ids, list(prefix.encode()), list(suffix.encode()))

    return Family(tokenizer, prompt_ids, end)


def prefix_suffix_middle(ids: list[int], prefix: list[int], suffix: list[int]) -> list[int]:
    return [ids[0], *prefix, ids[1], *suffix, ids[2]]


def suffix_prefix(ids: list[int], prefix: list[int], suffix: list[int]) -> list[int]:
    return [ids[0], *suffix, ids[1], *prefix]


def code_llama() -> Family:
    """Return Code Llama's family: pieces with byte fallback, by the published normalizer.

    A text begins with a blank, and a suffix does not.
    """
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ("▁", *map(chr, range(33, 127)), "▁d", "ef", "▁▁"):
        vocabulary[piece] = len(vocabulary)
    reference = CodeLlamaTokenizer(vocab=vocabulary, merges=[("▁", "d"), ("e", "f"), ("▁", "▁")])
    library = reference.backend_tokenizer
    library.pre_tokenizer = None
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])

    def prompt_ids(prefix: str, suffix: str) -> list[int]:
        begin, first, *others = reference(prefix, suffix=suffix)["input_ids"]
        # transformers makes a blank of an empty text, the code of the model's authors makes no token.
        return [begin, first, *(others if prefix else others[1:])]

    return Family(tokenizers.Tokenizer.from_str(library.to_str()), prompt_ids, "▁<EOT>")


FAMILIES: dict[str, Callable[[], Family]] = {
    "qwen2.5-coder": lambda: byte_family(
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|file_sep|>"],
        prefix_suffix_middle,
        begins=False,
        end="<|file_sep|>",
        special=False,
    ),
    "starcoder": lambda: byte_family(
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"],
        prefix_suffix_middle,
        begins=False,
        end="<fim_pad>",
    ),
    "deepseek-coder": lambda: byte_family(
        ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], prefix_suffix_middle, begins=True, end="<｜fim▁end｜>"
    ),
    "codestral": lambda: byte_family(["[SUFFIX]", "[PREFIX]"], suffix_prefix, begins=True, end="[PREFIX]"),
    "code-llama": code_llama,
}


def write_model(family: Family, folder: Path) -> Path:
    """Write a llama with a vocabulary of this size."""
    model = make_tiny_llama(folder, vocab=family.tokenizer.get_vocab_size(), eos=0, seed=3)
    family.tokenizer.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text("{}")
    return model


class Served:
    """The tiny model of a family behind a router."""

    def __init__(self, family: Family, model: Path, client: httpx.Client) -> None:
        self.family = family
        self.model = model
        self._client = client

    def fill_in(self, prompt: Any = PREFIX, suffix: str = SUFFIX, **fields: Any) -> Any:
        body = {"prompt": prompt, "suffix": suffix, "max_tokens": NUM_TOKENS, "temperature": 0, **fields}
        answer = self._client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    family = FAMILIES[request.param]()
    folder = tmp_path_factory.mktemp("middle")
    model = write_model(family, folder / "model")
    with ExitStack() as stack:
        router = stack.enter_context(RunningRouter(folder, model=model, make_shard=RealShard))
        yield Served(family, model, stack.enter_context(router.client()))


def test_tokens_between_are_those_of_transformers_after_the_published_ids(served: Served) -> None:
    model = AutoModelForCausalLM.from_pretrained(served.model, dtype=torch.float32).eval()
    for prefix, suffix in ((PREFIX, SUFFIX), ("def", " x"), ("f", "  def"), ("", "d")):
        prompt_ids = served.family.prompt_ids(prefix, suffix)
        with torch.inference_mode():
            # A special token that ends the middle would end our text alone, so the texts go on.
            ids = model.generate(torch.tensor([prompt_ids]), max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0)
            logprobs_TV = torch.log_softmax(model(ids).logits[0], dim=-1)
        expected = [float(logprobs_TV[place - 1, ids[0, place]]) for place in range(len(prompt_ids), ids.shape[1])]
        answer = served.fill_in(prefix, suffix, logprobs=0, ignore_eos=True)
        [choice] = answer["choices"]
        assert answer["usage"]["prompt_tokens"] == len(prompt_ids)
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=MAX_DIFFERENCE)


def test_prompts_of_a_list_and_choices_have_one_suffix(served: Served) -> None:
    answer = served.fill_in([PREFIX, "def"], n=2)
    alone = [served.fill_in(prompt)["choices"][0]["text"] for prompt in (PREFIX, "def")]
    assert [choice["text"] for choice in answer["choices"]] == [alone[0], alone[0], alone[1], alone[1]]


def test_token_that_ends_the_middle_ends_the_text(served: Served) -> None:
    """The model's configuration does not list the token as an end."""
    end = served.family.end
    end_id = served.family.tokenizer.token_to_id(end)
    [choice] = served.fill_in(logit_bias={str(end_id): 100}, logprobs=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["tokens"] == [end]
    [choice] = served.fill_in(logit_bias={str(end_id): 100}, ignore_eos=True)["choices"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("prefix", "suffix"), [(PREFIX, SUFFIX), ("", "  def"), ("x" * 20, "\n\n")], ids=repr)
def test_shard_gets_the_published_ids(tmp_path: Path, name: str, prefix: str, suffix: str) -> None:
    family = FAMILIES[name]()
    family.tokenizer.save(str(tmp_path / "tokenizer.json"))
    options = FakeShardOptions(vocab_size=family.tokenizer.get_vocab_size())
    with RunningRouter(tmp_path, options, model=tmp_path) as router, router.client() as client:
        client.post("/v1/completions", json={"prompt": prefix, "suffix": suffix, "max_tokens": 1}).raise_for_status()
        admit = router.shard.last_admit
    assert np.frombuffer(admit.prompt_ids, "<u4").tolist() == family.prompt_ids(prefix, suffix)


def test_suffix_needs_text_and_no_echo(tmp_path: Path) -> None:
    FAMILIES["starcoder"]().tokenizer.save(str(tmp_path / "tokenizer.json"))
    with RunningRouter(tmp_path, FakeShardOptions(vocab_size=262), model=tmp_path) as router, router.client() as client:
        for fields, field in (({"prompt": [1, 2]}, "suffix"), ({"prompt": "a", "echo": True}, "echo")):
            answer = client.post("/v1/completions", json={"suffix": "b", **fields})
            assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)
        answer = client.post("/v1/completions", json={"prompt": "a" * 3000, "suffix": "b" * 30000})
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_ends_that_the_model_lacks_do_not_reach_the_shard(tmp_path: Path) -> None:
    """The plan check of the shard would refuse such an id, and with it the whole plan."""
    family = FAMILIES["starcoder"]()
    family.tokenizer.save(str(tmp_path / "tokenizer.json"))
    end_id = family.tokenizer.token_to_id(family.end)
    for num_known in (end_id, end_id + 1):
        options = FakeShardOptions(vocab_size=num_known)
        with RunningRouter(tmp_path, options, model=tmp_path) as router, router.client() as client:
            client.post("/v1/completions", json={"prompt": "a", "suffix": "b", "max_tokens": 1}).raise_for_status()
            stop_ids = np.frombuffer(router.shard.last_admit.stop_ids, "<u4").tolist()
        assert (end_id in stop_ids) == (end_id < num_known)
        assert END_ID + 1 in stop_ids
