"""Profile the tiny engine's replayed iterations. argv: repeats, key=value of the bench."""
import sys, time, collections
import torch
from workbench.bench.engines import MixBenchmark
from workbench.bench.options import read
from workbench.bench import measure, engines
from workbench.modules.distiller import Distiller
import workbench.bench.measure as M
import warnings, logging
warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
options = read(sys.argv[1:])
started = time.perf_counter()
class Prof(M._InTurns):
    prof = None
    def on_train_batch_start(self, trainer, module, batch, index):
        if index == self.warmup + 6 and torch.cuda.is_available():
            self.prof = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]); self.prof.__enter__()
        super().on_train_batch_start(trainer, module, batch, index)
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        super().on_train_batch_end(trainer, module, outputs, batch, index)
        if index == self.warmup + 8 and self.prof is not None:
            self.prof.__exit__(None, None, None)
M._InTurns = Prof
found = {}
def note(name, numbers):
    print(f"[{time.perf_counter()-started:.0f}] {name} {({k: v for k, v in numbers.items() if k != 'wall_s'})}", flush=True)
mix, tasks = next(iter(options.mixes.items()))
bench = MixBenchmark(options, tasks, note, started + 1e9)
def once(name, recipe):
    engine = Distiller(bench.denoiser, recipe, engines.data.CATEGORIES)
    turns = Prof(None, options.num_warmup)
    M._fit(engine, bench.steps, [turns])
    print(name, "median", turns.ours.median_s, [round(x, 4) for x in turns.ours.wall_s], turns.ours.peak_bytes / 2**30, flush=True)
    if turns.prof is None: return
    by = collections.Counter(); n = collections.Counter(); kinds = collections.Counter()
    events = [e for e in turns.prof.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    for e in events:
        by[e.name] += e.device_time_total if hasattr(e, "device_time_total") else e.cuda_time_total; n[e.name] += 1
    total = sum(by.values())
    def kind(name):
        l = name.lower()
        for k in ("triton", "gemm", "cutlass", "nvjet", "fmha", "flash", "elementwise", "reduce", "memcpy", "memset", "multi_tensor", "cat", "index", "distribution", "copy"):
            if k in l: return k
        return "other"
    for k, v in by.items(): kinds[kind(k)] += v
    print(f"{name}: kernels {len(events)/3:.0f} an iteration, busy {total/3e3:.1f} ms an iteration")
    print("  kinds", {k: round(v/3e3, 2) for k, v in kinds.most_common()})
    for k, v in by.most_common(45): print(f"  {v/3e3:8.2f} ms {n[k]/3:7.0f} x {v/n[k]:7.1f} us  {k[:150]}")
from dataclasses import replace
once("reuse", replace(bench.recipe, dmd=replace(bench.recipe.dmd, fake_samples="student_rollout")))
