"""Which student stands in a run folder, and whether its scores are of an older one. Needs no torch.

`student/training.json`, written with the student: the update that it is of, and the hash of its weights.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from workbench.common.errors import UserError
from workbench.common.files import sampled_sha256_of_file, write_json
from workbench.common.outside import Count, Outside, Sha256, read_json
from workbench.evaluation.metrics_file import Metrics, Student

TRAINING = "training.json"


class _Training(Outside):
    update: Count
    weights: Sha256


def describe_student(folder: Path, update: int) -> None:
    """Write into the student's pipeline folder which update it is of, and the hash of its weights."""
    write_json(folder / TRAINING, {"update": update, "weights": weights_hash(folder)})


def student_of(run: Path) -> Student | None:
    """The student in a run folder, None without one. Its update is not known of students that older versions wrote."""
    folder = run / "student"
    if not (folder / "transformer").is_dir():
        return None
    try:
        stored = read_json(folder / TRAINING, _Training, "export the student again")
    except UserError:
        return Student(None, weights_hash(folder))
    return Student(stored.update, stored.weights)


def weights_hash(folder: Path) -> str:
    """Hex sha256 over the files of weights of a pipeline folder's transformer, large ones by samples of their bytes."""
    files = sorted((folder / "transformer").glob("*.safetensors"))
    lines = [f"{path.name} {sampled_sha256_of_file(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def outdated(run: Path, metrics: Metrics) -> str:
    """One line where a run's student is another than the one that was scored; empty where it is the same, or where it
    is not known which was scored."""
    scored = metrics.student
    now = student_of(run) if scored is not None else None
    if scored is None or now is None or now.weights == scored.weights:
        return ""
    command = evaluate_command(run, metrics.overrides)
    if None not in (scored.update, now.update) and scored.update != now.update:
        return f"scores are of update {scored.update}, the student of update {now.update}: run {command}"
    return f"scores are of weights {scored.weights[:12]}, the student has {now.weights[:12]}: run {command}"


def evaluate_command(folder: Path, overrides: list[str]) -> str:
    """The command that scores a folder so, quoted for a shell."""
    return shlex.join(["workbench", "evaluate", str(folder), *overrides])
