"""A real shard in this process: a model of a folder, the step loop and the gRPC side, behind a Unix socket."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from textmill_shard.engine.engine import Engine
from textmill_shard.engine.rank_channel import SoloChannel
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.loader.model_loader import LoadOptions, load_model
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.server.server import LoadedShard, ShardService, start_server
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import ShardFacts

BLOCK_SIZE = 16
NUM_BLOCKS = 128
NUM_SLOTS = 8
WAIT_S = 10.0


class RealShard:
    """A context manager; fp32, in one thread of torch."""

    def __init__(self, uds_path: Path, model_dir: Path) -> None:
        self._uds_path = uds_path
        torch.set_num_threads(1)
        options = LoadOptions(model_dir=model_dir, dtype="float32", block_size=BLOCK_SIZE)
        runner = load_model(options, lambda phase, part: None)
        runner.allocate_kv(NUM_BLOCKS)
        self._facts = ShardFacts(
            model_id="real",
            model_sha="",
            model_type=runner.facts.model_type,
            dtype="float32",
            device="cpu",
            rank=0,
            world_size=1,
            block_size=BLOCK_SIZE,
            num_blocks=NUM_BLOCKS,
            num_slots=NUM_SLOTS,
            max_step_tokens=256,
            vocab_size=runner.facts.vocab_size,
            eos_token_ids=runner.facts.eos_token_ids,
            max_model_tokens=runner.facts.max_model_tokens,
            features=("prefix_cache", "prompt_logprobs"),
            tokenizer_digest=runner.facts.tokenizer_digest,
        )
        finish_rules = FinishRules(self._facts.eos_token_ids)
        grammars = GrammarSlots(None, finish_rules)
        status = ShardStatus()
        self._service = ShardService(status)
        self._engine = Engine(
            executor=StepExecutor(runner=runner, facts=self._facts),
            row_sampler=RowSampler(sampler=Sampler(), finish_rules=finish_rules, grammars=grammars),
            grammars=grammars,
            finish_rules=finish_rules,
            channel=SoloChannel(),
            status=status,
            lease_s=60.0,
        )
        self._thread = threading.Thread(target=self._engine.run)

    def __enter__(self) -> Self:
        self._server = start_server(self._service, self._uds_path)
        self._thread.start()
        self._service.set_loaded(LoadedShard(facts=self._facts, engine=self._engine))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.stop()
        self._thread.join(WAIT_S)
        self._server.stop(0).wait(WAIT_S)
        self._uds_path.unlink(missing_ok=True)
        assert not self._thread.is_alive()
