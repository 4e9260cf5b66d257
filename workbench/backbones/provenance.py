"""What a pipeline folder says of its licence and origin: its card's front matter, its licence file, its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from workbench.backbones.folders import INDEX_FILE
from workbench.common.errors import UserError
from workbench.common.outside import read_bytes, read_json

CARD = "README.md"
COPIED_FIELDS = ("license", "license_name", "license_link", "base_model", "pipeline_tag", "tags")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")
_LICENCE_TEXTS = {"apache license": "apache-2.0", "mit license": "mit"}
_LARGEST_CARD_BYTES = 1 << 20


def stated_by(folder: Path) -> dict[str, Any]:
    """The fields of a model card that are known of a student of the pipeline folder, under their names on the Hub.

    `base_model` is the folder's own name on the Hub (from its files, or its place in the Hub's cache), or else what its
    card says that it was made from. Empty where the folder says nothing.
    """
    card = _front_matter(folder / CARD)
    found = {name: _as_field(name, card[name]) for name in COPIED_FIELDS if card.get(name)}
    if "license" not in found:
        found |= _licence_file(folder)
    if name := _hub_name(folder):
        found["base_model"] = name
    return found


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML between two lines `---` at the start of a card; nothing where there is none that can be read."""
    try:
        text = read_bytes(path, "", largest=_LARGEST_CARD_BYTES).decode("utf-8", "replace").lstrip("\ufeff")
        found = re.match(r"---[ \t]*\r?\n(.*?)\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
        values = yaml.safe_load(found[1]) if found else {}
    except (UserError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    plain = values.items() if isinstance(values, dict) else ()
    return {str(name): value for name, value in plain if _is_plain(value)}


def _as_field(name: str, value: str | list[str]) -> str | list[str]:
    """A list for the tags; for the others a text, or a list of several bases or licences."""
    if name == "tags":
        return [value] if isinstance(value, str) else value
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_plain(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return len(items) <= 50 and all(isinstance(item, str) and len(item) <= 300 for item in items)


def _licence_file(folder: Path) -> dict[str, str]:
    """A licence that lies in the folder as a text, by its name on the Hub where it is a common one."""
    for path in sorted(folder.glob("LICEN[SC]E*")):
        if path.is_file():
            with open(path, encoding="utf-8", errors="replace") as file:
                head = file.read(300).lower()
            known = next((name for text, name in _LICENCE_TEXTS.items() if text in head), None)
            return (
                {"license": known}
                if known
                else {"license": "other", "license_name": path.name.lower(), "license_link": path.name}
            )
    return {}


def _hub_name(folder: Path) -> str | None:
    """OWNER/NAME on the Hub, if the folder's files or its path tell it."""
    for file in (INDEX_FILE, "transformer/config.json"):
        try:
            name = read_json(folder / file, dict, "").get("_name_or_path")
        except UserError:
            continue
        if isinstance(name, str) and _HUB_NAME.fullmatch(name) and not Path(name).exists():
            return name
    cached = (_CACHED.fullmatch(part) for part in reversed(folder.absolute().parts))
    return next((f"{found['owner']}/{found['name']}" for found in cached if found), None)
