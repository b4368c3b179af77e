"""Finds a step that fits: where the largest step leaves no room for keys and values, a smaller one is tried."""

import logging
from dataclasses import replace

from textmill_shard.errors import NotEnoughMemory, is_of_memory
from textmill_shard.model.memory import DrawTrials, KvMemoryOptions, KvMemoryPlan, plan_kv_memory
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.system_memory import free_device_memory

log = logging.getLogger(__name__)

LEAST_STEP_TOKENS = 128


def plan_fitting_step(
    runner: ModelRunner, options: KvMemoryOptions, *, is_fixed: bool, draws: DrawTrials | None = None
) -> tuple[KvMemoryPlan, KvMemoryOptions]:
    """Return the division of the memory, and the options with the tokens of the step for which it was made.

    `is_fixed` says that the operator has set the tokens of a step, which are then kept. They are kept too where an
    encoder reads a text in one step. Several ranks try a smaller step where all of them have found that a step does not
    fit (`plan_kv_memory`). `draws` samples the rows of the step. Raises NotEnoughMemory, or the error of memory that
    ran out in the smallest step.
    """
    can_shrink = not is_fixed and not runner.facts.decoder_prompt_ids
    is_alone = runner.parallel.world_size == 1
    while True:
        try:
            return plan_kv_memory(runner, options, draws), options
        except Exception as error:
            smaller = max(LEAST_STEP_TOKENS, options.num_slots, options.max_step_tokens // 2)
            is_common = is_alone or isinstance(error, NotEnoughMemory)
            if not is_of_memory(error) or not is_common or not can_shrink or smaller >= options.max_step_tokens:
                raise
            reason = str(error)
        free_device_memory(runner.device)  # behind the exception, which holds tensors of the step
        log.warning(
            "a step of %d tokens does not fit (%s): steps of %d tokens are tried; long prompts take more steps",
            *(options.max_step_tokens, reason, smaller),
        )
        options = replace(options, max_step_tokens=smaller)
