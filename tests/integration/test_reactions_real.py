"""Real classifiers of chemical reactions over HTTP: 50 kinds of reactions by BERT, and masked atoms by ALBERT.

The packages rxnfp and rxnmapper (MIT) have the weights and vocabularies. Their reactions are SMILES, whose tokens a
regular expression finds, as Schwaller et al. describe in "Molecular Transformer" (2019).
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AlbertConfig, AlbertForMaskedLM, BertConfig, BertForSequenceClassification

from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.running_router import RunningRouter

ATOMS = r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9]"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Two reactions of each kind: an amine becomes an amide, two rings are coupled (Suzuki), a nitro group is reduced, and
# a protecting group (Boc) is taken off.
PAIRS = [
    ("CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1", "O=C(Cl)c1ccccc1.CCN>>CCNC(=O)c1ccccc1"),
    ("Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1", "Brc1ccncc1.OB(O)c1ccc(C)cc1>>Cc1ccc(-c2ccncc2)cc1"),
    ("O=[N+]([O-])c1ccccc1>>Nc1ccccc1", "Cc1ccc([N+](=O)[O-])cc1>>Cc1ccc(N)cc1"),
    ("CC(C)(C)OC(=O)NCc1ccccc1>>NCc1ccccc1", "CC(C)(C)OC(=O)N1CCCCC1>>C1CCNCC1"),
]
# A product with a masked atom, and the atom that the starting materials leave for the place.
MASKED = [
    ("CC(=O)Cl.NCc1ccccc1>>CC(=O)[MASK]Cc1ccccc1", "N"),
    ("Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccc[MASK]c2)cc1", "c"),
    ("CCO.CC(=O)Cl>>CCOC(=[MASK])C", "O"),
    ("Brc1ccccc1.OB(O)c1ccc(F)cc1>>[MASK]c1ccc(-c2ccccc2)cc1", "F"),
]


def weights_of(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)  # the code is not imported, because it needs further packages
    assert spec is not None, f"{package} is missing: make installs it"
    [place] = spec.submodule_search_locations or [""]
    return Path(place) / "models" / "transformers" / name


def write_folder(folder: Path, weights: Path, config: dict[str, Any]) -> Tokenizer:
    """Write a model folder with a tokenizer.json, and the stored weights as they are. Return the tokenizer."""
    folder.mkdir()
    ids = {word: id_ for id_, word in enumerate((weights / "vocab.txt").read_text().splitlines())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(ATOMS), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, ids[word]) for word in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(zip(names, SPECIAL, strict=True))}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").symlink_to(weights / "pytorch_model.bin")
    return tokenizer


def serving(place: Path, model: Path, task: str) -> RunningRouter:
    return RunningRouter(
        place,
        model=model,
        make_shard=lambda socket, path: RealRowShard(socket, path, task, "--allow-pickle"),
        task=task,
    )


def loaded(model: Any, weights: Path) -> Any:
    stored = torch.load(weights / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model.load_state_dict(stored, strict=False)
    return model.eval()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Tokenizer, Any]]:
    weights, place = weights_of("rxnfp", "bert_ft_10k_25s"), tmp_path_factory.mktemp("kinds")
    config = json.loads((weights / "config.json").read_text())
    # The file has two labels beside a number of 50.
    labels = {str(id_): f"kind {id_}" for id_ in range(config.pop("num_labels"))}
    config |= {"id2label": labels, "label2id": {label: int(id_) for id_, label in labels.items()}}
    tokenizer = write_folder(place / "model", weights, config)
    model = loaded(BertForSequenceClassification(BertConfig(**config)), weights)
    with (
        serving(place, place / "model", "text-classification") as router,
        httpx.Client(base_url=router.url, timeout=60, trust_env=False) as client,
    ):
        yield client, tokenizer, model


@pytest.fixture(scope="module")
def atoms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Tokenizer, Any]]:
    weights, place = weights_of("rxnmapper", "albert_heads_8_uspto_all_1310k"), tmp_path_factory.mktemp("atoms")
    config = json.loads((weights / "config.json").read_text())
    tokenizer = write_folder(place / "model", weights, config)
    model = loaded(AlbertForMaskedLM(AlbertConfig(**config)), weights)
    with (
        serving(place, place / "model", "fill-mask") as router,
        httpx.Client(base_url=router.url, timeout=60, trust_env=False) as client,
    ):
        yield client, tokenizer, model


def test_reactions_of_one_kind_get_one_label(kinds: tuple[httpx.Client, Tokenizer, Any]) -> None:
    client, tokenizer, model = kinds
    reactions = [reaction for pair in PAIRS for reaction in pair]
    answers = client.post("/", json={"inputs": reactions}).json()
    labels = [answer[0]["label"] for answer in answers]
    assert all(answer[0]["score"] > 0.98 for answer in answers)
    assert labels[::2] == labels[1::2]
    assert len(set(labels)) == len(PAIRS)
    for reaction, answer in zip(reactions, answers, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([tokenizer.encode(reaction).ids])).logits.softmax(-1)[0]
        found = {entry["label"]: entry["score"] for entry in answer}
        assert len(found) == 50
        assert [found[f"kind {id_}"] for id_ in range(50)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_masked_atoms_are_those_of_the_starting_materials(atoms: tuple[httpx.Client, Tokenizer, Any]) -> None:
    client, tokenizer, model = atoms
    for reaction, atom in MASKED:
        answer = client.post("/", json={"inputs": reaction, "parameters": {"top_k": 3}}).json()
        assert answer[0]["token_str"] == atom
        encoded = tokenizer.encode(reaction)
        with torch.no_grad():
            logits = model(torch.tensor([encoded.ids])).logits[0, encoded.tokens.index("[MASK]")]
        best = logits.softmax(-1).topk(3)
        assert [entry["token"] for entry in answer] == best.indices.tolist()
        assert [entry["score"] for entry in answer] == pytest.approx(best.values.tolist(), abs=1e-5)
