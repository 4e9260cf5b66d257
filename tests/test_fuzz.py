"""A thousand damaged inputs, seeded: each is read as it was meant, or refused in one line. No traceback, nothing lost
or changed in silence, nothing that takes ten seconds, nothing written outside the output folder.

`attempt` damages one input and reads it as the commands do; it returns a complaint where what was read is wrong.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from mutations import WEIRD, bytes_of, json_of, lines_of
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from shard_fakes import COUNTS, fake_encoder, make_encoded, members, png, write_raw, write_tar

from datamodules.distillation import DistillationData
from datamodules.shards.counts import INDEX
from datamodules.shards.encode import encode_shards
from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.pack import pack
from datamodules.shards.packed import FINISHED
from datamodules.shards.raw import raw_shards, read_raw
from studies.analysis import arms
from studies.machine.pruning import noise_floor_of
from studies.machine.trial import seconds_of_updates
from workbench.backbones import families, lora_files, roles
from workbench.backbones.provenance import stated_by
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.common.errors import UserError
from workbench.common.files import sha256_of_file
from workbench.common.jsonl import drop_lines_after, read_scalars
from workbench.evaluation import metrics_file
from workbench.evaluation.answer_cache import Answer, Chunk, Store
from workbench.evaluation.case_scores import read_scores
from workbench.evaluation.cases.case_file import read_jsonl, write_jsonl
from workbench.evaluation.cases.count import count_cases
from workbench.evaluation.judges.local import Judgement
from workbench.evaluation.measures.answer_measures import Measures
from workbench.evaluation.model_card import Origin, model_card
from workbench.evaluation.places import evaluations, files_for
from workbench.evaluation.trained_student import outdated
from workbench.method.rollout import Sampling
from workbench.recipe.config import Data, Evaluation, Mixture, Model, Recipe
from workbench.recipe.reading import flat_values, load, to_yaml
from workbench.reporting.page import report
from workbench.reporting.plots import inline_image
from workbench.runs import checkpoint
from workbench.runs.collapse import CollapseMonitor
from workbench.runs.loggers import ServiceLogger

LONGEST_S = 10.0
LONGEST_MESSAGE = 1700
Attempt = Callable[[random.Random, Path], str | None]


def fuzz(count: int, tmp_path: Path, attempt: Attempt, seed: int = 0) -> None:
    """Run `attempt` on `count` seeds, each in an empty folder deep inside `tmp_path`, and fail with what went wrong."""
    complaints = []
    for number in range(seed, seed + count):
        place = tmp_path / f"{number}" / "a" / "b" / "c"
        place.mkdir(parents=True)
        started = time.monotonic()
        try:
            complaint = attempt(random.Random(number), place)
        except UserError as error:
            message = str(error)
            complaint = None if len(message) <= LONGEST_MESSAGE else f"{len(message)} characters of error"
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            complaint = f"{type(error).__name__}: {str(error)[:150]} ({last.filename.split('/')[-1]}:{last.lineno})"
        if (took := time.monotonic() - started) > LONGEST_S:
            complaint = f"took {took:.0f} s"
        top = tmp_path / f"{number}"
        outside = [path for path in top.rglob("*") if not path.is_relative_to(place) and path not in place.parents]
        if outside or Path("/escaped").exists():
            complaint = f"wrote {outside}"
        if complaint:
            complaints.append(f"{number}: {complaint}")
        shutil.rmtree(top)
    assert not complaints, f"{len(complaints)} of {count}:\n" + "\n".join(complaints[:40])


def keys_of(kind: object, prefix: str = "") -> list[str]:
    return list(flat_values(kind))


def test_recipes(tmp_path: Path) -> None:
    keys, whole = keys_of(Recipe()), to_yaml(Recipe())

    def attempt(random_: random.Random, place: Path) -> str | None:
        values = [json.dumps(value) for value in WEIRD] + ["{", "[1, ", "!!python/name:os.system", "&a [*a]", "1e999"]
        overrides = [f"{random_.choice(keys)}={random_.choice(values)}" for _ in range(random_.choice((0, 1, 1, 2)))]
        content = bytes_of(random_, whole.encode()) if random_.random() < 0.5 else whole.encode()
        (place / "r.yaml").write_bytes(content)
        recipe = load(place / "r.yaml", overrides)
        again = place / "again.yaml"
        again.write_text(to_yaml(recipe))
        return None if load(again) == recipe else "does not survive being written"

    fuzz(60, tmp_path, attempt)


def test_packed_shards(tmp_path: Path) -> None:
    """Shards with a `pack.json`: what is read is what was packed."""
    whole = write_raw(tmp_path / "whole", {name: 2 for name in COUNTS}) / "000.tar"
    entry = {"name": whole.name, "bytes": whole.stat().st_size, "sha256": sha256_of_file(whole), "counts": {"t2i/x": 7}}
    packed = {"settings": "", "attribution": "", "counts": {"t2i/x": 7}, "shards": [entry]}
    expected = [(sample.key, sample.members) for sample in read_raw(str(whole))]

    def attempt(random_: random.Random, place: Path) -> str | None:
        of_pack = random_.random() < 0.2
        (place / whole.name).write_bytes(whole.read_bytes() if of_pack else bytes_of(random_, whole.read_bytes()))
        (place / FINISHED).write_bytes(json_of(random_, packed) if of_pack else json.dumps(packed).encode())
        found = [(sample.key, sample.members) for sample in read_raw(str(place / whole.name))]
        return None if found == expected else f"{len(found)} of {len(expected)} samples, in silence"

    fuzz(150, tmp_path, attempt)


def test_raw_shards_of_others(tmp_path: Path) -> None:
    """Shards without a `pack.json`, of odd members: all are encoded, or one is named."""

    def attempt(random_: random.Random, place: Path) -> str | None:
        content = {**members("a", 1, "t2i", "text"), **members("b", 2, "edit", "object")}
        name = random_.choice(list(content))
        match random_.choice(("json", "bytes", "name", "sized")):
            case "json":
                meta = {"task": "edit", "category": "object", "height": 32, "width": 32}
                content["b.json"] = json_of(random_, meta)
            case "bytes":
                content[name] = bytes_of(random_, content[name])
            case "name":
                content[name.replace("a.", random_.choice(("../a.", "/a.", "a..", "ä.", "__a__."))) + "x"] = b""
            case "sized":
                content.pop("a.png")
                content["a.json"] = json_of(random_, {"task": "t2i", "height": random_.choice(WEIRD), "width": 32})
        write_tar(place / "raw" / "0.tar", content)
        data = Data(raw=str(place / "raw"), encoded=str(place / "encoded"), encode_batch_size=2, resolution=32)
        summary = encode_shards(data, fake_encoder, "fake")
        return None if summary.num_samples == 2 else f"{summary.num_samples} of 2 samples, in silence"

    fuzz(120, tmp_path, attempt)


def test_own_sources(tmp_path: Path) -> None:
    """Tables and folders of a user: all samples are packed, or what was not taken is named or counted."""
    picture = png(1, (64, 48))
    rows = [
        {"image": "a.png", "prompt": "a cat", "edit_image": None, "category": "x"},
        {"image": "a.png", "prompt": "a dog", "edit_image": "b.png", "category": None},
        {"image": None, "prompt": "a bird"},
    ]
    lines = b'image,text\na.png,a cat\nb.png,"a, dog"\n,a bird\n'
    parquet.write_table(pyarrow.Table.from_pylist([{"image": picture, "text": "a cat"}] * 3), tmp_path / "x.parquet")
    table = (tmp_path / "x.parquet").read_bytes()

    def attempt(random_: random.Random, place: Path) -> str | None:
        own = place / "own"
        own.mkdir()
        for name in ("a.png", "b.png"):
            (own / name).write_bytes(bytes_of(random_, picture) if random_.random() < 0.2 else picture)
        kind = random_.choice(("x.jsonl", "x.json", "x.csv", "x.parquet", "x.txt", "folder"))
        match kind:
            case "x.jsonl":
                content = lines_of(random_, rows)
            case "x.json":
                content = json_of(random_, rows)
            case "x.csv":
                content = bytes_of(random_, lines)
            case "x.parquet":
                content = bytes_of(random_, table)
            case _:
                content = bytes_of(random_, b"a cat\na dog\na bird\n")
        if kind == "folder":
            odd = random_.choice(
                ("a.TXT", "a.b.c.png", "a.source.1.png", ".a.txt", "a.gif", "\u202e.txt", "metadata.csv")
            )
            (own / odd).write_bytes(content)
            (own / "a.txt").write_text("a cat")
            (own / "b.txt").write_text("a dog")
        else:
            (own / kind).write_bytes(content)
        source = own if kind == "folder" else own / kind
        skips = random_.random() < 0.5
        data = Data(source=str(source), raw=str(place / "raw"), resolution=32, broken="skip" if skips else "stop")
        summary = pack(Recipe(data=replace(data, num_workers=0)))
        found = [sample for shard in raw_shards(data.raw) for sample in read_raw(shard)]
        if len(found) != summary.num_samples or (summary.left_out.broken and not skips):
            return f"{len(found)} of {summary.num_samples} samples, in silence"
        return None

    fuzz(120, tmp_path, attempt)


def test_encoded_shards(tmp_path: Path) -> None:
    whole = make_encoded(tmp_path / "whole", {"t2i/text": 3, "edit/object": 3})
    index = json.loads((whole / INDEX).read_text())
    before = EncodedDataset(str(whole))
    expected = [before.read(i) for i in range(len(before))]

    def attempt(random_: random.Random, place: Path) -> str | None:
        folder = place / "encoded"
        shutil.copytree(whole, folder)
        of_index = random_.random() < 0.6
        if of_index:
            (folder / INDEX).write_bytes(json_of(random_, index))
        else:
            path = random_.choice([path for path in sorted(folder.iterdir()) if path.name != INDEX])
            path.write_bytes(bytes_of(random_, path.read_bytes()))
        dataset = EncodedDataset(str(folder))
        found = [dataset.read(i) for i in range(len(dataset))]
        texts = [dataset.read_text(i) for i in range(len(dataset))]
        data = DistillationData(dataset, Mixture(batch_size=4), fake_updates=1, num_steps=2, seed=0, guided=True)
        data.step_data(0, 0, 1)
        same = all(
            all(a is b is None or np.array_equal(a, b) for a, b in zip(vars(x).values(), vars(y).values(), strict=True))
            for x, y in zip(found, expected, strict=False)
        )
        lost = not of_index and len(found) != len(expected)
        return None if (same or of_index) and not lost and all(texts) else "other samples, in silence"

    fuzz(150, tmp_path, attempt)


def test_cases(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "task": "t2i", "category": "text", "prompt": "A cat.", "seed": 3, "scene": {"objects": ["cat"]}},
        {"id": "b", "task": "edit", "category": "object", "instruction": "Add a tree.", "source": "b.png",
         "target": "b.png", "scene": {"objects": ["tree"], "sky": "blue"}, "named": ["objects"], "kept": ["sky"],
         "accepted": {"objects": [["tree"], ["palm"]]}, "exact": False},
    ]  # fmt: skip

    def attempt(random_: random.Random, place: Path) -> str | None:
        picture = place / "b.png"
        Image.new("RGB", (32, 32), "red").save(picture)
        match random_.choice(("json", "json", "json", "picture", "place", "id")):
            case "json":
                (place / "cases.jsonl").write_bytes(lines_of(random_, rows))
            case "picture":
                (place / "cases.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
                picture.write_bytes(bytes_of(random_, picture.read_bytes()))
            case "id":
                odd = random_.choice(
                    ("../../../escaped", "/escaped", "..", "a/b", "nul\0", "x" * 300, "\u202e", "a\nb")
                )
                (place / "cases.jsonl").write_text(json.dumps({**rows[1], "id": odd}) + "\n")
            case "place":
                odd = random_.choice(("/dev/zero", "/dev/stdin", ".", "b.png/x", "nul\0.png", "x" * 5000))
                (place / "cases.jsonl").write_text(json.dumps({**rows[1], "source": odd}) + "\n")
        count = count_cases(Data(source="own"), Evaluation(cases=str(place / "cases.jsonl")))
        cases = read_jsonl(place / "cases.jsonl")
        write_jsonl(cases, place / "out" / "cases.jsonl")
        again = read_jsonl(place / "out" / "cases.jsonl")
        if [case.id for case in again] != [case.id for case in cases] or count != len(cases):
            return "other cases, in silence"
        return None

    fuzz(150, tmp_path, attempt)


def test_pipeline_folders(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    configs = sorted(
        path.relative_to(tiny_pipeline_folder)
        for path in tiny_pipeline_folder.rglob("*")
        if path.suffix in (".json", ".jinja")
    )
    weights = sorted(path.relative_to(tiny_pipeline_folder) for path in tiny_pipeline_folder.rglob("*.safetensors"))

    def attempt(random_: random.Random, place: Path) -> str | None:
        folder = place / "folder"
        shutil.copytree(tiny_pipeline_folder, folder, copy_function=lambda a, b: Path(b).hardlink_to(a))
        path = folder / random_.choice((*configs, *configs, *weights))
        content = path.read_bytes()
        path.unlink()
        if path.suffix == ".json" and len(content) < 100_000:
            path.write_bytes(json_of(random_, json.loads(content)))
        elif path.suffix == ".safetensors":
            state = load_file(tiny_pipeline_folder / path.relative_to(folder))
            state[random_.choice(list(state))].view(-1)[0] = random_.choice((float("nan"), float("inf")))
            save_file(state, path, {"format": "pt"})
        else:
            path.write_bytes(bytes_of(random_, content))
        model = families.load(str(folder))
        model.default_sampling()
        drawn = model.encode_prompts(["a cat"], [[Image.new("RGB", (64, 64))]])[0]
        if path.suffix == ".safetensors":
            return f"{path.name} with values that are not finite"
        return None if torch.isfinite(drawn.embeddings).all() else "embeddings that are not finite"

    fuzz(40, tmp_path, attempt)


def test_lora_files(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    transformer = QwenImage21Model.load(tiny_pipeline_folder, text_encoder=False).pipeline.transformer
    layer, alpha = "transformer_blocks.0.attn.to_q", "transformer.lora_alpha"
    linear = transformer.get_submodule(layer)
    down, up = torch.ones(2, linear.in_features), torch.ones(linear.out_features, 2)
    forms = (
        (f"transformer.{layer}", "lora_A.weight", "lora_B.weight"),
        (f"base_model.model.{layer}", "lora_A.default.weight", "lora_B.default.weight"),
        (f"lora_unet_{layer.replace('.', '_')}", "lora_down.weight", "lora_up.weight"),
        (f"diffusion_model.{layer}", "lora_down.weight", "lora_up.weight"),
    )
    header = {alpha: 2.0, "transformer.alpha_pattern": {"attn.to_q": 1.0}, "transformer.use_rslora": False}

    def attempt(random_: random.Random, place: Path) -> str | None:
        path, metadata = place / "adapter_model.safetensors", json.dumps(header)
        key, *halves = random_.choice(forms)
        tensors = dict(zip((f"{key}.{half}" for half in halves), (down, up), strict=True))
        kind = random_.choice(("header", "header", "config", "tensor", "name", "alpha", "bytes"))
        match kind:
            case "header":
                metadata = json_of(random_, header).decode("utf-8", "replace")
            case "config":
                settings = {name.removeprefix("transformer."): value for name, value in header.items()}
                (place / "adapter_config.json").write_bytes(json_of(random_, settings))
            case "alpha":
                odd = (torch.tensor(float("nan")), torch.ones(2), torch.ones(0), torch.tensor(True), torch.ones(1, 1))
                tensors[f"{key}.alpha"] = random_.choice((*odd, torch.tensor(4), torch.tensor(-1e38)))
            case "tensor":
                name = random_.choice(list(tensors))
                odd = (torch.full_like(tensors[name], float("nan")), tensors[name].to(torch.int8), tensors[name][:0])
                tensors[name] = random_.choice((*odd, tensors[name][0].contiguous(), tensors[name][None]))
            case "name":
                name = random_.choice(list(tensors))
                tensors[random_.choice(("x", "lora_A", "transformer..lora_A.weight", "../x"))] = tensors.pop(name)
        save_file(tensors, path, {} if kind == "config" else {lora_files.METADATA: metadata})
        if kind == "bytes":
            head = path.read_bytes()
            path.write_bytes(bytes_of(random_, head[:600]) + head[600:])
        adapter = lora_files.read(path)
        roles.build(SplitTransformer, transformer, Model(), specialists={"x": adapter})
        if kind in ("tensor", "name"):
            return f"takes a {kind} that is none"
        return None if all(np.isfinite(one.scaling) for one in adapter.values()) else "a scaling that is not finite"

    fuzz(100, tmp_path, attempt)


def test_what_a_folder_says_of_its_licence(tmp_path: Path) -> None:
    card = "---\nlicense: other\nlicense_name: mine\ntags: [a, b]\nbase_model: [a/b]\npipeline_tag: x\n---\n"
    files = {
        "README.md": card.encode(),
        "LICENSE": b"Apache License, Version 2.0",
        "model_index.json": json.dumps({"_class_name": "X", "_name_or_path": "owner/name"}).encode(),
    }
    lines = ("license", "license_name", "tags", "base_model", "pipeline_tag")

    def attempt(random_: random.Random, place: Path) -> str | None:
        content = dict(files)
        name = random_.choice(list(content))
        match random_.choice(("bytes", "json", "value")):
            case "bytes":
                content[name] = bytes_of(random_, content[name])
            case "json":
                content["model_index.json"] = json_of(random_, json.loads(files["model_index.json"]))
            case "value":
                value = json.dumps(random_.choice(WEIRD))
                content["README.md"] = f"---\n{random_.choice(lines)}: {value}\n---\n".encode()
        for name, data in content.items():
            (place / name).write_bytes(data)
        fields = stated_by(place)
        text = model_card(Origin("x", "y", "z", "w", fields), "Pipeline", Sampling(4), [])
        again = yaml.safe_load(text.split("---\n")[1])
        kept = all(again[name] == value for name, value in fields.items() if name != "tags")
        tagged = {"distillation", *fields.get("tags", [])} <= set(again["tags"])
        return None if kept and tagged and isinstance(fields.get("tags", []), list) else f"other fields: {again}"

    fuzz(60, tmp_path, attempt)


def test_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    states = {update: {"average": {"w": torch.randn(64, generator=generator)}} for update in (1, 2)}
    for update, state in states.items():
        checkpoint.save(tmp_path / "whole", state, checkpoint.Progress(update, 0))

    def attempt(random_: random.Random, place: Path) -> str | None:
        folder = place / "checkpoints"
        shutil.copytree(tmp_path / "whole", folder)
        path = random_.choice(sorted((folder / "update-000002").iterdir()))
        content = path.read_bytes()
        stored = json.loads((folder / "update-000002" / checkpoint.PROGRESS).read_bytes())
        path.write_bytes(json_of(random_, stored) if path.suffix == ".json" else bytes_of(random_, content))
        found = checkpoint.newest_whole(folder)
        if found is None:
            return "no checkpoint, in silence"
        loaded = {"average": {"w": torch.zeros(64)}}
        checkpoint.load(found[0], loaded)
        same = torch.equal(loaded["average"]["w"], states[found[1].num_updates]["average"]["w"])
        return None if same else "other weights, in silence"

    fuzz(100, tmp_path, attempt)


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 20}


def model(nfe: int, mean: float) -> dict[str, object]:
    bench = {name: interval(mean) for name in ("landscape", "text", "mean")}
    return {"nfe": nfe, "n": 60, "seconds_per_image": 0.1, "sampling": {"steps": nfe}, "t2i_bench": bench}


SCORES = [
    {"model": "student", "bench": "t2i_bench", "category": "text", "case": name, "seed": 0, "score": 3.5}
    for name in ("a", "b")
]
LOGGED = [{"update": i, "loss": 1 / i, "mixture/t2i/text": 1.0, "throughput/s_per_update": 0.5} for i in (1, 2, 3)]
RUN = {
    "metrics.json": {
        "recipe": "abc", "split": "report", "seeds": [0],
        "models": {"teacher": model(80, 3.5), "student": model(4, 3.2)},
        "comparisons": [{"a": "student", "b": "teacher", "bench": "t2i_bench", "difference": -0.3, "low": -0.4,
                         "high": -0.2, "verdict": "teacher better"}],
    },
    "environment.json": {"torch": "2", "packages": {"torch": "2"}, "cuda_devices": []},
    "samples/evaluation/index.json": [
        {"file": "t2i-text.png", "task": "t2i", "category": "text", "columns": ["student"],
         "rows": [{"prompt": "p", "scores": {"student": 3.0}}]}
    ],
    "metrics.jsonl": LOGGED,
    "milestones.jsonl": [{"update": i, "distance": 0.5, "alarm": 0.0} for i in (1, 2, 3)],
    "evaluation/cases.jsonl": SCORES,
    "evaluation/mine/metrics.json": {
        "cases": "mine.jsonl", "seeds": [0], "models": {"student": {"nfe": 4}},
        "overrides": ["evaluation.cases=mine.jsonl"], "student": {"update": 3, "weights": "0" * 64},
    },
    "student/training.json": {"update": 4, "weights": "1" * 64},
    "loggers.json": {"wandb": {"id": "x", "logged": {"scalars": 3}, "described": "", "scored": {}}},
}  # fmt: skip


PAGED = ("metrics.json", "environment.json", "samples/evaluation/index.json", "evaluation/mine/metrics.json")
"""Files whose damage a page is written of more often."""


def write_run(place: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    Image.new("RGB", (32, 32)).save(place / "samples" / "evaluation" / "t2i-text.png")
    return place


def test_run_folders(tmp_path: Path) -> None:
    whole = {
        name: b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        if name.endswith("jsonl")
        else json.dumps(rows).encode()
        for name, rows in RUN.items()
    } | {"recipe.yaml": to_yaml(Recipe()).encode()}

    def attempt(random_: random.Random, place: Path) -> str | None:
        name = random_.choice(list(whole))
        damaged = (
            bytes_of(random_, whole[name]) if name.endswith("yaml")
            else lines_of(random_, RUN[name]) if name.endswith("jsonl") else json_of(random_, RUN[name])
        )  # fmt: skip
        run = write_run(place / "run", {**whole, name: damaged})
        metrics_file.read(run / "metrics.json")
        (run / "student" / "transformer").mkdir()
        for _, scored in evaluations(run).values():
            outdated(run, scored)
        files_for(run, Evaluation(cases="mine.jsonl"), Evaluation())
        ServiceLogger("wandb", Recipe(), run).version  # noqa: B018
        CollapseMonitor.of(read_scalars(run / "milestones.jsonl")).best_to_keep()
        seconds_of_updates(run, 0)
        drop_lines_after(run / "metrics.jsonl", 2)
        if any(update > 2 for update, _ in read_scalars(run / "metrics.jsonl")):
            return "lines after the checkpoint"
        if name == "recipe.yaml":
            picture = run / "samples" / "evaluation" / "t2i-text.png"
            picture.write_bytes(bytes_of(random_, picture.read_bytes()))
            inline_image(picture, 16)
        if random_.random() < (0.3 if name in PAGED else 0.02):
            page = report(run).read_text()
            if 'href="javascript' in page or "<script>alert" in page:
                return "a page that runs what it was given"
        read_scores(run)
        return None

    fuzz(90, tmp_path, attempt)


def test_partial_answers(tmp_path: Path) -> None:
    judged = Judgement(3.0, 0.5, None, None, {"objects": 1.0})
    answers = [
        Answer("a", "t2i_bench", "text", 0, judged, Measures(1.0)),
        Answer("b", "t2i_bench", "text", 0, None, Measures(2.0)),
    ]
    features, images = np.ones((2, 4), np.float32), {"a": np.zeros((8, 8, 3), np.uint8)}
    Store(tmp_path).save("k", Chunk(answers, features, images, 1.0))
    with np.load(tmp_path / "k.npz") as file:
        arrays = {name: file[name] for name in file}
    rows = json.loads(bytes(arrays["rows"]))

    def attempt(random_: random.Random, place: Path) -> str | None:
        damaged_rows = random_.random() < 0.6
        if damaged_rows:
            content = json_of(random_, rows)
            np.savez(place / "k.npz", **{**arrays, "rows": np.frombuffer(content, np.uint8)})
        else:
            (place / "k.npz").write_bytes(bytes_of(random_, (tmp_path / "k.npz").read_bytes()))
        found = Store(place).load("k")
        if found is None or damaged_rows:
            return None
        return (
            None
            if found.answers == answers and np.array_equal(found.features, features)
            else "other answers, in silence"
        )

    fuzz(80, tmp_path, attempt)


def test_studies(tmp_path: Path) -> None:
    trials = [
        {"number": i, "state": "complete", "seed": i, "run": f"trial-{i:04d}", "values": {"score": 3.0 + i, "t2i": 3.0},
         "milestones": {"1": {"score": 2.0}}}
        for i in range(3)
    ]  # fmt: skip
    study = {"name": "x", "arms": [{"name": "base", "trials": trials}], "budget": {"updates": 5, "cases": 3}}

    def attempt(random_: random.Random, place: Path) -> str | None:
        (place / "study.json").write_bytes(json_of(random_, study))
        for i in range(3):
            (place / f"trial-{i:04d}" / "evaluation").mkdir(parents=True)
            (place / f"trial-{i:04d}" / "evaluation" / "cases.jsonl").write_bytes(lines_of(random_, SCORES))
        found = arms.read_study(place)
        arms.read_arms(place, found)
        arms.floor_of(place)
        noise_floor_of(place, "score")
        return None

    fuzz(60, tmp_path, attempt)
