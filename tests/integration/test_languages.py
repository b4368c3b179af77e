"""Translation by tiny NLLB, mBART, mBART-50, M2M100 and Marian models, against transformers' own tokenizers."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from textmill_shard.loader.tokenizer_convert import convert_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
)

from tests.fakes.real_shard import RealShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.vocabulary_files import write_m2m100, write_marian

LETTERS = [chr(code) for code in range(97, 123)]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, *(f"▁{letter}" for letter in LETTERS)]
NLLB, MBART = ["eng_Latn", "fra_Latn", "deu_Latn"], ["en_XX", "fr_XX", "de_DE"]
TEXTS = ["a fox and a dog", "the end"]
SIZES = {
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 80},
    **{"init_std": 0.6, "tie_word_embeddings": False, "scale_embedding": False},
}


def make_tokenizer(name: str) -> Any:
    """Return a tokenizer of transformers that knows three languages."""
    ids = {piece: place for place, piece in enumerate(PIECES)}
    if name == "nllb":
        return NllbTokenizer(vocab=ids, merges=[], extra_special_tokens=NLLB)
    if name == "nllb legacy":
        return NllbTokenizer(vocab=ids, merges=[], extra_special_tokens=NLLB, legacy_behaviour=True)
    kind = MBartTokenizer if name == "mbart" else MBart50Tokenizer
    scored = [(piece, -1.0 if len(piece) > 1 else -3.0) for piece in PIECES]
    return kind(vocab=scored, extra_special_tokens=MBART)


def make_model(folder: Path, name: str) -> tuple[Any, Any]:
    """Write a model and its tokenizer, and return both."""
    tokenizer = make_tokenizer(name)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(4)
    config = AutoConfig.for_model(
        "m2m_100" if name.startswith("nllb") else "mbart",
        vocab_size=len(tokenizer),
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        **SIZES,
    )
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.update(
        num_beams=3,
        max_length=24,
        forced_eos_token_id=None,
        bad_words_ids=[[token_id] for token_id in range(len(tokenizer)) if token_id not in range(4, len(PIECES))],
    )
    model.save_pretrained(folder)
    return model, tokenizer


def expected(model: Any, tokenizer: Any, text: str, source: str, target: str) -> str:
    inputs = tokenizer._build_translation_inputs(text, return_tensors="pt", src_lang=source, tgt_lang=target)
    with torch.inference_mode():
        ids = model.generate(**{name: value for name, value in inputs.items() if name != "token_type_ids"})
    return str(tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("name", ["nllb", "nllb legacy", "mbart", "mbart50"])
def test_translations_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    model, tokenizer = make_model(folder, name)
    first, second, third = NLLB if name.startswith("nllb") else MBART
    with RunningRouter(tmp_path, model=folder, make_shard=RealShard, task="translation") as router:

        def post(status: int = 200, **parameters: Any) -> Any:
            body = {"inputs": TEXTS, "parameters": parameters}
            answer = httpx.post(f"{router.url}/", json=body, timeout=60, trust_env=False)
            assert answer.status_code == status, answer.text
            return answer.json()

        seen = set()
        for source, target in ((first, second), (first, third), (second, first)):
            found = post(src_lang=source, tgt_lang=target)
            wanted = [expected(model, tokenizer, text, source, target) for text in TEXTS]
            assert found == [{"translation_text": text} for text in wanted]
            greedy = post(src_lang=source, tgt_lang=target, num_beams=1, max_new_tokens=9)
            seen.add(json.dumps(greedy))
        assert len(seen) == 3, "the languages make no difference"
        error = post(422, src_lang=first, tgt_lang="xx_XX")["error"]
        assert "`parameters.tgt_lang`" in error
        assert second in error
        assert "belong together" in post(422, src_lang=first)["error"]
        assert len(post()) == 2  # the tokenizer's own language, and no target


def make_model_of_pieces(folder: Path, name: str) -> tuple[Any, Any]:
    """Write a model whose tokenizer has no tokenizer.json, and return model and tokenizer."""
    if name == "marian":
        vocab_size = write_marian(folder)
        ends = {"pad_token_id": vocab_size - 1, "eos_token_id": 0, "decoder_start_token_id": vocab_size - 1}
        config = AutoConfig.for_model("marian", vocab_size=vocab_size, forced_eos_token_id=0, **ends, **SIZES)
        forbidden = [vocab_size - 1]
    else:
        vocab_size = write_m2m100(folder)
        ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
        config = AutoConfig.for_model("m2m_100", vocab_size=vocab_size, **ends, **SIZES)
        forbidden = [0, 1, 3, *range(vocab_size - 108, vocab_size)]
    torch.manual_seed(4)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.update(num_beams=3, max_length=24, bad_words_ids=[[one] for one in forbidden], **ends)
    model.save_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("name", ["marian", "m2m_100"])
def test_translations_by_pieces_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    model, tokenizer = make_model_of_pieces(tmp_path / "model", name)
    folder = convert_tokenizer(tmp_path / "model", tmp_path / "cache")
    with RunningRouter(tmp_path, model=folder, make_shard=RealShard, task="translation") as router:

        def post(text: str, status: int = 200, **parameters: Any) -> Any:
            body = {"inputs": text, "parameters": parameters}
            answer = httpx.post(f"{router.url}/", json=body, timeout=60, trust_env=False)
            assert answer.status_code == status, answer.text
            return answer.json()

        found, wanted = [], []
        if name == "marian":
            for text in (">>de<< The fox and the market", ">>el<< The fox and the market", "no code: naïve  cafés"):
                found.append(post(text))
                with torch.inference_mode():
                    [ids] = model.generate(**tokenizer(text, return_tensors="pt"))
                wanted.append(str(tokenizer.decode(ids, skip_special_tokens=True)))
            assert "one pair, which its card names" in post("a", 422, src_lang="en", tgt_lang="de")["error"]
        else:
            for source, target in (("en", "de"), ("en", "fr"), ("de", "en")):
                found.append(post("The fox and the market", src_lang=source, tgt_lang=target))
                wanted.append(expected(model, tokenizer, "The fox and the market", source, target))
            assert "one of the 100 codes" in post("a", 422, src_lang="en", tgt_lang="xx")["error"]
        assert found == [[{"translation_text": text}] for text in wanted]
        assert len(set(wanted)) == 3, "the languages make no difference"
        body = {
            "inputs": "The fox",
            "parameters": {"max_new_tokens": 5, "details": True, "decoder_input_details": True},
        }
        details = httpx.post(f"{router.url}/generate", json=body, timeout=60, trust_env=False).json()
        assert details["details"]["generated_tokens"] == 5
        told = httpx.post(f"{router.url}/tokenize", json={"inputs": "The fox"}, timeout=60, trust_env=False).json()
        if name == "m2m_100":
            tokenizer.src_lang = "en"  # the language of the folder, which the last translation changed
        ids = tokenizer("The fox").input_ids
        assert [token["id"] for token in told] == ids
        assert "".join(token["text"] for token in told if token["text"] not in ("</s>", "__en__")).strip() == "The fox"
        grammar = {"type": "regex", "value": "[a-z]+"}
        refused = httpx.post(
            f"{router.url}/generate",
            json={"inputs": "The fox", "parameters": {"grammar": grammar, "max_new_tokens": 5}},
            timeout=60,
            trust_env=False,
        )
        assert refused.status_code == 422, refused.text
