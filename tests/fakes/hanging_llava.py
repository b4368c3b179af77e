"""A tiny Llava whose own code hangs on blue pictures while a file is there, with `--trust-remote-code`."""

import json
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from tests.fakes.tiny_llava import write_tiny_llava

_CODE = """
import time
from pathlib import Path

from transformers import LlavaForConditionalGeneration

ORDER = Path(@ORDER@)


class HangingLlava(LlavaForConditionalGeneration):
    def __init__(self, config):
        super().__init__(config)
        encode = self.model.get_image_features

        def encode_or_hang(pixel_values, **kwargs):
            while ORDER.exists() and float(pixel_values[0, 2].min() - pixel_values[0, 0].max()) > 3:
                time.sleep(0.1)
            return encode(pixel_values, **kwargs)

        self.model.get_image_features = encode_or_hang
"""


def write_hanging_llava(folder: Path) -> Path:
    """Write the model and return the folder. Nothing hangs before `hang_order` is there."""
    write_tiny_llava(folder)
    # transformers renames the tensors of its own classes alone, so the file gets the names of today.
    state = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "hanging.py").write_text(_CODE.replace("@ORDER@", repr(str(hang_order(folder)))))
    config = json.loads((folder / "config.json").read_text())
    own_code = {"auto_map": {"AutoModelForImageTextToText": "hanging.HangingLlava"}}
    (folder / "config.json").write_text(json.dumps({**config, **own_code}))
    return folder


def hang_order(folder: Path) -> Path:
    """Return the file that lets the tower hang on blue pictures while the file is there."""
    return folder / "hang"
