"""The flat rows of the zoo whose rotary tables depend on the length of the text."""

from collections.abc import Mapping
from typing import Any

from tests.zoo.entry import SMALL, ZooEntry

BORDER = 30  # prompt and output tokens; two of the four requests lie on each side
LONG_ROPE: Mapping[str, Any] = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": BORDER,
    "rope_scaling": {
        "rope_type": "longrope",
        "rope_theta": 1000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        "original_max_position_embeddings": BORDER,
    },
}
PHIMOE_ROPE = {**LONG_ROPE["rope_scaling"], "short_mscale": 1.1, "long_mscale": 1.4}


def one_table(rope: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return two changes of a config: the long table for all texts, and the short table for all texts."""
    return tuple(
        {"rope_scaling": {**rope, "short_factor": factor, "long_factor": factor}}
        for factor in (rope["long_factor"], rope["short_factor"])
    )


LONG_POSITIONS = (
    ZooEntry(
        "phi3, long context",
        {**SMALL, **LONG_ROPE},
        "longrope: requests on both sides of the border in one batch",
        model_type="phi3",
        rope_border=BORDER,
        neutral=one_table(LONG_ROPE["rope_scaling"]),
    ),
    ZooEntry(
        "phimoe, long context",
        {
            **SMALL,
            **LONG_ROPE,
            "rope_scaling": PHIMOE_ROPE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        "longrope with a scale per side",
        model_type="phimoe",
        rope_border=BORDER,
        # The model's code takes one table for all texts, and the two sides differ by their scale alone.
        neutral=tuple(
            {"rope_scaling": {**PHIMOE_ROPE, **same}} for same in ({"long_mscale": 1.1}, {"short_mscale": 1.4})
        ),
        has_experts=True,
    ),
    ZooEntry(
        "llama, dynamic positions",
        {
            **SMALL,
            "max_position_embeddings": 4,
            "rope_scaling": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 32.0},
        },
        "a rotary table stretched to the longest text",
        model_type="llama",
        longest_text=128,
        neutral=({"rope_scaling": {"rope_type": "default", "rope_theta": 1000.0}},),
    ),
)
