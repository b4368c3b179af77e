"""Decides which rows and columns of each tensor a rank owns, and which modules become divided layers for that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import UnsupportedModelError

# An embedding table below this share of the model stands whole on every rank, because a divided table costs one
# all-reduce per step.
MAX_REPLICATED_EMBEDDING_SHARE = 0.05

# Rules of transformers' plan under which the module stands whole on every rank.
_WHOLE_RULES = frozenset({"replicate", "replicated_with_grad_allreduce"})
_QUERY_LAYERS = frozenset({"q_proj", "o_proj"})
_KEY_VALUE_LAYERS = frozenset({"k_proj", "v_proj"})


class Role(Enum):
    """The kind of divided layer that a module becomes."""

    COLUMN = "column"  # a linear layer whose outputs are divided
    ROW = "row"  # a linear layer whose inputs are divided; the ranks add their outputs up
    VOCABULARY_HEAD = "vocabulary head"  # divided by token ids; the ranks lay their logits side by side
    VOCABULARY_EMBEDDING = "vocabulary embedding"  # divided by token ids; the ranks add their rows up


@dataclass(frozen=True, slots=True)
class IndexRange:
    """Indices start .. stop - 1 of a dimension."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of one tensor that this rank reads."""

    dim: int
    indices: IndexRange


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """All cuts and roles of one rank. The plan of a single rank is empty, because that rank holds the whole model."""

    cut_of_parameter: Mapping[str, Cut] = field(default_factory=dict)
    role_of_module: Mapping[str, Role] = field(default_factory=dict)
    sizes_of_vocabulary: tuple[int, ...] = ()  # number of token ids per rank, of the head and of the embedding


@dataclass(frozen=True, slots=True)
class Heads:
    """The numbers of attention heads of the whole model."""

    num_heads: int
    num_kv_heads: int

    def fits(self, world_size: int) -> bool:
        divides_kv = self.num_kv_heads % world_size == 0 or world_size % self.num_kv_heads == 0
        return self.num_heads % world_size == 0 and divides_kv

    def kv_range(self, parallel: TensorParallel) -> IndexRange:
        """Return the key/value heads of this rank. With fewer such heads than ranks, some ranks hold the same head."""
        if self.num_kv_heads >= parallel.world_size:
            return even_range(self.num_kv_heads, parallel)
        head = parallel.rank * self.num_kv_heads // parallel.world_size
        return IndexRange(head, head + 1)


def even_range(size: int, parallel: TensorParallel) -> IndexRange:
    """Return the part of `size` indices that belongs to this rank; the parts differ by at most one index."""
    return IndexRange(size * parallel.rank // parallel.world_size, size * (parallel.rank + 1) // parallel.world_size)


def build_index_plan(
    model: nn.Module, config: Any, parallel: TensorParallel, *, whole: Sequence[str] = ()
) -> IndexPlan:
    """Build the cuts of this rank from the plan that transformers has for the model (`model.tp_plan`).

    `whole` are paths of modules that are never divided, with all that is below them. Raises UnsupportedModelError for a
    model without such a plan, for heads that the ranks cannot share, and for a rule that has no divided layer here.
    """
    if parallel.world_size == 1:
        return IndexPlan()
    rules: dict[str, str] = dict(getattr(model, "tp_plan", None) or {})
    if not rules:
        raise UnsupportedModelError(
            f"models of type {config.model_type} cannot be divided among {parallel.world_size} shards; "
            "use --num-shard 1"
        )
    heads = _heads_of(config)
    if not heads.fits(parallel.world_size):
        working = [str(size) for size in range(1, heads.num_heads + 1) if heads.fits(size)]
        raise UnsupportedModelError(
            f"{heads.num_heads} attention heads with {heads.num_kv_heads} key/value heads cannot be divided among "
            f"{parallel.world_size} shards; --num-shard can be {', '.join(working)}"
        )

    cuts: dict[str, Cut] = {}
    roles: dict[str, Role] = {}
    vocabulary = config.get_text_config().vocab_size
    cuts_embedding = _embedding_share(model, whole) > MAX_REPLICATED_EMBEDDING_SHARE
    for name, module in model.named_modules():
        if _is_below(name, whole):
            continue
        rule = next((rule for pattern, rule in rules.items() if _matches(pattern, name)), None)
        if rule is None or rule in _WHOLE_RULES:
            continue
        if rule == "embedding_rowwise" and type(module) is nn.Embedding:
            if cuts_embedding:
                roles[name] = Role.VOCABULARY_EMBEDDING
                cuts[f"{name}.weight"] = Cut(0, even_range(vocabulary, parallel))
        elif rule == "colwise_gather_output" and name == "lm_head" and type(module) is nn.Linear:
            # A head that is tied to a whole embedding stays whole too, because both are one tensor.
            if cuts_embedding or module.weight is not _embedding_weight(model):
                roles[name] = Role.VOCABULARY_HEAD
                _cut_outputs(cuts, name, module, even_range(vocabulary, parallel))
        elif rule == "colwise" and type(module) is nn.Linear:
            roles[name] = Role.COLUMN
            _cut_outputs(cuts, name, module, _unit_range(name, module.out_features, heads, parallel))
        elif rule == "rowwise" and type(module) is nn.Linear:
            roles[name] = Role.ROW
            cuts[f"{name}.weight"] = Cut(1, _unit_range(name, module.in_features, heads, parallel))
        else:
            raise UnsupportedModelError(
                f"models of type {config.model_type} cannot be divided among shards yet (rule {rule} of {name}); "
                "use --num-shard 1"
            )
    sizes = tuple(len(even_range(vocabulary, TensorParallel(rank, parallel.world_size))) for rank in _ranks(parallel))
    return IndexPlan(cut_of_parameter=cuts, role_of_module=roles, sizes_of_vocabulary=sizes)


def _ranks(parallel: TensorParallel) -> range:
    return range(parallel.world_size)


def _heads_of(config: Any) -> Heads:
    text_config = config.get_text_config()
    num_heads = int(text_config.num_attention_heads)
    return Heads(num_heads=num_heads, num_kv_heads=int(getattr(text_config, "num_key_value_heads", None) or num_heads))


def _unit_range(name: str, size: int, heads: Heads, parallel: TensorParallel) -> IndexRange:
    """Return the part of this rank. No attention head is divided between two ranks."""
    last = name.rpartition(".")[2]
    if last in _KEY_VALUE_LAYERS:
        width, indices = size // heads.num_kv_heads, heads.kv_range(parallel)
    elif last in _QUERY_LAYERS:
        width, indices = size // heads.num_heads, even_range(heads.num_heads, parallel)
    else:
        return even_range(size, parallel)
    return IndexRange(indices.start * width, indices.stop * width)


def _cut_outputs(cuts: dict[str, Cut], name: str, module: nn.Linear, indices: IndexRange) -> None:
    cuts[f"{name}.weight"] = Cut(0, indices)
    if module.bias is not None:
        cuts[f"{name}.bias"] = Cut(0, indices)


def _matches(pattern: str, name: str) -> bool:
    """Whether a rule is for a module. `*` in a rule stands for one part of the name: the number of a layer."""
    return fnmatchcase(name, pattern) and pattern.count(".") == name.count(".")


def _embedding_weight(model: nn.Module) -> Any:
    return model.get_input_embeddings().weight  # type: ignore[operator]


def _is_below(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _embedding_share(model: nn.Module, whole: Sequence[str]) -> float:
    """Return the share of the parameters that the input embedding holds, without `whole`; tied tensors count once.

    All ranks must find the same share, and one rank alone has the tower of a model with images.
    """
    counted = [parameter.numel() for name, parameter in model.named_parameters() if not _is_below(name, whole)]
    return float(_embedding_weight(model).numel() / sum(counted))
