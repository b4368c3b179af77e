"""Trains the tower and writes the model into the cache: `python -m bench.demo_vision`."""

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from textmill_launcher.model_files import find_demo_file
from textmill_shard.loader.gguf_cache import convert_gguf
from transformers import AutoTokenizer, CLIPImageProcessorPil

from bench.demo_vision.folder import write_folder
from bench.demo_vision.pictures import COLOURS, SHAPES
from bench.demo_vision.tower import FIRST_WORDS, WANTED_SHARE, Words, make_tower, train

CACHE = Path.home() / ".cache" / "textmill"
FOLDER = CACHE / "demo-vision"


def make_processor() -> CLIPImageProcessorPil:
    size = {"height": 32, "width": 32}
    return CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="train anew, where the cache has the model already")
    again: bool = parser.parse_args().again
    if FOLDER.is_dir() and not again:
        print(f"{FOLDER} is there already (--again trains anew)\n{_how_to_serve()}")
        return
    began_s = time.monotonic()
    demo = convert_gguf(find_demo_file(), CACHE / "converted")
    torch.manual_seed(0)
    processor = make_processor()
    embeddings_VD = load_file(demo / "model.safetensors")["model.embed_tokens.weight"].float()
    tokenizer = AutoTokenizer.from_pretrained(demo)

    def embed(words: list[str]) -> torch.Tensor:
        ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
        assert all(len(of_word) == 1 for of_word in ids), words
        found: torch.Tensor = embeddings_VD[[of_word[0] for of_word in ids]]
        return found

    words = Words(
        embed(list(FIRST_WORDS)), embed([f" {name}" for name in COLOURS]), embed([f" {name}" for name in SHAPES])
    )
    model = make_tower(embeddings_VD.shape[1])
    share = train(
        model,
        words,
        lambda picture: torch.from_numpy(processor(images=[picture], return_tensors="np")["pixel_values"][0]),
        lambda line: print(line, flush=True),
    )
    if share < WANTED_SHARE:
        sys.exit(f"only {share:.1%} of the pictures are named right, {WANTED_SHARE:.0%} are wanted: try --again")
    tower = {
        name: tensor for name, tensor in model.state_dict().items() if name.startswith(("model.vision", "model.multi"))
    }
    write_folder(FOLDER, demo, tower, processor)
    num_bytes = 2 * sum(tensor.numel() for tensor in tower.values())
    print(f"{FOLDER} was made in {time.monotonic() - began_s:.0f} s; tower and projector take {num_bytes} bytes")
    print(_how_to_serve())


def _how_to_serve() -> str:
    return f"serve it: launcher --model-id {FOLDER}"


if __name__ == "__main__":
    main()
