"""Small fakes: an encoder without weights, raw shards written by hand, a web server on this machine."""

from __future__ import annotations

import io
import json
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.shards.encode import encode_shards
from datamodules.shards.encode_batch import Encoder, FamilyLimits
from datamodules.shards.writer import ShardWriter
from workbench.batch import EncodedPrompt, Reference
from workbench.recipe.config import Data

DIM = 8
SIDE = 32
"""Of the pictures, in pixels."""


def fake_prompts(prompts: list[str], images: list[list[Image.Image]] | None) -> list[EncodedPrompt]:
    """One row a word, three of template, and for images their slots from position 2 on."""
    encoded = []
    for i, prompt in enumerate(prompts):
        references = []
        slot = 2
        for image in images[i] if images else []:
            height, width = image.height // 16, image.width // 16
            references.append(Reference(slot, height, width, height * width // 4))
            slot = references[-1].end
        length = 3 + len(prompt.split()) + sum(reference.num_slots for reference in references)
        seed = sum(prompt.encode()) + len(references)
        embeddings = torch.randn(length, DIM, generator=torch.Generator().manual_seed(seed))
        encoded.append(EncodedPrompt(embeddings, tuple(references)))
    return encoded


def fake_latents(images: Tensor) -> Tensor:
    """Means over 16 x 16 pixels: (B, H / 16 * W / 16, 3)."""
    batch, height, width, _ = images.shape
    blocks = images[..., :3].float().div(255).reshape(batch, height // 16, 16, width // 16, 16, 3)
    return blocks.mean((2, 4)).reshape(batch, -1, 3)


def fake_encoder(_: int = 0) -> Encoder:
    return Encoder(fake_prompts, fake_latents, 16, FamilyLimits(32, 3))


def png(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """A picture of one colour that `seed` decides."""
    colour = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def members(key: str, i: int, task: str, category: str, prompt_only: bool = False) -> dict[str, bytes]:
    """One raw sample as named members."""
    content = {
        f"{key}.txt": f"caption {'word ' * (i % 5)}{i}".encode(),
        f"{key}.json": json.dumps({"task": task, "category": category}).encode(),
    }
    if not prompt_only:
        content[f"{key}.png"] = png(i)
    if task == "edit":
        content[f"{key}.source.png"] = png(i + 1000)
    return content


def write_tar(path: Path, content: dict[str, bytes]) -> Path:
    with ShardWriter(path) as shard:
        for name, value in content.items():
            shard.add(name, value)
    return path


def write_raw(folder: Path, counts: dict[str, int], per_shard: int = 7) -> Path:
    """Raw shards with so many samples of each qualified category."""
    plain = [(*name.split("/"), i) for name, count in counts.items() for i in range(count)]
    for start in range(0, len(plain), per_shard):
        content: dict[str, bytes] = {}
        for task, category, i in plain[start : start + per_shard]:
            content |= members(f"{task}-{category}-{i:04d}", i, task, category)
        write_tar(folder / f"{start // per_shard:03d}.tar", content)
    return folder


COUNTS = {"t2i/landscape": 10, "t2i/text": 5, "edit/scene": 6, "edit/own": 3}


def make_encoded(folder: Path, counts: dict[str, int] = COUNTS, keep_raw: bool = False) -> Path:
    raw = write_raw(folder / "raw", counts)
    data = Data(raw=str(raw), encoded=str(folder / "encoded"), encode_batch_size=4, keep_raw=keep_raw, resolution=SIDE)
    encode_shards(data, fake_encoder, "fake")
    return folder / "encoded"


class Site(SimpleHTTPRequestHandler):
    """Serves files; `failures` maps a path to answers that come before the real one: a status, or 'cut' for half."""

    failures: dict[str, list[int | str]]
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        planned = self.failures.get(self.path, [])
        match planned.pop(0) if planned else None:
            case int(status):
                self.send_error(status)
            case "cut":
                content = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            case _:
                super().do_GET()

    def log_message(self, *_: object) -> None:
        pass
