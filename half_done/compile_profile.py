"""What compiling a full-size run's bodies takes, and what it goes into. argv: key=value of the bench."""
import os, sys, time, tempfile, warnings, logging, collections
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
variant = sys.argv[1]
import torch, torch._dynamo, torch._inductor.config as ic
from torch._dynamo import utils
warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
if "noauto" in variant: ic.triton.autotune_pointwise = False
if "serial" in variant: ic.compile_threads = 1
from workbench.backbones.qwen_image_21 import blocks as B
from dataclasses import dataclass
from torch._dynamo import maybe_mark_dynamic
@dataclass(frozen=True)
class Causal:
    def __call__(self, q, k, v): return B.attention(q, k, v, None, is_causal=True)
if "dyn" in variant:
    kept = B.compiled_body
    def compiled_body(body, backend):
        run = kept(body, backend)
        def marked(block, projections, x, modulation, rotary, attend):
            if isinstance(attend, B.TargetAttention) and attend.key_valid is None:
                for pair in attend.context:
                    for t in pair: maybe_mark_dynamic(t, 1)
            elif isinstance(attend, B.PrefixAttention) and len(attend.segments) == 1 and "pre" in variant:
                attend = Causal(); maybe_mark_dynamic(x, 1); maybe_mark_dynamic(rotary, 1)
            return run(block, projections, x, modulation, rotary, attend)
        return marked
    B.compiled_body = compiled_body
if "nopat" in variant: ic.pattern_matcher = False
from workbench.bench.engines import MixBenchmark
from workbench.bench.options import read
from workbench.bench import engines
from workbench.modules import rehearsal
from workbench.modules.distiller import Distiller
options = read(sys.argv[2:])
mix, tasks = next(iter(options.mixes.items()))
bench = MixBenchmark(options, tasks, lambda *a: None, 1e18)
import torch._inductor.compile_fx as cf
each = []
orig = cf.compile_fx_inner
import torch._dynamo.convert_frame as C
began = time.perf_counter()
inner = C._compile if hasattr(C, "_compile") else None
def timed(*a, **k):
    t = time.perf_counter(); r = inner(*a, **k); each.append((round(t-began,1), round(time.perf_counter()-t, 2))); return r
if inner: C._compile = timed
engine = Distiller(bench.denoiser, bench.recipe, engines.data.CATEGORIES)
prepared = bench._prepare(engine)
print(variant, prepared, "graphs", rehearsal.compilations(), flush=True)
print("  bodies (at, s):", each)
times = utils.compilation_time_metrics
rows = sorted(((sum(v), len(v), k) for k, v in times.items()), reverse=True)[:12]
for s, n, k in rows: print(f"  {s:8.2f} s {n:4d} x {k}")
t = time.perf_counter(); prepared = bench._prepare(engine); print("again", prepared)

from dataclasses import replace
from workbench.bench import measure
reuse = replace(bench.recipe, dmd=replace(bench.recipe.dmd, fake_samples="student_rollout"))
ours, _ = measure.alternate(Distiller(bench.denoiser, reuse, engines.data.CATEGORIES), None, bench.steps, warmup=1)
print(variant, "iterations", [round(x, 3) for x in ours.wall_s], "graphs", rehearsal.compilations())
