"""Services that a run can log to besides TensorBoard, each behind its own Lightning logger; none of them is needed.

Where and how each one stores is left to its environment: `WANDB_MODE=offline`, `WANDB_PROJECT`, `MLFLOW_TRACKING_URI`,
`MLFLOW_EXPERIMENT_NAME`, `SWANLAB_MODE`. Without a tracking address MLflow writes files into the run folder.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PROJECT = "few-step-workbench"
"""Project or experiment of a run, unless the service's environment names one."""
FLUSH_S = 0.01
"""Seconds until Weights & Biases has on the disk what it was told: 15 by default, all lost where a run is killed."""
STREAMS = ("lambda", "scalars", "samples", "milestones")
"""What is logged of an update, in this order."""


class Service(Protocol):
    """An open run of a service. run_id: by which the same run is opened again."""

    run_id: str

    def describe(self, values: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """The recipe's values by key, and files of the run folder by name."""
        ...

    def scalars(self, values: Mapping[str, float], step: int, stream: str) -> None:
        """Numbers of an update."""
        ...

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """(H, W, 3) uint8. name: lambda or samples."""
        ...

    def close(self, status: str) -> None:
        """End this process's part. status: success or failed."""
        ...


class Wandb:
    """Weights & Biases. Its history has one row a stream of an update, numbered so that rows of a process that was
    killed and of the one that went on never share a number, offline too."""

    def __init__(self, folder: Path, run_id: str | None) -> None:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        self.run_id = run_id or secrets.token_hex(4)
        self._logger = WandbLogger(
            name=folder.resolve().name,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.run_id,
            save_dir=folder,
            settings=wandb.Settings(console="off", x_transaction_log_flush_interval=FLUSH_S),
        )
        assert self._logger.experiment is not None

    def describe(self, values: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self._logger.log_hyperparams(dict(values))
        for path in files.values():
            self._logger.experiment.save(str(path), base_path=str(path.parent), policy="now")

    def scalars(self, values: Mapping[str, float], step: int, stream: str) -> None:
        self._log(values, step, stream)

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        import wandb

        self._log({name: [wandb.Image(picture)]}, step, name)

    def _log(self, values: Mapping[str, Any], step: int, stream: str) -> None:
        """Under numbers of our own; the logger lets the service count, which starts again at each process offline."""
        if stream in STREAMS:
            number = len(STREAMS) * step + STREAMS.index(stream)
            self._logger.experiment.log({**values, "trainer/global_step": step}, step=number, commit=True)
        else:
            self._logger.experiment.summary.update(dict(values))

    def close(self, status: str) -> None:
        self._logger.experiment.finish(exit_code=0 if status == "success" else 1)


class Mlflow:
    """MLflow: a server, a data base, or files in the run folder."""

    def __init__(self, folder: Path, run_id: str | None) -> None:
        from lightning.pytorch.loggers import MLFlowLogger

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            # MLflow opens stores of files only where this is set.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = f"file:{folder.resolve() / 'mlflow'}"
        self._logger = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=folder.resolve().name,
            tracking_uri=address,
            run_id=run_id,
        )
        self.run_id = self._logger.run_id or ""
        self._logger.experiment.update_run(self.run_id, status="RUNNING")

    def describe(self, values: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        known = self._logger.experiment.get_run(self.run_id).data.params
        self._logger.log_hyperparams({key: value for key, value in values.items() if key not in known})
        for path in files.values():
            self._logger.experiment.log_artifact(self.run_id, str(path))

    def scalars(self, values: Mapping[str, float], step: int, stream: str) -> None:
        self._logger.log_metrics(values, step)

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._logger.experiment.log_image(self.run_id, picture, f"{name}/update-{step:06d}.png")

    def close(self, status: str) -> None:
        self._logger.finalize(status)


class SwanLab:
    """SwanLab, through the Lightning logger of its own package."""

    def __init__(self, folder: Path, run_id: str | None) -> None:
        from swanlab.integration.pytorch_lightning import SwanLabLogger

        self.run_id = run_id or secrets.token_hex(10) + "0"
        self._logger = SwanLabLogger(
            project=os.environ.get("SWANLAB_PROJECT", PROJECT),
            experiment_name=folder.resolve().name,
            log_dir=str(folder / "swanlab"),
            save_dir=folder,
            id=self.run_id,
            resume="allow",
        )
        assert self._logger.experiment is not None

    def describe(self, values: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        texts = {f"file/{name}": path.read_text() for name, path in files.items()}
        self._logger.log_hyperparams({**values, **texts})

    def scalars(self, values: Mapping[str, float], step: int, stream: str) -> None:
        self._logger.log_metrics(values, step)

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._logger.log_image(name, [picture], step)

    def close(self, status: str) -> None:
        import swanlab

        swanlab.finish()


def open_service(name: str, folder: Path, run_id: str | None) -> Service:
    """The run of that id at a service, a new one where it is None."""
    match name:
        case "wandb":
            return Wandb(folder, run_id)
        case "mlflow":
            return Mlflow(folder, run_id)
        case "swanlab":
            return SwanLab(folder, run_id)
        case _:
            raise ValueError(name)
