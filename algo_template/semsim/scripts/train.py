"""Training of one fold: ``python scripts/train.py run [--key=value]``, also under torchrun.

``configs/train.yaml`` of this folder, in 3D below ``configs/volumes.yaml``, below ``configs/hyper_parameters.yaml``; a
key on the command line overrides them all.
Leaves ``model_best.pt``, ``model_last.pt``, ``scores.csv`` (every validation case, best weights), ``training.log`` and
``progress.yaml`` in ``model_fold<fold>``, and goes on from the newest checkpoint there.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
logger = logging.getLogger("semsim")
FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


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
        self.entries = [{k: v for k, v in e.items() if k != "finished"} for e in self.entries if e["epoch"] < epoch]
        best = max([*self.entries, {"epoch": epoch, "avg_dice_score": score}], key=lambda e: e["avg_dice_score"])
        self.entries.append(
            {
                "epoch": epoch,
                "avg_dice_score": score,
                "best_avg_dice_score": best["avg_dice_score"],
                "best_avg_dice_score_epoch": best["epoch"],
            }
        )
        self._write()

    def finish(self) -> None:
        """Mark the training as finished: until then AutoRunner goes on with it."""
        self.entries[-1]["finished"] = True
        self._write()

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(yaml.safe_dump(self.entries, sort_keys=False))
        part.replace(self.path)


def run(config_file: Any = None, **override: Any) -> None:
    """Train this fold.

    Args:
        config_file: as MONAI passes it; the files of this folder are taken by name in their right order.
        override: keys of the configuration.
    """
    sys.path[0] = str(ROOT)  # `scripts` is this folder's package, and its modules are no top-level ones
    from monai.bundle import ConfigParser

    from scripts.errors import InputError, explain, one_line_errors
    from scripts.options import one_length, understood

    one_line_errors()
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    files = configurations(*(["multi_gpu_train"] if several else []))
    known = ConfigParser()
    known.read_config(files)
    known["bundle_root"] = str(ROOT)
    folder = Path(known.get_parsed_content("output_dir"))
    if int(os.environ.get("RANK", 0)) == 0:
        keep_log(folder)
    try:
        try:
            given = one_length(understood(override, known, source="command line"))
            overrides = {**given, "bundle_root": str(ROOT)}
        except ValueError as error:
            raise InputError(str(error)) from None
        for key, given in (("datalist", "data_list_file_path"), ("dataset_dir", "data_file_base_dir")):
            if given in overrides:  # as it stands
                overrides[key] = overrides[given]
        known.update(overrides)
        overrides |= unlabeled_list(known)
        train(files, folder, overrides)
    except BaseException as error:
        logger.error(f"The training ended early: {explain(error) or repr(error)}")
        raise


def configurations(*further: str) -> list[str]:
    """Files of the configuration of this fold, and further ones of this folder, each an overlay of those before."""
    from scripts.options import layers

    configs = ROOT / "configs"
    tuned = yaml.safe_load((configs / "hyper_parameters.yaml").read_text())
    return [str(configs / f"{name}.yaml") for name in (*layers(tuned.get("spatial_dims")), *further)]


def train(files: list[str], folder: Path, overrides: dict[str, Any]) -> None:
    """Train with the configuration in ``files``; score the validation cases at the end."""
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(files, workflow_type="train", init_id="initialize", run_id="training",
                              final_id="finalize", **overrides)  # fmt: skip
    workflow.initialize()
    workflow.run_id = "begin"  # the checks of options, before the trainer is made of them
    workflow.run()
    workflow.run_id = "training"
    parser = workflow.parser
    progress = Progress(folder / "progress.yaml")
    main = parser.get_parsed_content("rank") == 0
    if main:
        parser.get_parsed_content("validate#evaluator").add_event_handler(
            Events.COMPLETED, lambda e: progress.note(e.state.epoch, float(e.state.metrics["val_mean_dice"]))
        )
        # after the handlers of the configuration, which refuse a restart with other settings
        trainer = parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.STARTED, lambda: keep_settings(folder, overrides))
    workflow.run()
    workflow.finalize()
    if main:  # alone: the processes have parted
        finish(parser, folder, progress, overrides)


def keep_log(folder: Path) -> None:
    """Log to ``training.log``, too: AutoRunner keeps to itself what a training prints."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / "training.log")
    file.setFormatter(logging.Formatter(FORMAT))
    logging.getLogger().addHandler(file)


def keep_settings(folder: Path, overrides: dict[str, Any]) -> None:
    """``hyper_parameters.yaml`` as trained, command line included, beside the weights: prediction reads it."""
    tuned = yaml.safe_load((ROOT / "configs" / "hyper_parameters.yaml").read_text())
    (folder / "hyper_parameters.yaml").write_text(yaml.safe_dump({**tuned, **overrides}, sort_keys=False))


def unlabeled_list(parser: Any) -> dict[str, Any]:
    """Which list the unlabelled images come from, said in the log."""
    from scripts.dataio.datalist import read_datalist

    datalist, folder = (parser.get_parsed_content(k) for k in ("datalist", "dataset_dir"))
    logger.info(f"Datalist {datalist}, files in {folder}.")
    key, outside = parser["unlabeled_key"], parser["allow_outside"]
    if found := read_datalist(datalist, folder, "unlabeled", unlabeled_key=key, allow_outside=outside):
        logger.info(f"{len(found)} unlabelled images from the list `{key}`.")
        return {}
    testing = read_datalist(datalist, folder, "testing", allow_outside=outside)
    if testing and parser["use_testing_as_unlabeled"]:
        logger.info(f"{len(testing)} images of `testing` as unlabelled ones (use_testing_as_unlabeled).")
        return {"unlabeled_key": "testing"}
    hint = "; the images of `testing` are left out unless use_testing_as_unlabeled: true" if testing else ""
    logger.warning(f"Supervised training: the datalist has no images in `{key}`{hint}.")
    return {}


def finish(parser: Any, folder: Path, progress: Progress, overrides: dict[str, Any]) -> None:
    """Score every validation case with the best weights; without validation say so with a score of zero."""
    if not len(parser.get_parsed_content("validate#dataset#data")):
        logger.warning("No case of this fold validates: its score counts as 0 in an ensemble.")
        progress.note(int(parser.get_parsed_content("train#trainer").state.max_epochs), 0.0)
        progress.finish()
        return
    from monai.bundle import ConfigWorkflow

    files = configurations("evaluate")
    kept = {k: v for k, v in overrides.items() if k != "resume"}
    evaluation = ConfigWorkflow(files, workflow_type="train", init_id="initialize", run_id="evaluating",
                                final_id="finalize", **kept, evaluate_list="validation")  # fmt: skip
    evaluation.initialize()
    evaluation.run()
    evaluation.finalize()
    progress.finish()
    logger.info(f"Mean Dice {progress.entries[-1]['best_avg_dice_score']:.4f} (best validation) -> {folder}")


if __name__ == "__main__":
    import fire

    logging.basicConfig(level=logging.INFO, format=FORMAT)
    fire.Fire({"run": run})
