"""A folder's processor is loaded whether torchvision is installed or not, with or without a video processor in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from workbench.backbones import processor


def test_videos_are_asked_for_only_where_folder_and_machine_have_them(
    qwen_image_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(path / "processor" for path in qwen_image_folders.values() if (path / "processor").is_dir())
    assert not (folder / processor.VIDEO_PROCESSOR_FILE).exists()
    for installed in (False, True):
        monkeypatch.setattr(processor, "is_torchvision_available", lambda installed=installed: installed)
        loaded = processor.load_processor(folder, Qwen2VLProcessor, Qwen2VLImageProcessorPil)
        assert isinstance(loaded, Qwen2VLProcessor) and isinstance(loaded.image_processor, Qwen2VLImageProcessorPil)
