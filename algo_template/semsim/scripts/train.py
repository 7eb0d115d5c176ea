"""Training of one fold: ``python scripts/train.py run [--key=value]``, also under torchrun.

``configs/train.yaml`` of this folder below ``configs/hyper_parameters.yaml``; a key on the command line overrides both.
Leaves ``model_best.pt``, ``model_last.pt``, ``scores.csv`` (every validation case, best weights) and ``progress.yaml``
in ``model_fold<fold>``, and goes on from the newest checkpoint there.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
logger = logging.getLogger("semsim")


class Progress:
    """``progress.yaml``: an entry a validation, the last one with the best score so far, as AutoRunner reads it."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: file to write; one of an earlier process is continued.
        """
        self.path = path
        self.entries: list[dict[str, Any]] = yaml.safe_load(path.read_text()) if path.exists() else []

    def note(self, epoch: int, score: float) -> None:
        """Add the mean Dice of a validation. A score that is no number counts as 0."""
        score = score if math.isfinite(score) else 0.0
        self.entries = [entry for entry in self.entries if entry["epoch"] < epoch]
        best = max([*self.entries, {"epoch": epoch, "avg_dice_score": score}], key=lambda e: e["avg_dice_score"])
        self.entries.append(
            {
                "epoch": epoch,
                "avg_dice_score": score,
                "best_avg_dice_score": best["avg_dice_score"],
                "best_avg_dice_score_epoch": best["epoch"],
            }
        )
        part = self.path.with_suffix(".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(yaml.safe_dump(self.entries, sort_keys=False))
        part.replace(self.path)


def parse(value: Any) -> Any:
    """A list that arrives as the string ``"16,16"`` (or as a tuple) becomes one."""
    if isinstance(value, str) and "," in value:
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return list(value) if isinstance(value, tuple) else value


def own_algo() -> Any:
    """``algo.py`` beside this file, under a name that nothing else has."""
    spec = importlib.util.spec_from_file_location("semsim_own_algo", Path(__file__).with_name("algo.py"))
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def overrides_of(given: dict[str, Any], known: Any) -> dict[str, Any]:
    """Keys of the configuration that a command line sets; what it does not know is named and left out."""
    aliases = own_algo().ALIASES
    overrides = {aliases.get(key, key): parse(value) for key, value in given.items()}
    unknown = sorted(key for key in overrides if key not in known)
    if unknown:
        logger.warning(f"SemSim has no key {', '.join(unknown)}; ignored.")
    overrides = {key: value for key, value in overrides.items() if key not in unknown}
    if "ckpt_path" in overrides:
        overrides["output_dir"] = overrides["ckpt_path"]
    return overrides


def run(config_file: Any = None, **override: Any) -> None:
    """Train this fold.

    Args:
        config_file: as MONAI passes it; the files of this folder are taken by name in their right order.
        override: keys of the configuration.
    """
    sys.path[0] = str(ROOT)  # `scripts` is this folder's package, and its modules are no top-level ones
    from monai.bundle import ConfigParser, ConfigWorkflow

    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    configs = ROOT / "configs"
    files = [str(configs / f"{name}.yaml") for name in ("train", "hyper_parameters")]
    files += [str(configs / "multi_gpu_train.yaml")] if several else []
    known = ConfigParser()
    known.read_config(files)
    overrides = {**overrides_of(override, known), "bundle_root": str(ROOT)}
    known.update(overrides)
    overrides |= unlabeled_list(known)

    from scripts.errors import one_line_errors

    one_line_errors()
    workflow = ConfigWorkflow(files, workflow_type="train", init_id="initialize", run_id="training",
                              final_id="finalize", **overrides)  # fmt: skip
    workflow.initialize()
    parser = workflow.parser
    folder = Path(parser.get_parsed_content("output_dir"))
    main = parser.get_parsed_content("rank") == 0
    progress = Progress(folder / "progress.yaml")
    if main:
        from ignite.engine import Events

        evaluator = parser.get_parsed_content("validate#evaluator")
        evaluator.add_event_handler(
            Events.COMPLETED, lambda e: progress.note(e.state.epoch, float(e.state.metrics["val_mean_dice"]))
        )
        keep_settings(folder, overrides)
    workflow.run()
    if main:
        finish(parser, folder, progress, overrides)
    workflow.finalize()


def keep_settings(folder: Path, overrides: dict[str, Any]) -> None:
    """``hyper_parameters.yaml`` as trained, command line included, beside the weights: prediction reads it."""
    tuned = yaml.safe_load((ROOT / "configs" / "hyper_parameters.yaml").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hyper_parameters.yaml").write_text(yaml.safe_dump({**tuned, **overrides}, sort_keys=False))


def unlabeled_list(parser: Any) -> dict[str, Any]:
    """Which list the unlabelled images come from, said in the log."""
    content = parser.load_config_file(str(parser.get_parsed_content("data_list_file_path")))
    key, asked = parser["unlabeled_key"], bool(parser["use_testing_as_unlabeled"])
    if content.get(key):
        logger.info(f"{len(content[key])} unlabelled images from the list `{key}`.")
        return {}
    if content.get("testing") and asked:
        logger.info(f"{len(content['testing'])} images of `testing` as unlabelled ones (use_testing_as_unlabeled).")
        return {"unlabeled_key": "testing"}
    hint = (
        "; the images of `testing` are left out unless use_testing_as_unlabeled: true" if "testing" in content else ""
    )
    logger.warning(f"Supervised training: the datalist has no images in `{key}`{hint}.")
    return {}


def finish(parser: Any, folder: Path, progress: Progress, overrides: dict[str, Any]) -> None:
    """Score every validation case with the best weights; without validation say so with a score of zero."""
    if not len(parser.get_parsed_content("validate#dataset#data")):
        logger.warning("No case of this fold validates: its score counts as 0 in an ensemble.")
        progress.note(int(parser.get_parsed_content("epochs")), 0.0)
        return
    from monai.bundle import ConfigWorkflow

    configs = ROOT / "configs"
    files = [str(configs / f"{name}.yaml") for name in ("train", "hyper_parameters", "evaluate")]
    kept = {k: v for k, v in overrides.items() if k not in ("ckpt_path", "resume")}
    evaluation = ConfigWorkflow(files, workflow_type="train", init_id="initialize", run_id="evaluating",
                                final_id="finalize", **kept, evaluate_list="validation")  # fmt: skip
    evaluation.initialize()
    evaluation.run()
    evaluation.finalize()
    logger.info(f"Mean Dice {progress.entries[-1]['best_avg_dice_score']:.4f} (best validation) -> {folder}")


if __name__ == "__main__":
    import fire

    logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
    fire.Fire({"run": run})
