"""Networks of the judges that ship, from their folders."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from workbench.backbones.finite import require_finite_values
from workbench.common.errors import UserError
from workbench.common.outside import read_json
from workbench.evaluation.judges.local_network import JudgeConfig, JudgeNetwork
from workbench.evaluation.judges.transformer_network import TransformerNetwork

Network = JudgeNetwork | TransformerNetwork


def network_of(config: JudgeConfig) -> Network:
    """A network with fresh weights."""
    match config.architecture:
        case "cnn":
            return JudgeNetwork(config)
        case "transformer":
            return TransformerNetwork(config)


def load(folder: Path) -> Network:
    """The judge saved in `folder`, in eval mode on the CPU. Raises UserError if it is missing or broken."""
    try:
        network = network_of(read_json(folder / "config.json", JudgeConfig, "`make zoo` trains one"))
        state = safetensors.torch.load_file(folder / "model.safetensors")
        require_finite_values(str(folder), state, "`make zoo` trains one")
        network.load_state_dict(state)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"no usable judge in {folder}: {str(error).splitlines()[0]}; `make zoo` trains one") from error
    return network.eval().requires_grad_(False)
