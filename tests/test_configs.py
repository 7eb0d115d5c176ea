"""Every shipped YAML runs for real, overriding only paths, sizes and epochs; commands work as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, ROOT, config_args
from helpers import CONFIGS, TRAINING_OVERLAYS, read_rows, workflow
from scripts.method.network import SegmentationNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OWN_TEST = {"train", "evaluate", "inference"}
#: of benchmarks: run by test_accuracy.py, and plans whose entries it checks
ACCURACY = {"accuracy.yaml", "changes.yaml", "table.yaml", "weights.yaml", "acdc.yaml", "la.yaml", "la_table.yaml",
            "patches.yaml"}  # fmt: skip
#: of benchmarks: run by test_annotation.py
ANNOTATION = {"annotation.yaml"}
#: run by test_docs.py, as the README writes it
DOCS_TEST = {"multi_gpu_evaluate", "multi_gpu_train"}
#: run by test_releases.py, from the files of each benchmark
RELEASES_TEST = {"acdc", "isic", "promise12"}
SMALL = ("--epochs", "1", "--spatial_size", "32")


def data_args(phantom: Path, output: Path) -> list[str]:
    return ["--dataset_dir", str(phantom), "--datalist", str(phantom / "datalist.json"), "--output_dir", str(output)]


@pytest.fixture(scope="module")
def trained(phantom_dir, tmp_path_factory) -> Path:
    """Output folder of one epoch of SemSim- on the small phantom."""
    output = tmp_path_factory.mktemp("trained")
    workflow(
        "train", "train", "semsim_minus", dataset_dir=str(phantom_dir), output_dir=str(output), epochs=1,
        spatial_size=32, val_interval=1,
    ).run()  # fmt: skip
    return output


def test_every_yaml_is_run_by_a_test():
    assert {p.stem for p in CONFIGS.glob("*.yaml")} == {*TRAINING_OVERLAYS, *OWN_TEST, *DOCS_TEST, *RELEASES_TEST}
    assert {p.name for p in (ROOT / "benchmarks" / "configs").glob("*.yaml")} == {*ACCURACY, *ANNOTATION}


def test_every_yaml_opens_with_its_purpose_and_its_command():
    for path in (*CONFIGS.glob("*.yaml"), *(ROOT / "benchmarks" / "configs").glob("*.yaml")):
        head = path.read_text().split("\n\n")[0]
        known = path.name in (*ACCURACY, *ANNOTATION) or "python -m " in path.read_text()
        assert head.startswith("# ") and known, path.name


@pytest.mark.parametrize("size", [32, 64, 224])
def test_labelled_slices_stay_in_the_picture(size):
    """However small slices are, augmentation leaves most of what lies in their middle."""
    flow = workflow("train", "train", spatial_size=size, dataset_dir="/none", output_dir="/none")
    transform = flow.parser.get_parsed_content("train#labeled_augmentation")
    transform.set_random_state(0)
    label = torch.zeros(1, size, size)
    label[:, size // 3 : -size // 3, size // 3 : -size // 3] = 1
    left = [transform({"image": label.clone(), "label": label.clone()})["label"].sum() / label.sum() for _ in range(60)]
    assert min(left) > 0.15 and np.mean(left) > 0.7


@pytest.mark.parametrize("run_id", ["training", None])
def test_training_by_command(run_bundle, phantom_dir, tmp_path, run_id):
    """`python -m monai.bundle run training --config_file configs/train.yaml`, and with `run` as run id."""
    ids = [run_id] if run_id else []
    result = run_bundle(
        "run", *ids, *config_args("train"), *data_args(phantom_dir, tmp_path), *SMALL, "--val_interval", "1",
        fresh=bool(run_id),
    )  # fmt: skip
    log = read_rows(tmp_path / "training_log.csv")
    assert len(log) == 1 and int(log[0]["iteration"]) >= 2
    for name in (
        "loss",
        "loss_s",
        "loss_u",
        "loss_intra",
        "loss_cross",
        "mask_u",
        "mask_intra",
        "mask_cross",
        "learning_rate",
    ):
        assert np.isfinite(float(log[0][name])), name
    for name in ("model_best.pt", "model_last.pt", "resume_checkpoint_1.pt", "validation_log.csv", "training.json"):
        assert (tmp_path / name).is_file(), name
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert {"loss", "loss_s", "loss_cross", "mask_u"} <= {tag.rsplit("/", 1)[-1] for tag in tags}, tags
    state = torch.load(tmp_path / "model_last.pt", weights_only=True)
    assert any(k.startswith("fusion.attention") for k in state), "the shipped default is SemSim with its SFM"
    settings = json.loads((tmp_path / "training.json").read_text())
    assert settings["labeled_cases"] == ["patient000"] and settings["spatial_size"] == 32
    output = result.stdout + result.stderr
    assert "left for 1 epochs" in output, "says in its first minute how long it will take"
    assert "Traceback" not in output


def test_options_of_the_command_line_from_any_folder(run_bundle, phantom_dir, tmp_path):
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "labeled_only")]
    run_bundle(
        "run", "training", "--config_file", str(files), "--bundle_root", str(BUNDLE), *data_args(phantom_dir, tmp_path),
        "--epochs", "2", "--spatial_size", "[32,48]", "--batch_size", "4", "--device", "cpu", "--seed", "5",
        "--num_workers", "1", cwd=tmp_path,
    )  # fmt: skip
    settings = json.loads((tmp_path / "training.json").read_text())
    assert settings["epochs"] == 2 and settings["seed"] == 5 and settings["batch_size"] == 4
    assert settings["spatial_size"] == [32, 48]
    log = read_rows(tmp_path / "training_log.csv")
    assert len(log) == 2 and int(log[1]["iteration"]) == 2 * settings["steps_per_epoch"]
    assert float(log[1]["learning_rate"]) == pytest.approx(0, abs=1e-9), "the schedule ends with the last epoch"
    assert "loss_u" not in log[0]


@pytest.mark.parametrize("overlay", TRAINING_OVERLAYS)
def test_overlays_train(overlay, phantom_dir, tmp_path):
    files = ["train", overlay]
    workflow(
        "train", *files, dataset_dir=str(phantom_dir), output_dir=str(tmp_path), epochs=1, spatial_size=32
    ).run()  # fmt: skip
    log = read_rows(tmp_path / "training_log.csv")[0]
    assert int(log["iteration"]) >= 2
    expected = {"loss_s"} if overlay == "labeled_only" else {"loss_s", "loss_u"}
    similar = overlay in ("demo", "literal", "paper", "semsim_minus", "volumes")
    if similar:
        expected |= {"loss_intra", "loss_cross"}
    if overlay == "literal":
        assert float(log["loss_cross"]) == float(log["mask_cross"]) == 0
    assert {k for k in log if k.startswith("loss_")} == expected
    has_fusion = any(k.startswith("fusion.") for k in torch.load(tmp_path / "model_last.pt", weights_only=True))
    assert has_fusion == similar


def test_without_validation_or_unlabelled_images(phantom_dir, tmp_path, caplog):
    datalist = json.loads((phantom_dir / "datalist.json").read_text())
    (tmp_path / "d.json").write_text(json.dumps({key: datalist[key] for key in ("labels", "training")}))
    flow = workflow(
        "train", "train", dataset_dir=str(phantom_dir), datalist=str(tmp_path / "d.json"), output_dir=str(tmp_path),
        epochs=2, spatial_size=32, batch_size=2, val_interval=1,
    )  # fmt: skip
    with caplog.at_level("WARNING"):
        flow.run()
    assert "supervised training" in caplog.text
    assert (tmp_path / "model_last.pt").exists() and not (tmp_path / "model_best.pt").exists()


def test_evaluation_by_command(run_bundle, phantom_dir, trained):
    run_bundle("run", *config_args("train", "evaluate"), *data_args(phantom_dir, trained))
    table = read_rows(trained / "scores.csv")
    assert len(table) == 2 * 3 and {r["unit"] for r in table} == {"mm"}
    assert {r["class"] for r in table} == {"right ventricle", "myocardium", "left ventricle"}
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["cases"] == 2 and scores["list"] == "testing" and scores["weights"].endswith("model_best.pt")
    assert scores["distance_unit"] == "mm" and "not counted" in scores["empty_rule"]
    assert 0 <= scores["mean"]["dice"] <= 1
    mean = np.mean([float(r["dice"]) for r in table if r["class"] == "myocardium"])
    assert scores["classes"]["myocardium"]["dice"] == pytest.approx(mean, abs=1e-4)


def score_of_answers(phantom_dir, output_dir, island: bool = False, **options) -> dict:
    """The whole evaluation, resampling there and back included, of a network that knows the answer.

    With ``island`` it also sees the first class in a corner of the first slice.
    """
    flow = workflow(
        "train", "train", "evaluate", dataset_dir=str(phantom_dir), output_dir=str(output_dir),
        ckpt_path=str(BUNDLE / "models" / "model.pt"), spatial_size=160, flip_tta=False, **options,
    )  # fmt: skip
    flow.parser.get_parsed_content("validate#dataset")
    evaluator = flow.parser.get_parsed_content("validate#evaluator")
    dataset = flow.parser.get_parsed_content("validate#dataset")
    grid = dataset.transform.transforms[-1].grids["image"]
    answers = []
    for item in dataset.data:
        label = dataset.transform.transforms[0](dict(item))["label"][None]
        grid.mode = "nearest"
        answers.append(grid(label)[0].long().as_tensor())
        grid.mode = "bilinear"
        if island:
            answers[-1][30:42, 30:42, 0] = 1
    turn = iter(torch.cat(answers, dim=-1).movedim(-1, 0).split(1))

    class Knows(torch.nn.Module):
        def forward(self, slices: torch.Tensor) -> torch.Tensor:
            answer = torch.cat([next(turn) for _ in slices])
            return torch.nn.functional.one_hot(answer, 4).movedim(-1, 1).float() * 50

    evaluator.network = Knows()
    evaluator.run()
    return json.loads((output_dir / "scores.json").read_text())


def test_perfect_predictions_score_one(phantom_dir, tmp_path):
    scores = score_of_answers(phantom_dir, tmp_path)
    assert scores["mean"]["dice"] > 0.96 and scores["mean"]["hd95"] < 2.5


def test_the_largest_piece_is_scored_where_asked(phantom_dir, tmp_path):
    clean = score_of_answers(phantom_dir, tmp_path)
    island = score_of_answers(phantom_dir, tmp_path, island=True, keep_largest=False)
    kept = score_of_answers(phantom_dir, tmp_path, island=True, keep_largest=True)
    first, *others = clean["classes"]
    assert island["classes"][first]["hd95"] > clean["classes"][first]["hd95"] + 10
    assert kept["classes"][first]["hd95"] == pytest.approx(clean["classes"][first]["hd95"], abs=0.5)
    assert kept["classes"][first]["dice"] == pytest.approx(clean["classes"][first]["dice"], abs=0.01)
    assert kept["keep_largest"] and not island["keep_largest"]
    assert all(island["classes"][c] == kept["classes"][c] == clean["classes"][c] for c in others)


def test_inference_by_command(run_bundle, phantom_dir, trained, tmp_path):
    images = tmp_path / "scans"
    (images / "visit2").mkdir(parents=True)
    source = sorted((phantom_dir / "images").iterdir())
    shutil.copy(source[0], images / "a.nii.gz")
    shutil.copy(source[1], images / "visit2" / "a2.nii.gz")
    before = {p: p.read_bytes() for p in images.rglob("*.nii.gz")}
    out = tmp_path / "out"
    run_bundle("run", *config_args("inference"), "--dataset_dir", str(images), "--output_dir", str(out),
               "--ckpt_path", str(trained / "model_best.pt"), fresh=True)  # fmt: skip
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*.nii.gz"))
    assert found == ["a_seg.nii.gz", "visit2/a2_seg.nii.gz"]
    for name, original in (
        ("a_seg.nii.gz", images / "a.nii.gz"),
        ("visit2/a2_seg.nii.gz", images / "visit2/a2.nii.gz"),
    ):
        image, label = nib.load(original), nib.load(out / name)
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
        assert set(np.unique(label.dataobj)) <= {0, 1, 2, 3}
    assert before == {p: p.read_bytes() for p in images.rglob("*.nii.gz")}


def test_inference_of_pictures(tmp_path, caplog):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(folder / "p.png")
    network = SegmentationNet(in_channels=3, out_channels=2)
    torch.nn.init.constant_(network.backbone.final_conv.bias[1:], 99.0)  # all is lesion
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "training.json").write_text(json.dumps({"label_values": [0, 255]}))
    caplog.set_level("INFO")
    workflow(
        "infer", "inference", dataset_dir=str(folder), output_dir=str(tmp_path / "out"), output_ext=".png",
        ckpt_path=str(tmp_path / "model.pt"), in_channels=3, class_names=["background", "lesion"], spatial_size=64,
    ).run()  # fmt: skip
    with Image.open(tmp_path / "out" / "p_seg.png") as predicted:
        assert predicted.size == (70, 50) and predicted.getextrema() == (255, 255)
    assert "Predictions hold 0 for background, 255 for lesion." in caplog.text
    assert f"1 of 1 images predicted into {tmp_path / 'out'}." in caplog.text


def test_properties_are_as_monai_wants_them(phantom_dir, tmp_path):
    for kind, name in (("train", "train"), ("infer", "inference")):
        flow = workflow(kind, name, dataset_dir=str(phantom_dir), output_dir=str(tmp_path))
        assert flow.check_properties() == [], kind


def test_a_bad_metadata_file_is_refused(run_bundle, tmp_path):
    content = json.loads((CONFIGS / "metadata.json").read_text())
    del content["task"]
    (tmp_path / "bad.json").write_text(json.dumps(content))
    result = run_bundle("verify_metadata", "--meta_file", str(tmp_path / "bad.json"), "--filepath",
                        "docs/meta_schema_20240725.json", check=False)  # fmt: skip
    assert result.returncode != 0 and "task" in result.stdout + result.stderr


def test_shipped_weights_are_small_and_segment_the_phantom(tmp_path):
    """models/model.pt is what inference starts with: under 12 MB, and clearly better than chance on fresh patients."""
    from scripts.dataio import phantom

    assert (BUNDLE / "models" / "model.pt").stat().st_size < 12e6
    phantom.generate(tmp_path / "p", seed=0, split={"training": 0, "unlabeled": 0, "validation": 0, "testing": 0})
    shutil.rmtree(tmp_path / "p")
    data = phantom.generate(tmp_path / "p", seed=123, split={"testing": 3})
    workflow("train", "train", "evaluate", dataset_dir=str(data), output_dir=str(tmp_path / "out")).run()
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["weights"].endswith("models/model.pt") and scores["mean"]["dice"] > 0.5


@pytest.mark.parametrize(
    "spoil, expected",
    [
        ("missing", r"patient000.nii.gz: no such image"),
        ("nan", "expected finite intensities"),
        ("values", "expected label values 0 to 3"),
        ("shape", "label has shape"),
        ("nolabels", "no labelled case"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(run_bundle, tmp_path, spoil, expected):
    from scripts.dataio import phantom

    data = phantom.generate(tmp_path / "p", seed=1, split={"training": 1, "unlabeled": 1})
    image, label = data / "images/patient000.nii.gz", data / "labels/patient000.nii.gz"
    volume = nib.load(label)
    array = np.asarray(volume.dataobj)
    if spoil == "missing":
        image.unlink()
    if spoil == "nan":
        nib.save(nib.Nifti1Image(np.full(array.shape, np.nan, np.float32), volume.affine), image)
    if spoil == "values":
        nib.save(nib.Nifti1Image(array + 3, volume.affine), label)
    if spoil == "shape":
        nib.save(nib.Nifti1Image(array[:-1], volume.affine), label)
    if spoil == "nolabels":
        content = json.loads((data / "datalist.json").read_text())
        (data / "datalist.json").write_text(json.dumps({**content, "training": []}))
    out = tmp_path / "out"
    result = run_bundle(
        "run", "training", *config_args("train"), *data_args(data, out), *SMALL, "--batch_size", "2", check=False
    )
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    assert len(lines) == 1 and expected in lines[0], result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    assert not out.exists() or not list(out.rglob("*.pt"))


def test_the_package_carries_scripts_and_configs():
    """`semsim_bundle` is the bundle's folder: one copy of the source."""
    import importlib.resources
    import importlib.util

    trainer = importlib.util.find_spec("semsim_bundle.scripts.training.trainer")
    assert Path(trainer.origin) == BUNDLE / "scripts" / "training" / "trainer.py"
    assert (importlib.resources.files("semsim_bundle") / "configs" / "train.yaml").is_file()
    assert importlib.util.find_spec("semsim") is None, "that name belongs to the Auto3DSeg template"


def test_versions_agree():
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert metadata["version"] == version and version in metadata["changelog"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    names = yaml.safe_load((CONFIGS / "train.yaml").read_text())["class_names"]["default"]
    assert list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()) == names
