"""Command line of the benchmark: `python -m workbench.bench [size=full] [key=value ...]`, keys as in `Options`."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from workbench.bench.engines import MixBenchmark
from workbench.bench.options import Options, read
from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.common.tables import Table, stdout_console

Results = dict[str, dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print tables; 0 done, 1 a measurement failed, 2 an error that the user can correct."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            results = run(read(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any("error" in row for result in results.values() for row in result.values()))


def run(options: Options) -> Results:
    """Measure every mix and print it; results by mix, then by engine."""
    console = stdout_console()
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = _machine(options.torch_device)
    console.print(f"{machine}; {options}")
    started, results = time.perf_counter(), dict[str, dict[str, Any]]()
    for mix, tasks in options.mixes.items():
        result = results[mix] = {}

        def note(name: str, numbers: dict[str, Any], mix: str = mix, result: dict[str, Any] = result) -> None:
            result[name] = numbers
            outcome = numbers.get("error", "measured")
            elapsed_s = time.perf_counter() - started
            console.print(f"[{elapsed_s:6.1f} s] {mix}, {name}: {outcome}", markup=False, soft_wrap=True)
            if options.json:
                report = {"machine": machine, "torch": torch.__version__, "options": asdict(options)}
                write_bytes(Path(options.json), json.dumps({**report, "results": results}, indent=1).encode())

        MixBenchmark(options, tasks, note, started + (options.seconds or float("inf"))).run()
    console.print(_engine_table(results, options))
    if options.phases:
        console.print(_phase_table(results))
    return results


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, load {load:.1f} at the start"


def _engine_table(results: Results, options: Options) -> Table:
    table = Table(
        title=f"one iteration: {options.fake_updates} fake-score updates and 1 student update, "
        f"{options.batch_size} samples a task",
        title_justify="left",
    )
    columns = ("mix", "engine", "s / iteration", "+-", "samples / s", "peak GiB", "speed-up", "prepared s", "stored")
    for column in columns:
        table.add_column(column, justify="left" if column in ("mix", "engine") else "right")
    for mix, result in results.items():
        for engine in options.engines:
            row = result[engine]
            if "error" in row:
                table.add_row(mix, engine, "failed")
                continue
            table.add_row(
                mix,
                engine,
                f"{row['median_s']:.3f}",
                f"{row['spread_s']:.3f}",
                f"{row['samples_per_s']:.1f}",
                f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else "-",
                f"{row['speed_up']:.2f} x" if "speed_up" in row else "",
                f"{row['warm_up_s']:.0f}" if "warm_up_s" in row else "",
                f"{row['stored']} blocks" if "stored" in row else "",
            )
    return table


def _phase_table(results: Results) -> Table:
    """Share of each phase of this engine, timed apart, by mix."""
    by_mix = {mix: result["phases_s"] for mix, result in results.items() if "error" not in result["phases_s"]}
    table = Table("phase of ours, timed apart", title="share of each phase", title_justify="left")
    for mix in by_mix:
        table.add_column(mix, justify="right")
    for phase in sorted({phase for phases in by_mix.values() for phase in phases}):
        shares = [phases.get(phase, 0.0) / sum(phases.values()) for phases in by_mix.values()]
        table.add_row(phase, *(f"{100 * share:.0f} %" for share in shares))
    return table


if __name__ == "__main__":
    sys.exit(main())
