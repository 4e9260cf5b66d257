"""grab.py RUN GIVEN OUT: the newest whole checkpoint's averaged weights over GIVEN/tiny, as OUT/{transformer,text_encoder}.safetensors in bf16 / fp16 as given."""
import re, sys, shutil
from pathlib import Path
import torch
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from safetensors.torch import load_file, save_file
run, given, out = map(Path, sys.argv[1:4])
found = sorted(p for p in (run / "checkpoints").glob("update-??????") if (p / ".metadata").is_file() and (p / "progress.json").is_file())
checkpoint = found[-1]
from torch.distributed.checkpoint import FileSystemReader
keys = {k for k in FileSystemReader(str(checkpoint)).read_metadata().state_dict_metadata if k.startswith("average.")}
state = _load_state_dict_from_keys(keys, checkpoint_id=str(checkpoint))
flat = {}
def walk(prefix, value):
    if isinstance(value, dict):
        for k, v in value.items(): walk(f"{prefix}{k}.", v)
    else: flat[prefix[:-1]] = value
walk("", state)
parts = {"transformer": ("transformer/diffusion_pytorch_model.safetensors", {}), "text_encoder": ("text_encoder/model.safetensors", {})}
for name, value in flat.items():
    name = name.removeprefix("average.")
    if name.startswith("text_encoder."):
        parts["text_encoder"][1][name.removeprefix("text_encoder.")] = value
    else:
        name = re.sub(r"^denoiser\.networks\.teacher\.(embed\.|head\.)?", "", name)
        name = re.sub(r"^blocks\.(\d+)\.block\.", r"transformer_blocks.\1.", name)
        parts["transformer"][1][name] = value
for part, (file, values) in parts.items():
    base = load_file(given / "tiny" / file)
    extra = set(values) - set(base)
    missing = set(base) - set(values)
    assert not extra, (part, sorted(extra)[:5], sorted(missing)[:5])
    print(part, checkpoint.name, "not averaged:", sorted(missing), "change", float(sum((values[k].float()-base[k].float()).norm()**2 for k in values)**.5))
    merged = {k: values[k].to(v.dtype).reshape(v.shape).contiguous() if k in values else v for k, v in base.items()}
    if len(sys.argv) > 4: save_file(merged, given / "tiny" / file, metadata={"format": "pt"})
    save_file(merged, out / f".{part}.part", metadata={"format": "pt"}); (out / f".{part}.part").rename(out / f"{part}.safetensors")
