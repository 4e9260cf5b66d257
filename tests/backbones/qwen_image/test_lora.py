"""LoRA files of Qwen-Image in the forms that its trainers write: each means what it means to diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import QwenImagePipeline
from safetensors.torch import save_file
from torch import Tensor
from two_streams import random_condition, random_transformer

from workbench.backbones import lora, lora_files, roles
from workbench.backbones.base import Denoiser
from workbench.backbones.qwen_image.transformer import DualTransformer
from workbench.backbones.roles import TEACHER
from workbench.batch import Layout, Reference
from workbench.recipe.config import Model

ALPHA, RANK, SPECIALIST = 5.0, 2, f"{TEACHER}_text"
FORMS = {
    "diffusers": ("transformer.{}", "lora_A", "lora_B"),
    "kohya": ("lora_unet_{}", "lora_down", "lora_up"),
    "comfyui": ("diffusion_model.{}", "lora_A", "lora_B"),
    "lightning": ("{}", "lora_down", "lora_up"),
    "diffsynth": ("{}", "lora_A.default", "lora_B.default"),
}
"""Name of a layer, and of its halves. Lightning: the four-step students that lightx2v gives away."""


def write(file: Path, form: str) -> None:
    """Every linear layer, inside the blocks and outside."""
    layer, down, up = FORMS[form]
    generator, state = torch.Generator().manual_seed(1), {}
    scaled = form not in ("diffusers", "diffsynth")
    for name, linear in lora.base_linears(random_transformer()).items():
        key = layer.format(name.replace(".", "_") if "_{}" in layer else name)
        state[f"{key}.{down}.weight"] = 0.1 * torch.randn(RANK, linear.in_features, generator=generator)
        state[f"{key}.{up}.weight"] = 0.1 * torch.randn(linear.out_features, RANK, generator=generator)
        state |= {f"{key}.alpha": torch.tensor(ALPHA)} if scaled else {}
    save_file(state, file)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_every_form_is_read_as_diffusers_reads_it(form: str, tmp_path: Path) -> None:
    file, stock, ours = tmp_path / "lora.safetensors", random_transformer(), random_transformer()
    write(file, form)
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    QwenImagePipeline.load_lora_into_transformer(QwenImagePipeline.lora_state_dict(file), stock)
    stock.fuse_lora()
    stock.unload_lora()
    roles.merge_loras(DualTransformer(ours), [(file, 1.0)])
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, stock.state_dict()[name], rtol=1e-5, atol=1e-6), name
        assert (name.endswith(".weight") and tensor.ndim == 2) != torch.equal(tensor, before[name]), name


@torch.no_grad()
def test_a_specialist_of_all_layers_is_the_base_with_its_file_merged(tmp_path: Path) -> None:
    """Inside the blocks and outside, over the shared base, whose own roles see nothing of it."""
    file, layout = tmp_path / "lora.safetensors", Layout(7, 4, 4, (Reference(3, 2, 4, 2),))
    write(file, "lightning")
    networks = roles.build(DualTransformer, random_transformer(), Model(), specialists={"text": lora_files.read(file)})
    merged = DualTransformer(random_transformer())
    plain = DualTransformer(random_transformer())
    roles.merge_loras(merged, [(file, 1.0)])
    condition, t = random_condition(layout, [7, 5]), torch.tensor([0.9, 0.2])
    x_t = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(2))

    def velocity(denoiser: Denoiser, role: str) -> Tensor:
        return denoiser.velocity(denoiser.prefix(condition, role), x_t, t, role)

    torch.testing.assert_close(velocity(networks, SPECIALIST), velocity(merged, SPECIALIST))
    torch.testing.assert_close(velocity(networks, TEACHER), velocity(plain, TEACHER))
    assert (velocity(networks, SPECIALIST) - velocity(networks, TEACHER)).abs().max() > 0.01
