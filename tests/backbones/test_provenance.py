"""What a pipeline folder says of its licence and its name, wherever it says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.backbones.provenance import stated_by

CARD = "---\nlicense: other\nlicense_name: house\nlicense_link: LICENSE\nbase_model: some/base\ntags: [a, b]\n---\n"
STATED = {"license": "other", "license_name": "house", "license_link": "LICENSE"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"README.md": CARD}, STATED | {"base_model": "some/base", "tags": ["a", "b"]}),
        ({"README.md": "# No front matter\nlicense: mit\n"}, {}),
        ({"README.md": "---\nlicense: [\n---\n"}, {}),
        ({"README.md": "---\r\nlicense: mit\r\n---\r\n"}, {"license": "mit"}),
        ({"README.md": "---\ntags: lonely\nlicense: {a: b}\n---\n"}, {"tags": ["lonely"]}),
        ({"LICENSE": "                 Apache License\n     Version 2.0, January 2004\n"}, {"license": "apache-2.0"}),
        (
            {"LICENSE.txt": "You may look at it."},
            {"license": "other", "license_name": "license.txt", "license_link": "LICENSE.txt"},
        ),
        ({"README.md": CARD, "LICENSE": "MIT License"}, STATED | {"base_model": "some/base", "tags": ["a", "b"]}),
        ({"model_index.json": json.dumps({"_name_or_path": "Owner/Name-2.1"})}, {"base_model": "Owner/Name-2.1"}),
        ({"model_index.json": json.dumps({"_name_or_path": "/models/x"})}, {}),
        ({"transformer/config.json": json.dumps({"_name_or_path": "Owner/Name"})}, {"base_model": "Owner/Name"}),
    ],
)
def test_a_folder_is_taken_at_its_word(files: dict[str, str], expected: dict[str, object], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, newline="")
    assert stated_by(tmp_path) == expected


def test_the_hubs_cache_names_its_folders(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--Owner--Name-2.1" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    assert stated_by(folder) == {"base_model": "Owner/Name-2.1"}
