"""Fixtures that every test file may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from studies.tiny_model.assemble import SMALLEST, assemble

CAPTIONS = [
    f'A {colour} {thing} under a {sky} sky, beside a sign that says "{word}". Make the {thing} {colour}.'
    for colour in ("red", "green", "blue")
    for thing in ("house", "fox", "tree")
    for sky in ("clear", "cloudy", "starry")
    for word in ("CAT", "HELLO")
]


LONGEST_FIRST = (
    *(
        "test_sharding",
        "test_failing_rank",
        "test_workers",
        "test_postgres",
        "test_runner",
        "test_precision",
        "test_studies",
        "test_compile",
    ),
    *(
        "test_stored_weights",
        "test_page",
        "test_sanity",
        "test_build",
        "test_zoo_report",
        "test_bench",
        "test_second",
        "test_graph_steps",
    ),
    *(
        "test_user_study",
        "test_study_smoke",
        "test_config",
        "test_distiller",
        "test_openmoji",
        "test_family",
        "test_commands",
    ),
)
"""Files of ten seconds and more. One that began last would leave every other core without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.stem) if item.path.stem in LONGEST_FIRST else math.inf)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """In this process and in all that tests start: threads that wait for each other on shared cores slow small
    networks down many times."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline folder of the real classes, 0.5 M parameters, for images of 64 x 64. Never write into it."""
    folder = tmp_path_factory.mktemp("pipeline") / "smallest"
    assemble(folder, CAPTIONS, seed=0, sizes=SMALLEST)
    return folder


@pytest.fixture(scope="session")
def qwen_image_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random folders of the two pipelines of Qwen-Image, `t2i` and `edit` (as of 2511), with the same encoders. Never
    write into them."""
    from tiny_qwen_image import assemble

    root = tmp_path_factory.mktemp("qwen_image")
    return {
        "t2i": assemble(root / "t2i", CAPTIONS, edits=False, seed=1),
        "edit": assemble(root / "edit", CAPTIONS, edits=True, zero_cond_t=True, seed=2),
    }
