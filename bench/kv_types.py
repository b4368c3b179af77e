"""Measures what keys and values of 8 bits change in a model's answers to real text, as a Markdown table.

The model runs in float32 on a CPU over a text of English prose, once with keys and values in float32 and once with each
type of `--kv-cache-dtype`. Each row compares the scores of all positions behind the first `--skip`.
"""

# T tokens of the text, V vocabulary

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.kv_scales import KV_TYPES
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from tokenizers import Tokenizer

BLOCK_SIZE = 16
CHUNK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the scores of one run are from those of another, over all positions."""

    mean: float  # root of the mean square of the differences, relative to that of the scores' distances from their mean
    divergence: float  # mean Kullback-Leibler divergence of the distributions over the vocabulary, in nats
    same_best: float  # share of positions with the same likeliest token
    perplexity: float  # of the text


def scores_of(runner: ModelRunner, ids_T: torch.Tensor) -> torch.Tensor:
    """Return float32 `[T, V]` of a text that is computed in chunks."""
    num_blocks = -(-len(ids_T) // BLOCK_SIZE)
    runner.allocate_kv(num_blocks)
    parts = []
    for start in range(0, len(ids_T), CHUNK_TOKENS):
        chunk = ids_T[start : start + CHUNK_TOKENS]
        row = SyntheticRow(ids_n=chunk, blocks=range(num_blocks), start=start, num_logits=len(chunk))
        parts.append(runner.forward(synthetic_batch([row], block_size=BLOCK_SIZE)).logits_NV)
    return torch.cat(parts)


def compare(found_TV: torch.Tensor, expected_TV: torch.Tensor, next_T: torch.Tensor) -> Difference:
    """Compare scores; `next_T` are the tokens that follow each position."""
    log_found_TV, log_expected_TV = found_TV.log_softmax(dim=-1), expected_TV.log_softmax(dim=-1)
    spread = expected_TV - expected_TV.mean(dim=-1, keepdim=True)
    divergence_T = (log_expected_TV.exp() * (log_expected_TV - log_found_TV)).sum(dim=-1)
    return Difference(
        mean=float((found_TV - expected_TV).square().mean().sqrt() / spread.square().mean().sqrt()),
        divergence=float(divergence_T.mean()),
        same_best=float((found_TV.argmax(dim=-1) == expected_TV.argmax(dim=-1)).float().mean()),
        perplexity=float(log_found_TV.gather(1, next_T.unsqueeze(1)).mean().neg().exp()),
    )


def main() -> None:
    """Print one row per type."""
    parser = argparse.ArgumentParser(prog="python -m bench.kv_types", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with the weights")
    parser.add_argument("--text", type=Path, default=Path("docs/reliability.md"), help="English prose")
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--skip", type=int, default=32)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    ids_T = torch.tensor(tokenizer.encode(arguments.text.read_text()).ids[: arguments.tokens])
    scores: dict[str, torch.Tensor] = {}
    for kv_type in ("auto", *KV_TYPES):
        options = LoadOptions(model_dir=arguments.model, dtype="float32", kv_cache_dtype=kv_type)
        runner = load_model(options, lambda phase, share: None)
        scores[kv_type] = scores_of(runner, ids_T)[arguments.skip : -1]
    next_T = ids_T[arguments.skip + 1 :]
    print(f"{len(next_T)} positions of {arguments.text}")
    print("| keys and values | mean difference of a score | divergence | same likeliest token | perplexity |")
    print("|---|---|---|---|---|")
    for kv_type, found_TV in scores.items():
        found = compare(found_TV, scores["auto"], next_T)
        name = "float32" if kv_type == "auto" else kv_type
        print(
            f"| {name} | {found.mean:.2%} | {found.divergence:.2g} | {found.same_best:.1%} | {found.perplexity:.3f} |"
        )


if __name__ == "__main__":
    main()
