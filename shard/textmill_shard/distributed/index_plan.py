"""Decides which rows and columns of each tensor a rank owns, and which modules become divided layers for that."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from textmill_shard.distributed.division_rules import (
    EMBEDDING,
    OWN_RULES,
    WHOLE_RULES,
    ModelRules,
    Role,
    Rule,
    translated,
)
from textmill_shard.distributed.index_ranges import Heads, IndexRange, Unit, even_range, runs_of
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import UnsupportedModelError

# An embedding table below this share of the model stands whole on every rank, because a divided table costs one
# all-reduce per step.
MAX_REPLICATED_EMBEDDING_SHARE = 0.05
_LINEARS = (nn.Linear, Conv1D)


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of one tensor that this rank reads: runs of indices of a dimension, one behind the other."""

    dim: int
    runs: tuple[IndexRange, ...]

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)


@dataclass(frozen=True, slots=True)
class LocalCount:
    """A number that a module's code reads, as this rank must see it. `name` may lead through the module's config."""

    module: str
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """All cuts and roles of one rank. The plan of a single rank is empty, because that rank holds the whole model."""

    cut_of_parameter: Mapping[str, Cut] = field(default_factory=dict)
    role_of_module: Mapping[str, Role] = field(default_factory=dict)
    zeroed_parameters: frozenset[str] = frozenset()  # of another rank, because the ranks add up behind them
    counts: tuple[LocalCount, ...] = ()
    sizes_of_vocabulary: tuple[int, ...] = ()  # number of token ids per rank, of the head and of the embedding


def build_index_plan(
    model: nn.Module, config: Any, parallel: TensorParallel, *, whole: Sequence[str] = ()
) -> IndexPlan:
    """Build the cuts of this rank from our own rules for the model, or from those of transformers (`model.tp_plan`).

    `whole` are paths of modules that are never divided, with all that is below them. Raises UnsupportedModelError for a
    model without rules, for heads that the ranks cannot share, and for a rule that has no divided layer here.
    """
    if parallel.world_size == 1:
        return IndexPlan()
    own = OWN_RULES.get(config.model_type)
    rules: Mapping[str, str] = {} if own is not None else dict(getattr(model, "tp_plan", None) or {})
    if own is None and not rules:
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
    builder = _Builder(model, config, parallel, heads, embedding_share=_embedding_share(model, whole))
    for name, rule in _found_rules(model, own, rules, whole, config.model_type):
        builder.add(name, rule)
    return builder.plan(own)


class _Builder:
    """Collects the cuts and roles, rule by rule."""

    def __init__(
        self, model: Any, config: Any, parallel: TensorParallel, heads: Heads, *, embedding_share: float
    ) -> None:
        self._model = model
        self._model_type = config.model_type
        self._heads = heads
        self._parallel = parallel
        self._vocabulary: int = config.get_text_config().vocab_size
        # An embedding with code of its own, such as Gemma's, which scales, stands whole.
        is_plain = type(_embedding(model)) is nn.Embedding
        self._cuts_embedding = is_plain and embedding_share > MAX_REPLICATED_EMBEDDING_SHARE
        self._cuts: dict[str, Cut] = {}
        self._roles: dict[str, Role] = {}
        self._zeroed: set[str] = set()

    def add(self, name: str, rule: Rule) -> None:
        """Note the cuts of a module or a parameter."""
        if rule.role in (Role.PARAMETER, Role.OF_FIRST_RANK):
            parameter = self._model.get_parameter(name)
            if rule.role is Role.PARAMETER:
                self._cuts[name] = Cut(rule.dim, self._runs(parameter.shape[rule.dim], rule))
            elif self._parallel.rank:
                self._zeroed.add(name)
            return
        module = self._model.get_submodule(name)
        if rule.role is Role.SUM:
            self._roles[name] = rule.role
        elif rule.role is Role.VOCABULARY_EMBEDDING and isinstance(module, nn.Embedding):
            if self._cuts_embedding and type(module) is nn.Embedding:
                self._roles[name] = rule.role
                self._cuts[f"{name}.weight"] = Cut(0, (even_range(self._vocabulary, self._parallel),))
        elif rule.role is Role.VOCABULARY_HEAD and name == "lm_head" and type(module) is nn.Linear:
            # A head that is tied to a whole embedding stays whole too, because both are one tensor.
            if self._cuts_embedding or not _is_tied(self._model, f"{name}.weight"):
                self._roles[name] = rule.role
                self._cut_outputs(name, module, (even_range(self._vocabulary, self._parallel),))
        elif rule.role is Role.COLUMN and type(module) in _LINEARS:
            self._roles[name] = rule.role
            self._cut_outputs(name, module, self._runs(_sizes(module)[1], rule))
        elif rule.role in (Role.ROW, Role.ROW_PART) and type(module) in _LINEARS:
            self._roles[name] = rule.role
            runs = self._runs(_sizes(module)[0], rule)
            self._cuts[f"{name}.weight"] = Cut(0 if isinstance(module, Conv1D) else 1, runs)
            if rule.role is Role.ROW_PART and module.bias is not None and self._parallel.rank:
                self._zeroed.add(f"{name}.bias")
        else:
            raise UnsupportedModelError(
                f"models of type {self._model_type} cannot be divided among shards yet (rule {rule.role.value} of "
                f"{name}); use --num-shard 1"
            )

    def plan(self, own: ModelRules | None) -> IndexPlan:
        world_size = self._parallel.world_size
        sizes = [len(even_range(self._vocabulary, TensorParallel(rank, world_size))) for rank in range(world_size)]
        return IndexPlan(
            cut_of_parameter=self._cuts,
            role_of_module=self._roles,
            zeroed_parameters=frozenset(self._zeroed),
            counts=() if own is None else tuple(self._counts(own)),
            sizes_of_vocabulary=tuple(sizes),
        )

    def _counts(self, own: ModelRules) -> Iterator[LocalCount]:
        for name, module in self._model.named_modules():
            for pattern, units in own.counts.items():
                if _matches(pattern, name):
                    for path, unit in units.items():
                        yield LocalCount(name, path, self._local(_read(module, path), unit))

    def _local(self, value: int, unit: Unit) -> int:
        """Return the part of a number of heads, or of indices of heads, that this rank has."""
        return sum(len(run) for run in runs_of(value, (unit,), self._heads, self._parallel))

    def _runs(self, size: int, rule: Rule) -> tuple[IndexRange, ...]:
        return runs_of(size, rule.units, self._heads, self._parallel)

    def _cut_outputs(self, name: str, module: Any, runs: tuple[IndexRange, ...]) -> None:
        self._cuts[f"{name}.weight"] = Cut(1 if isinstance(module, Conv1D) else 0, runs)
        if module.bias is not None:
            self._cuts[f"{name}.bias"] = Cut(0, runs)


def _found_rules(
    model: Any, own: ModelRules | None, rules: Mapping[str, str], whole: Sequence[str], model_type: str
) -> Iterator[tuple[str, Rule]]:
    """Return the modules and parameters that a rule is for. The embedding is divided where no rule speaks of it."""
    embedding = _embedding(model)
    parts: list[tuple[str, Any, bool]] = [(name, module, False) for name, module in model.named_modules()]
    parts += [(name, parameter, True) for name, parameter in model.named_parameters()]
    for name, part, is_parameter in parts:
        if _is_below(name, whole):
            continue
        if own is not None:
            rule = next((rule for pattern, rule in own.rules.items() if _matches_part(pattern, name, part)), None)
        else:
            word = next((word for pattern, word in rules.items() if _matches(pattern, name)), None)
            if word in WHOLE_RULES:
                continue
            rule = None if word is None else translated(word, name, is_parameter=is_parameter)
            if word is not None and rule is None:
                raise UnsupportedModelError(
                    f"models of type {model_type} cannot be divided among shards yet (rule {word} of {name}); "
                    "use --num-shard 1"
                )
        if rule is None and part is embedding and type(part) is nn.Embedding:
            rule = EMBEDDING
        if rule is not None:
            yield name, rule


def _heads_of(config: Any) -> Heads:
    text_config = config.get_text_config()
    num_heads = int(text_config.num_attention_heads)
    return Heads(num_heads=num_heads, num_kv_heads=int(getattr(text_config, "num_key_value_heads", None) or num_heads))


def _sizes(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer. GPT-2's `Conv1D` holds the weight as `[I, O]`."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def _read(module: Any, path: str) -> int:
    value = module
    for name in path.split("."):
        value = getattr(value, name)
    return int(value)


def _matches(pattern: str, name: str) -> bool:
    """Whether a rule is for a module. `*` in a rule stands for one part of the name: the number of a layer."""
    return fnmatchcase(name, pattern) and pattern.count(".") == name.count(".")


def _matches_part(pattern: str, name: str, part: Any) -> bool:
    """Whether one of our rules is for a module or parameter. `mlp[experts]` is an mlp that has experts."""
    path, _, child = pattern.partition("[")
    return _matches(path, name) and (not child or hasattr(part, child.removesuffix("]")))


def _embedding(model: Any) -> Any:
    return model.get_input_embeddings()


def _is_tied(model: Any, name: str) -> bool:
    """Whether a parameter is one tensor with another.

    The model does not show that yet, because parameters on `meta` are apart until their weights have been read.
    """
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return name in tied or name in tied.values()


def _is_below(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _embedding_share(model: nn.Module, whole: Sequence[str]) -> float:
    """Return the share of the parameters that the input embedding holds, without `whole`; tied tensors count once.

    All ranks must find the same share, and one rank alone has the tower of a model with images.
    """
    counted = [parameter.numel() for name, parameter in model.named_parameters() if not _is_below(name, whole)]
    return float(_embedding(model).weight.numel() / sum(counted))
