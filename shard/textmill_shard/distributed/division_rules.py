"""What becomes of a module or a parameter when ranks share a model: our own table, and the rules of transformers.

transformers has rules for most models (`tp_plan`). It has none for some, and leaves the attention of others whole on
every rank, so that the table here says what is divided there. A model that is missing is one more entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from textmill_shard.distributed.index_ranges import Unit

Q, KV, INDEX, PAIR = Unit.QUERY, Unit.KEY_VALUE, Unit.INDEX, Unit.PAIR


class Role(Enum):
    """What a module or a parameter becomes."""

    COLUMN = "column"  # a linear layer whose outputs are divided
    ROW = "row"  # a linear layer whose inputs are divided; the ranks add their outputs up
    ROW_PART = "row part"  # a linear layer whose inputs are divided; a module above adds the outputs up
    VOCABULARY_HEAD = "vocabulary head"  # divided by token ids; the ranks lay their logits side by side
    VOCABULARY_EMBEDDING = "vocabulary embedding"  # divided by token ids; the ranks add their rows up
    SUM = "sum"  # a module whose outputs are parts that the ranks add up
    PARAMETER = "parameter"  # a parameter of a module that stays
    OF_FIRST_RANK = "of the first rank"  # a parameter that is zero on all other ranks, because outputs are added up


@dataclass(frozen=True, slots=True)
class Rule:
    """The role of a module or a parameter, and the parts of the dimension that is divided."""

    role: Role
    units: tuple[Unit, ...] = (INDEX,)
    dim: int = 0  # of a parameter; the dimension of a layer follows from its role


@dataclass(frozen=True, slots=True)
class ModelRules:
    """The rules of one model type. `*` in a path stands for the number of a layer."""

    rules: Mapping[str, Rule]
    # Numbers that the code of a module reads and that count heads: by path and name, the unit that is counted. A name
    # with a dot is a number of the module's config.
    counts: Mapping[str, Mapping[str, Unit]] = field(default_factory=dict)


def column(*units: Unit) -> Rule:
    return Rule(Role.COLUMN, units or (INDEX,))


def row(*units: Unit) -> Rule:
    return Rule(Role.ROW, units or (INDEX,))


EMBEDDING, HEAD = Rule(Role.VOCABULARY_EMBEDDING), Rule(Role.VOCABULARY_HEAD)

_ATTENTION = {
    "self_attn.q_proj": column(Q),
    "self_attn.k_proj": column(KV),
    "self_attn.v_proj": column(KV),
    "self_attn.o_proj": row(Q),
}


def _below(path: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    return {f"{path}.{name}": rule for name, rule in rules.items()}


OWN_RULES: Mapping[str, ModelRules] = {
    "gpt2": ModelRules(
        {
            "lm_head": HEAD,
            **_below(
                "transformer.h.*",
                {
                    "attn.c_attn": column(Q, Q, Q),
                    "attn.c_proj": row(Q),
                    "mlp.c_fc": column(),
                    "mlp.c_proj": row(),
                },
            ),
        },
        counts={"transformer.h.*.attn": {"num_heads": Q, "split_size": Q}},
    ),
    "opt": ModelRules(
        {
            "lm_head": HEAD,
            **_below(
                "model.decoder.layers.*",
                {
                    "self_attn.q_proj": column(Q),
                    "self_attn.k_proj": column(Q),
                    "self_attn.v_proj": column(Q),
                    "self_attn.out_proj": row(Q),
                    "fc1": column(),
                    "fc2": row(),
                },
            ),
        },
        counts={"model.decoder.layers.*.self_attn": {"num_heads": Q}},
    ),
    "gpt_neox": ModelRules(
        {
            "lm_head": HEAD,
            **_below(
                "gpt_neox.layers.*",
                {
                    "attention.query_key_value": column(Q),  # query, key and value of a head stand side by side
                    "attention.dense": row(Q),
                    "mlp.dense_h_to_4h": column(),
                    "mlp.dense_4h_to_h": row(),
                },
            ),
        }
    ),
    "phi3": ModelRules(
        {
            "lm_head": HEAD,
            **_below(
                "model.layers.*",
                {
                    "self_attn.qkv_proj": column(Q, KV, KV),
                    "self_attn.o_proj": row(Q),
                    "mlp.gate_up_proj": column(INDEX, INDEX),
                    "mlp.down_proj": row(),
                },
            ),
        },
        counts={"model.layers.*.self_attn": {"num_key_value_heads": KV, "config.num_attention_heads": Q}},
    ),
    "gpt_oss": ModelRules(
        {
            "lm_head": HEAD,
            **_below(
                "model.layers.*",
                {
                    **_ATTENTION,
                    "self_attn.sinks": Rule(Role.PARAMETER, (Q,)),
                    "mlp.experts": Rule(Role.SUM),
                    # Gate and up of an inner index stand side by side.
                    "mlp.experts.gate_up_proj": Rule(Role.PARAMETER, (PAIR,), dim=2),
                    "mlp.experts.gate_up_proj_bias": Rule(Role.PARAMETER, (PAIR,), dim=1),
                    "mlp.experts.down_proj": Rule(Role.PARAMETER, (INDEX,), dim=1),
                    "mlp.experts.down_proj_bias": Rule(Role.OF_FIRST_RANK),
                },
            ),
        }
    ),
    "qwen3_vl": ModelRules(
        {
            "lm_head": HEAD,
            **_below(
                "model.language_model.layers.*",
                {
                    **_ATTENTION,
                    "mlp.gate_proj": column(),
                    "mlp.up_proj": column(),
                    "mlp.down_proj": row(),
                },
            ),
        }
    ),
    "deepseek_v3": ModelRules(
        {
            "lm_head": HEAD,
            **_below(
                "model.layers.*",
                {
                    "self_attn.q_proj": column(Q),
                    "self_attn.q_b_proj": column(Q),
                    "self_attn.kv_b_proj": column(Q),  # the heads' keys and values come of one latent vector
                    "self_attn.o_proj": row(Q),
                    "mlp.gate_proj": column(),
                    "mlp.up_proj": column(),
                    "mlp.down_proj": row(),
                    "mlp.experts.gate_up_proj": Rule(Role.PARAMETER, (INDEX, INDEX), dim=1),
                    "mlp.experts.down_proj": Rule(Role.PARAMETER, (INDEX,), dim=2),
                    "mlp.shared_experts.gate_proj": column(),
                    "mlp.shared_experts.up_proj": column(),
                    # Experts and shared experts are added up once, behind both.
                    "mlp.shared_experts.down_proj": Rule(Role.ROW_PART),
                    "mlp[experts]": Rule(Role.SUM),
                },
            ),
        }
    ),
}

# Rules of transformers' plan under which the module stands whole on every rank.
WHOLE_RULES = frozenset({"replicate", "replicated_with_grad_allreduce"})
_LAYER_UNITS = {"q_proj": Q, "o_proj": Q, "k_proj": KV, "v_proj": KV}
_OF_LAYERS = {
    "embedding_rowwise": lambda unit: EMBEDDING,
    "colwise_gather_output": lambda unit: HEAD,
    "colwise": lambda unit: column(unit),
    "rowwise": lambda unit: row(unit),
    "moe_tp_experts": lambda unit: Rule(Role.SUM),
}
# Of parameters [experts, outputs, inputs]: the gate and the up part of each inner width stand behind one another.
_OF_PARAMETERS = {
    "packed_colwise": Rule(Role.PARAMETER, (INDEX, INDEX), dim=1),
    "rowwise": Rule(Role.PARAMETER, (INDEX,), dim=2),
}


def translated(rule: str, path: str, *, is_parameter: bool) -> Rule | None:
    """Return what a rule of transformers' plan means for a module or a parameter. None: no layer here stands for it."""
    if is_parameter:
        return _OF_PARAMETERS.get(rule)
    made = _OF_LAYERS.get(rule)
    return None if made is None else made(_LAYER_UNITS.get(path.rpartition(".")[2], INDEX))
