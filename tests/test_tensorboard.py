"""What a training step sees, in TensorBoard."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers import workflow
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def pictures(folder) -> dict[str, list[tuple[int, np.ndarray]]]:
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: [(e.step, np.asarray(Image.open(io.BytesIO(e.encoded_image_string))).astype(int))
                  for e in events.Images(tag)] for tag in events.Tags()["images"]}  # fmt: skip


def train(phantom_dir, output, *overlays, **options):
    flow = workflow("train", "train", *overlays, dataset_dir=str(phantom_dir), output_dir=str(output), spatial_size=32,
                    batch_size=4, show_progress=False, **options)  # fmt: skip
    flow.run()
    return flow.parser.get_parsed_content("train#trainer")


def test_five_columns_every_interval(phantom_dir, tmp_path):
    trainer = train(phantom_dir, tmp_path, "semsim_minus", epochs=4, val_interval=2, **{"cutmix#prob": 1.0})
    ((tag, shown),) = pictures(tmp_path / "tensorboard").items()
    assert tag == "image, strong view, pseudo-label, mask, prediction" and [step for step, _ in shown] == [2, 4]
    picture = shown[0][1]
    assert picture.shape == (4 * 32, 5 * 32, 3), "four slices, five columns"
    weak, strong, pseudo, mask, predicted = np.split(picture, 5, axis=1)
    assert np.ptp(weak, axis=-1).max() <= 1 and np.abs(weak - strong).mean() > 5, "the strong view differs"
    assert set(np.unique(mask)) <= {0, 255} and np.ptp(np.stack([pseudo, predicted]), axis=-1).max() > 60
    assert trainer.state.views is None, "nothing of a step is kept"


def test_labeled_only_shows_image_label_and_prediction(phantom_dir, tmp_path):
    train(phantom_dir, tmp_path, "labeled_only", epochs=1, val_interval=5)
    ((tag, shown),) = pictures(tmp_path / "tensorboard").items()
    assert tag == "image, label, prediction" and shown[0][1].shape == (128, 96, 3)


def test_tracking_with_mlflow(run_bundle, phantom_dir, tmp_path):
    """`--tracking mlflow` records losses and validation scores; here in a SQLite file of one's own."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/track.db"
    result = run_bundle(
        "run", "training", "--config_file", "['configs/train.yaml','configs/semsim_minus.yaml']", "--dataset_dir",
        str(phantom_dir), "--datalist", str(phantom_dir / "datalist.json"), "--output_dir", str(tmp_path / "out"),
        "--epochs", "1", "--val_interval", "1", "--spatial_size", "32", "--tracking", "mlflow", "--tracking_uri", uri,
    )  # fmt: skip
    (run,) = mlflow.MlflowClient(tracking_uri=uri).search_runs(["1"])
    assert run.info.status == "FINISHED" and "val_mean_dice" in run.data.metrics
    assert np.isfinite(run.data.metrics["train_loss"])
    for name in ("Reading volumes", "Training", "Validating"):
        assert name in result.stderr, "a progress bar each"
