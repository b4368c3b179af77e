"""The names under which checkpoints store scales of what attention stores and computes."""

KEYS, VALUES, BOTH = "k_scale", "v_scale", "kv_scale"
ZERO_POINTS = ("k_zero_point", "v_zero_point")
# Of queries and of the weights of attention, which are not stored in 8 bits here.
OF_OTHERS = ("q_scale", "prob_scale")
_LEAVES = frozenset((KEYS, VALUES, BOTH, *ZERO_POINTS, *OF_OTHERS))


def is_attention_scale(name: str) -> bool:
    """Whether a tensor of a checkpoint scales what attention stores or computes, and is no weight of the model."""
    return name.rpartition(".")[2] in _LEAVES
