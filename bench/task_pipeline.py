"""transformers' pipeline and bare forward pass of a model of vectors, in the process of the bench."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, pipeline


class Pipeline:
    """The feature-extraction pipeline in fp32, which gets one text after the other."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._pipe: Any = pipeline("feature-extraction", model=str(folder), device="cpu", dtype=torch.float32)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def run(self, texts: Sequence[str], seconds: float) -> int:
        """Compute texts for a time, with the mean over the tokens of each, and return how many there were."""
        began_s, count = time.perf_counter(), 0
        while time.perf_counter() - began_s < seconds:
            states = self._pipe(texts[count % len(texts)], return_tensors=True, truncation=True)
            states[0].mean(dim=0)
            count += 1
        return count

    def bare_s(self, texts: Sequence[str]) -> float:
        """Return the median seconds of a forward pass of one text whose ids are known."""
        inputs = [self._tokenizer(text, return_tensors="pt") for text in texts]
        times_s = []
        with torch.inference_mode():
            for one in [*inputs[:20], *inputs]:
                began_s = time.perf_counter()
                self._model(**one)
                times_s.append(time.perf_counter() - began_s)
        return statistics.median(times_s[20:])
