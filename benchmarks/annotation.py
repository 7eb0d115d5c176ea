"""Which scan to annotate next: simulated annotation on ACDC, patient after patient, by several strategies.

    python benchmarks/annotation.py run --data DIR
    python benchmarks/annotation.py report

``DIR`` is that of accuracy.py. Of the training patients of ``configs/acdc_splits.json`` two are annotated at first, the
same for every strategy of a seed; the others are unlabelled. After each round of training two more are: drawn at
random, or those with the highest score. SemSim- is trained in every round for the same steps, warm-started from the
weights of the round before (``configs/annotation.yaml``), and its last iteration is scored on the validation patients.
The scores come from ``scripts/method/active_learning.py``, mean over all slices of a patient.

A round writes one JSON: annotated patients, Dice of every case, scores of every patient not annotated, command, commit,
versions. ``run`` goes on where it was interrupted; seed after seed, so that whole seeds are there first.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import comparison
from common import BUNDLE, CONFIGS, ROOT, markdown
from scoring import scores_of

RESULTS = common.RESULTS / "annotation"
FILES = ("configs/train.yaml", "configs/semsim_minus.yaml", str(CONFIGS / "annotation.yaml"))
STRATEGIES = ("random", "entropy", "disagreement")


class Pool:
    """The training patients' slices, read once, and their scores under given weights."""

    def __init__(self, data: Path, patients: Sequence[str], settings: Mapping[str, Any]) -> None:
        """
        Args:
            data: folder with ``images`` and ``labels``.
            patients: those of the pool.
            settings: of ``train.yaml``, as in the training.
        """
        from monai.bundle import ConfigParser

        self.parser = ConfigParser()
        self.parser.read_config([str(BUNDLE / f) for f in FILES])
        self.parser.update({"device": "cpu", **settings})
        files = sorted((data / "images").glob("*.nii.gz"))
        self.images = {p: [f for f in files if common.patient_of(f.name) == p] for p in sorted(patients)}
        if missing := [p for p, found in self.images.items() if not found]:
            raise SystemExit(f"{data}: expected images of {len(patients)} patients, {missing[0]} has none.")
        self.transform = self.parser.get_parsed_content("train#preprocessing")
        self.read = {p: [self._slices({"image": f}) for f in files] for p, files in self.images.items()}

    def _slices(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        from scripts.dataio.loaders import SliceDataset

        dataset = SliceDataset([{k: str(v) for k, v in item.items()}], self.transform, progress=False)
        return [dataset[k] for k in range(len(dataset))]

    def scores(self, weights: Path, annotated: Sequence[str]) -> dict[str, dict[str, float]]:
        """``{patient: {score: value}}`` of the patients that are not annotated."""
        import torch
        from scripts.method.active_learning import Acquisition
        from scripts.training.weights import load_weights

        network = load_weights(self.parser.get_parsed_content("network_def", instantiate=True), str(weights), "cpu")
        loss = self.parser.get_parsed_content("loss")
        scorer = Acquisition(
            network,
            num_classes=loss.num_classes,
            regions=loss.regions,
            affinity_temperature=loss.affinity["temperature"],
            prototype_temperature=loss.pooling["temperature"],
        )
        labelled = []
        for patient in annotated:
            for image in self.images[patient]:
                labelled += self._slices({"image": image, "label": image.parents[1] / "labels" / image.name})
        scorer.learn(labelled)
        result = {}
        for patient, frames in self.read.items():
            if patient not in annotated:
                slices = torch.stack([item["image"] for frame in frames for item in frame])
                result[patient] = {name: round(value, 7) for name, value in scorer.score(slices).items()}
        return result


def choose(strategy: str, scores: Mapping[str, Mapping[str, float]], number: int, seed: int) -> list[str]:
    """The patients to annotate next, of those that are scored."""
    patients = sorted(scores)
    if strategy == "random":
        return sorted(random.Random(f"{seed} {len(patients)}").sample(patients, number))
    return sorted(patients, key=lambda p: -scores[p][strategy])[:number]


def run_name(seed: int, strategy: str, patients: int, first: int = 2) -> str:
    """Name of a round; the first one belongs to all strategies."""
    return f"seed{seed}_{'all' if patients == first else strategy}_{patients}"


def run(
    data: str,
    seeds: int = 3,
    rounds: int = 4,
    step: int = 2,
    strategies: Sequence[str] = STRATEGIES,
    splits: str = "",
    work: str = "",
    results: str = "",
    threads: int = 1,
    **settings: Any,
) -> None:
    """Simulate the annotation; goes on where an earlier call was interrupted.

    Args:
        data: folder with ``images`` and ``labels``.
        seeds: numbers 0 to this less one.
        rounds: trainings of each strategy and seed, the first included.
        step: patients annotated before the first round and before every further one.
        strategies: of random, entropy, disagreement.
        splits: JSON of patients; default ``configs/acdc_splits.json``.
        work: folder of the trainings; default ``benchmarks/runs/annotation``.
        results: folder of the results; default ``benchmarks/results/annotation``.
        threads: CPU threads of a training.
        settings: options of train.yaml, for instance ``--spatial_size 96``.
    """
    if unknown := set(strategies) - set(STRATEGIES):
        raise SystemExit(f"--strategies should be some of {', '.join(STRATEGIES)}, received {min(unknown)}.")
    split = common.read_splits(splits)
    folder = Path(work or ROOT / "benchmarks" / "runs" / "annotation").resolve()
    target = Path(results) if results else RESULTS
    target.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/annotation.py run --data DIR" + "".join(f" --{k} {v}" for k, v in settings.items())
    command += f" --rounds {rounds} --step {step}" if (rounds, step) != (4, 2) else ""
    pool: Pool | None = None
    for seed in range(seeds):
        first = sorted(random.Random(f"{seed} first").sample(sorted(split["training"]), step))
        for strategy in strategies:
            annotated, before = list(first), ""
            for number in range(rounds):
                name = run_name(seed, strategy, len(annotated), step)
                result = target / f"{name}.json"
                if not result.exists():
                    train(Path(data), split, annotated, before, folder / name, seed, threads, settings)
                    pool = pool or Pool(Path(data), split["training"], settings)
                    record = {
                        "name": name, "seed": seed, "strategy": "all" if number == 0 else strategy,
                        "patients": len(annotated), "annotated": annotated, "warm_start": before, "command": command,
                        **collect(folder / name), "scores": pool.scores(folder / name / "model_last.pt", annotated),
                    }  # fmt: skip
                    common.write_json(result, record)
                    print(f"{name}: mean Dice {record['last']['mean']['dice']:.4f}", flush=True)
                scores = json.loads(result.read_text())["scores"]
                before = name
                annotated = [*annotated, *choose(strategy, scores, min(step, len(scores)), seed)]


def train(
    data: Path,
    split: Mapping[str, Any],
    annotated: Sequence[str],
    before: str,
    folder: Path,
    seed: int,
    threads: int,
    settings: Mapping[str, Any],
) -> None:
    """One round, in a process of its own, as a user would start it."""
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted call
    folder.mkdir(parents=True)
    common.write_json(folder / "datalist.json", common.protocol_lists(data, split, annotated))
    common.note_start(folder)
    options = {
        "dataset_dir": data.resolve(), "datalist": folder / "datalist.json", "output_dir": folder,
        "seed": seed, **({"initial": folder.parent / before / "model_last.pt"} if before else {}), **settings,
    }  # fmt: skip
    common.run(common.command("training", FILES, **options), folder / "output.log", threads)


def collect(folder: Path) -> dict[str, Any]:
    """What a finished round left, for its result."""
    log = common.read_rows(folder / "training_log.csv")
    starts = json.loads((folder / "starts.json").read_text())
    training = json.loads((folder / "training.json").read_text())
    validations = sorted((folder / "validations").iterdir(), key=lambda p: int(p.name.split("_")[1]))
    return {
        "class_names": training["class_names"], "spatial_size": training["spatial_size"],
        "unlabeled_images": training["unlabeled_images"], "steps": int(log[-1]["iteration"]),
        "training_seconds": round(sum(float(row["seconds"]) for row in log), 1),
        "commit": sorted({s["commit"] for s in starts}), "changed_since_commit": any(s["changed"] for s in starts),
        "versions": common.versions(),
        "last": scores_of(validations[-1:]),
    }  # fmt: skip


def load(folder: Path = RESULTS) -> dict[tuple[str, int], dict[int, dict[str, Any]]]:
    """Results by strategy and number of annotated patients, then by seed; the first round stands with every strategy.

    Only seeds that every strategy has finished, so that all are compared on the same.
    """
    found: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("seed*.json")):
        record = json.loads(path.read_text())
        names = STRATEGIES if record["strategy"] == "all" else (record["strategy"],)
        for name in names:
            found.setdefault((name, record["patients"]), {})[record["seed"]] = record
    complete = set.intersection(*(set(seeds) for seeds in found.values())) if found else set()
    if not complete or len({name for name, _ in found}) < len(STRATEGIES):
        raise SystemExit(f"{folder}: no seed has every round of every strategy yet; go on with `run`.")
    return {key: {seed: seeds[seed] for seed in sorted(complete)} for key, seeds in found.items()}


def dice(record: Mapping[str, Any]) -> float:
    """Mean validation Dice of a round's last iteration."""
    return record["last"]["mean"]["dice"]


def table_lines(results: Mapping[tuple[str, int], Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """Mean Dice by number of patients, each seed behind it, and paired differences from ``random``."""
    numbers = sorted({n for _, n in results})
    rows = []
    for name in STRATEGIES:
        cells = [name]
        for n in numbers:
            values = [dice(r) for _, r in sorted(results[name, n].items())]
            each = f" ({', '.join(f'{v:.3f}' for v in values)})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.3f}{each}")
        rows.append(cells)
    pairs = []
    for name in STRATEGIES[1:]:
        for n in numbers[1:]:
            d = comparison.paired(list(results["random", n].values()), list(results[name, n].values()), "last")
            each = ", ".join(f"{v:+.3f}" for v in d["seeds"])
            pairs.append([name, "random", str(n), str(len(d["seeds"])), common.shown(d), each])
    head = ["strategy", "against", "patients", "seeds", "difference in Dice, 95 % interval", "each seed"]
    return [*markdown(["strategy", *(f"{n} patients" for n in numbers)], rows), "", *markdown(head, pairs)]


def draw(results: Mapping[tuple[str, int], Mapping[int, Mapping[str, Any]]], path: Path) -> None:
    """Mean validation Dice against annotated patients, a line a strategy, a dot a seed."""
    figure, ax = comparison.new_figure(7.5, 4.5)
    for name, marker in zip(STRATEGIES, "os^"):
        numbers = sorted(n for strategy, n in results if strategy == name)
        seeds = [sorted(results[name, n].items()) for n in numbers]
        means = [sum(dice(r) for _, r in group) / len(group) for group in seeds]
        (line,) = ax.plot(numbers, means, marker=marker, label=name)
        for n, group in zip(numbers, seeds):
            ax.plot([n] * len(group), [dice(r) for _, r in group], marker, ms=4, alpha=0.4, color=line.get_color())
    count = len(results["random", numbers[0]])
    ax.set(xlabel="annotated patients", ylabel="mean Dice, validation", xticks=numbers, ylim=(0, 1))
    if count > 1:
        ax.set_title(f"line: mean of {count} seeds; dot: a seed", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="lower right")
    comparison.save_figure(figure, path)


def report(page: str = "", results: str = "") -> None:
    """Write table and curve of a page from results, between its marks ``<!-- table -->``, ``<!-- curve -->``.

    Args:
        page: Markdown file; default ``benchmarks/ANNOTATION.md``.
        results: folder of the results; default ``benchmarks/results/annotation``.
    """
    path = Path(page) if page else ROOT / "benchmarks" / "ANNOTATION.md"
    text = fill(path.read_text(), Path(results) if results else RESULTS, path.parent / "figures")
    path.write_text(text)


def fill(text: str, folder: Path, figures: Path | None = None) -> str:
    """A page with its marked parts made anew; without ``figures`` no picture is drawn."""
    results = load(folder)
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        draw(results, figures / "annotation.png")
    parts = {"table": "\n".join(table_lines(results)), "curve": f"![{CAPTION}](figures/annotation.png)"}
    return common.fill(text, lambda kind, *_: parts[kind])


CAPTION = "Validation Dice against annotated patients"


if __name__ == "__main__":
    import fire

    fire.Fire({"run": run, "report": report})
