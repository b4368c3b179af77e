"""Files of a page get names with digests, also inside the modules that import them."""

import gzip
import hashlib
import re
from pathlib import Path

import pytest
from textmill_router.http.assets import load_assets


def written(folder: Path, **texts: str) -> dict[str, Path]:
    """Write the texts as modules, with `__` for a slash, and return the files by their paths."""
    files = {}
    for name, text in texts.items():
        path = name.replace("__", "/") + ".js"
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        files[path] = file
    return files


def test_name_has_the_digest_of_the_served_bytes(tmp_path: Path) -> None:
    assets = load_assets(written(tmp_path, one="export const a = 1;\n"))
    [asset] = assets.by_name.values()
    assert asset.name == f"one.{hashlib.sha256(asset.body).hexdigest()[:8]}.js"
    assert assets.names == {"one.js": asset.name}


def test_imports_name_the_digests_in_every_form(tmp_path: Path) -> None:
    text = (
        'import { a } from "./leaf.js";\nimport {\n  b,\n} from "./leaf.js";\nimport "./deep/side.js";\n'
        'export { a } from "./leaf.js";\nconst text = "./leaf.js";\nimport x from "elsewhere";\n'
    )
    assets = load_assets(written(tmp_path, main=text, leaf="export const a = 1, b = 2;\n", deep__side="1;\n"))
    leaf, side = assets.names["leaf.js"], assets.names["deep/side.js"]
    served = assets.by_name[assets.names["main.js"]].body.decode()
    assert served == text.replace('from "./leaf.js"', f'from "./{leaf}"').replace("./deep/side.js", f"./{side}")


def test_digest_changes_with_a_module_behind_the_imports(tmp_path: Path) -> None:
    main = 'import { a } from "./middle.js";\n'
    middle = 'export { a } from "./leaf.js";\n'
    before = load_assets(written(tmp_path, main=main, middle=middle, leaf="export const a = 1;\n"))
    after = load_assets(written(tmp_path, main=main, middle=middle, leaf="export const a = 2;\n"))
    assert set(before.names.values()) & set(after.names.values()) == set()


def test_circle_of_imports_is_refused_with_its_modules(tmp_path: Path) -> None:
    files = written(tmp_path, one='import "./two.js";\n', two='import "./one.js";\n')
    with pytest.raises(ValueError, match=re.escape("one.js -> two.js -> one.js")):
        load_assets(files)


def test_import_of_a_missing_file_is_refused_with_both_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one\.js imports gone\.js"):
        load_assets(written(tmp_path, one='import "./gone.js";\n'))


def test_compressed_body_is_there_only_where_it_is_smaller(tmp_path: Path) -> None:
    assets = load_assets(written(tmp_path, long="// x\n" * 100, short="1"))
    long, short = (assets.by_name[assets.names[name]] for name in ("long.js", "short.js"))
    assert long.compressed is not None
    assert gzip.decompress(long.compressed) == long.body
    assert short.compressed is None
