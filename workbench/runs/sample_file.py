"""One picture by the command line: what can be wrong with its words and files is said before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from workbench.common.errors import UserError
from workbench.common.images import read_image
from workbench.common.outside import CONTROL, LONGEST_TEXT


def sample_to_file(folder: str, prompt: str, images: Sequence[Path], out: Path, seed: int, size: str | None) -> None:
    """Draw one picture with a pipeline folder or a run's student into `out`.

    Raises:
        UserError: a prompt, picture, size or place that cannot be used.
    """
    if CONTROL.search(" ".join(prompt.split())) or len(prompt) > LONGEST_TEXT:
        raise UserError(f"the prompt must be plain UTF-8 text of at most {LONGEST_TEXT:,} characters")
    for image in images:
        read_image(image, "--image", "name another picture")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--out {out} must end in .png, .jpg or .webp")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: the folder {out.parent} is not writable")

    from workbench.runs.inference import sample_image

    sample_image(folder, prompt, images, out, seed, size=size)
