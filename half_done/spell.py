"""spell.py FOLDER N CFG[,CFG] : exact share of signs by lettering, by number of letters; other categories' scores."""
import sys, collections
import numpy as np
from dataclasses import replace

def main():
    from studies.tiny_model.figures import Options, Zoo
    from workbench.evaluation.answers import answer
    from workbench.method.rollout import Sampling
    from workbench.evaluation.cases.choose import benchmark_cases
    folder, n = sys.argv[1], int(sys.argv[2])
    zoo = Zoo(Options(folder=folder, cases=n, seeds=[0], out="/tmp/spell"))
    cases = [c for c in zoo.cases if c.category == "text" and c.task == "t2i"] if "all" not in sys.argv else zoo.cases
    for scale in map(float, sys.argv[3].split(",")):
        model = zoo.subject.model(Sampling(40, 2.0, scale))
        found = answer(model, cases, [0], [zoo.judge])
        by = collections.defaultdict(list)
        length = collections.defaultdict(list)
        of = {c.id if hasattr(c, "id") else c.name: c for c in cases}
        cat = collections.defaultdict(list)
        for row in found.rows:
            case = of[row.case]
            cat[row.bench + "/" + row.category].append(row.by_local.score)
            if row.category != "text" or row.bench.startswith("Edit"): continue
            v = row.by_local.attributes.get("named/word")
            if v is None: continue
            word = case.text
            kind = "word" if " " not in word else "two"
            by[kind].append(v); length[kind, len(word.replace(" ", ""))].append(float(v == 1))
        print(f"CFG {scale}:", {k: f"exact {np.mean(np.array(v) == 1):.3f} letters {np.mean(v):.3f} n={len(v)}" for k, v in by.items()}, flush=True)
        print("   by letters:", {f"{k[0]}{k[1]}": f"{np.mean(v):.2f}({len(v)})" for k, v in sorted(length.items())}, flush=True)
        print("   scores:", {k: round(float(np.mean(v)), 2) for k, v in cat.items()}, flush=True)
if __name__ == "__main__":
    main()
