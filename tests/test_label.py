"""The bundle inside MONAI Label, without MONAI Label: what its environment changes, and that nothing else does."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import assemble
import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, ROOT
from monai.bundle import ConfigParser, ConfigWorkflow
from samples import blob, write_nifti
from scripts.errors import InputError
from scripts.hosts import monai_label as label
from scripts.training import settings
from scripts.training.weights import noted

#: settings of the weights in models
SHIPPED = json.loads((BUNDLE / "models" / "training.json").read_text())


def digest(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def studies(phantom_dir, tmp_path) -> Path:
    """A datastore as MONAI Label keeps it: five images, one with a final label, one with a draft."""
    folder = tmp_path / "studies"
    folder.mkdir()
    objects = {}
    for number, source in enumerate(sorted((phantom_dir / "images").iterdir())[:5]):
        shutil.copy(source, folder)
        labels = {0: {"final": {"ext": ".nii.gz"}}, 1: {"original": {"ext": ".nii.gz"}}}.get(number, {})
        objects[source.name.removesuffix(".nii.gz")] = {"image": {"ext": ".nii.gz", "info": {}}, "labels": labels}
    objects["gone"] = {"image": {"ext": ".nii.gz"}, "labels": {}}
    objects["notes"] = {"image": {"ext": ".xml"}, "labels": {}}
    (folder / "notes.xml").write_text("<a/>")
    (folder / label.BOOKS).write_text(json.dumps({"images_dir": ".", "objects": objects}))
    return folder


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle copied as the app copies it."""
    return assemble.assemble(tmp_path / "app") / "model" / "semsim"


def workflow(bundle: Path, *, inside: bool = False, kind: str = "train", **override) -> ConfigWorkflow:
    config = bundle / "configs" / f"{kind}.json" if inside else BUNDLE / "configs" / "train.yaml"
    given = {"train#trainer#max_epochs": 1, "steps_per_epoch": 2, **override}
    return ConfigWorkflow(
        str(config), meta_file=None, logging_file=False, workflow_type="train", bundle_root=str(bundle), **given
    )


def test_unlabelled_images_of_a_datastore(studies, caplog):
    found = label.unlabeled_of(studies)
    assert [Path(item["image"]).name for item in found] == [f"patient{n:03d}.nii.gz" for n in range(1, 5)]
    assert {item["stream"] for item in found} == {"unlabeled"} and Path(found[0]["image"]).is_absolute()
    assert label.unlabeled_of("https://archive.example.org/dicom-web") == []
    assert "without unlabelled images" in caplog.text
    (studies / label.BOOKS).write_text("{")
    with pytest.raises(InputError, match=r"datastore_v2\.json.*move the file elsewhere"):
        label.unlabeled_of(studies)


def test_the_assembled_app_has_what_monai_label_needs(monkeypatch, studies, bundle, phantom_dir):
    """Its train.json and inference.json: no lists of their own, the settings of the weights, a new folder each time."""
    train, inference = (ConfigParser(ConfigParser.load_config_file(bundle / "configs" / f"{kind}.json"))
                        for kind in ("train", "inference"))  # fmt: skip
    for parser in (train, inference):
        parser["bundle_root"] = str(bundle)
    names = ("spatial_size", "class_names", "fusion", "features", "in_channels")
    known = {**settings.REPEATED, **SHIPPED}
    assert {name: train.get_parsed_content(name) for name in names} == {name: known[name] for name in names}
    assert train.get_parsed_content("train#unlabeled_dataset#data") == [], "outside of a server there are none"
    monkeypatch.setenv(label.STUDIES, str(studies))
    train.ref_resolver.reset()
    assert len(train.get_parsed_content("train#unlabeled_dataset#data")) == 4
    assert train.get_parsed_content("validate#dataset#data") == inference.get_parsed_content("images") == []
    assert Path(train.get_parsed_content("output_dir")).name.startswith("label_")
    assert train.get_parsed_content("dataset_dir") == str(bundle) and not (bundle / "data").exists()
    yaml_of = {
        kind: ConfigParser.load_config_file(BUNDLE / "configs" / f"{kind}.yaml") for kind in ("train", "inference")
    }
    assert yaml_of["train"]["publish"] is False and "trained" not in yaml_of["train"], "elsewhere nothing of it"


def test_the_slices_of_a_training_are_cut_as_its_images_suggest(monkeypatch, bundle, tmp_path, caplog):
    """Those that it is given, labelled ones too: where all have a label, and of an archive, none is in the books."""
    monkeypatch.setenv(label.STUDIES, "https://archive.example.org/dicom-web")
    items = []
    for number, shape in enumerate(((24, 20, 22), (24, 22, 20), (20, 24, 22))):  # 1 mm but for the first, cut along A
        path = tmp_path / f"{number}.nii.gz"
        write_nifti(path, np.zeros(shape, np.int16), (1.0, 1.0 if number else 3.0, 1.0))
        items.append({"image": str(path), "label": str(path)})
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), "train#dataset#data": items, "train#unlabeled_dataset#data": []})
    assert parser.get_parsed_content("slice_axis") == "A"
    assert "without unlabelled images" not in caplog.text


def test_a_training_inside_publishes(monkeypatch, studies, bundle, phantom_dir):
    """As MONAI Label starts it: its lists and epochs, everything else the bundle's. An empty validation list, too."""
    monkeypatch.setenv(label.STUDIES, str(studies))
    shipped, models = digest(bundle / "models" / "model.pt"), bundle / "models"
    item = {"image": str(studies / "patient000.nii.gz"), "label": str(phantom_dir / "labels" / "patient000.nii.gz")}
    for seed, validation in enumerate(([], [item])):
        before = digest(models / "model.pt")
        data = {"train#dataset#data": [item], "validate#dataset#data": validation}
        flow = workflow(bundle, inside=True, **data, seed=seed, show_progress=False)
        flow.initialize()
        flow.run()
        assert digest(models / "model.pt") != before
        saved = json.loads((models / "training.json").read_text())
        assert saved["unlabeled_images"] == 4 and saved["labeled_cases"] == ["patient000"]
        assert all(saved[k] == SHIPPED[k] for k in ("spatial_size", "fusion")), "as the weights before"
        told = noted(models / "model.pt")
        assert told["spatial_size"] == saved["spatial_size"] and told["intensity"] == saved["intensity"]
        assert {p.name for p in models.iterdir()} == {"model.pt", "training.json"}
    kept = sorted((bundle / "models_before").iterdir())
    assert len(kept) == 2 and digest(kept[0] / "model.pt") == shipped
    assert json.loads((kept[0] / "training.json").read_text())["epochs"] == SHIPPED["epochs"]
    best = next(iter(max((bundle / "output").iterdir(), key=lambda p: p.stat().st_mtime_ns).glob("model_best.pt")))
    assert digest(best) == digest(models / "model.pt"), "the best on validation, where there is one"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    """An app for 3D that has learnt a little from three volumes whose voxels differ; and those."""
    folder = tmp_path_factory.mktemp("volumes")
    app = assemble.assemble(folder / "app", class_names=["liver"], spatial_size=16, volumes=True, window=[-50.0, 150.0])
    bundle = app / "model" / "semsim"
    assert not (bundle / "models" / "model.pt").exists()
    path = bundle / "models" / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "features": [4, 4, 8, 8, 16, 4]}))
    items = []
    for number, side in enumerate((1.5, 2.0, 3.0)):
        image, truth = blob((28, 24, 20), seed=number)
        item = {kind: str(folder / f"{kind}{number}.nii.gz") for kind in ("image", "label")}
        write_nifti(Path(item["image"]), image, (side, side, side))
        write_nifti(Path(item["label"]), truth, (side, side, side))
        items.append(item)
    train_volumes(bundle, items)
    return bundle, items


def train_volumes(bundle: Path, items: list[dict[str, str]], **options) -> None:
    """The first volume is labelled, the others are not, and the last one validates."""
    lists = {"train#dataset#data": items[:1], "train#unlabeled_dataset#data": items[1:],
             "validate#dataset#data": items[-1:]}  # fmt: skip
    flow = workflow(bundle, inside=True, kind="volumes", show_progress=False, **lists, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(label.STUDIES, str(bundle))
        flow.initialize()
        flow.run()


def test_a_training_of_volumes_publishes_and_keeps_its_voxels(volumes):
    """From nothing: the voxels are the median of all images; from the weights: theirs, whatever the images."""
    bundle, items = volumes
    models = bundle / "models"
    first = json.loads((models / "training.json").read_text())
    assert first["spatial_dims"] == 3 and first["spacing"] == [2.0, 2.0, 2.0] and first["spatial_size"] == 16
    assert first["class_names"] == ["background", "liver"] and first["fusion"] == "conv"
    assert first["intensity"]["window"] == [-50, 150]
    before = digest(models / "model.pt")
    train_volumes(bundle, items[2:], initial=str(models / "model.pt"))
    second = json.loads((models / "training.json").read_text())
    assert digest(models / "model.pt") != before and second["unlabeled_images"] == 0
    assert second["spacing"] == first["spacing"] and second["spatial_size"] == 16


def test_scores_of_volumes(volumes):
    """Of all voxels of an image, whatever its size; and with labels to compare with."""
    from scripts.hosts.scoring import BundleScorer

    bundle, items = volumes
    scorer = BundleScorer(bundle, device="cpu")
    before = [scorer.score(item["image"]) for item in items]
    assert all(set(score) == {"entropy"} and 0 < score["entropy"] < math.log(2) for score in before)
    assert scorer.learn(items[:2])
    after = [scorer.score(item["image"]) for item in items]
    assert [score["entropy"] for score in after] == [score["entropy"] for score in before]
    assert all(0 < score["disagreement"] < math.log(2) for score in after)
    network = settings.trained_network(bundle / "models" / "model.pt")
    whole = scorer.transform({"image": items[1]["image"]})["image"]  # 28 x 24 x 20: two patches along each axis
    with torch.no_grad():
        corners = [whole[:, x : x + 16, y : y + 16, z : z + 16].as_tensor()[None]
                   for x in (0, 12) for y in (0, 8) for z in (0, 4)]  # fmt: skip
        p = network(torch.cat(corners)).softmax(dim=1)
    assert before[1]["entropy"] == pytest.approx(float(-(p * p.log()).sum(dim=1).mean()), rel=1e-3)


def test_voxels_of_pictures_are_refused(tmp_path):
    items = [{"image": str(tmp_path / "a.nii.gz")}]
    write_nifti(tmp_path / "a.nii.gz", blob((20, 20, 1))[0])
    with pytest.raises(InputError, match=r"a\.nii\.gz: expected a volume of several slices"):
        label.spacing(None, items)
    assert label.spacing([1, 1, 2], items) == [1, 1, 2]


@pytest.mark.parametrize("publish", [False, True])
def test_a_training_elsewhere_publishes_when_asked(bundle, phantom_dir, tmp_path, publish):
    before = digest(bundle / "models" / "model.pt")
    flow = workflow(
        bundle, dataset_dir=str(phantom_dir), output_dir=str(tmp_path / "out"), spatial_size=32, fusion="conv",
        show_progress=False, **({"publish": True} if publish else {}),
    )  # fmt: skip
    flow.initialize()
    flow.run()
    assert (digest(bundle / "models" / "model.pt") != before) == publish == (bundle / "models_before").exists()
    if publish:
        trained = torch.load(tmp_path / "out" / "model_best.pt", weights_only=True)
        published = torch.load(bundle / "models" / "model.pt", weights_only=True)
        assert all(torch.equal(trained[k], published[k]) for k in trained)
        assert json.loads((bundle / "models" / "training.json").read_text())["spatial_size"] == 32


def test_few_slices_fill_a_batch(phantom_dir):
    from scripts.dataio.loaders import SliceDataset, TwoStreamLoader
    from scripts.errors import InputError

    def dataset(*names):
        items = [{"image": str(phantom_dir / "images" / f"{n}.nii.gz")} for n in names]
        transform = workflow(BUNDLE, spatial_size=32).parser.get_parsed_content("train#preprocessing")
        return SliceDataset(items, transform, progress=False)

    few = dataset("patient000")
    with pytest.raises(InputError, match="Fewer slices"):
        TwoStreamLoader(few, few, batch_size=32)
    batches = list(TwoStreamLoader(few, few, batch_size=32, fill=True))
    assert len(batches) == 1 and len(batches[0]["unlabeled"]["case"]) == 32
    assert set(batches[0]["unlabeled"]["case"]) == {f"patient000/{k}" for k in range(len(few))}
    assert len(TwoStreamLoader(few, few, batch_size=4, steps=7)) == len(list(TwoStreamLoader(few, few, steps=7))) == 7


def test_scores_of_files(bundle, phantom_dir, monkeypatch):
    """Of the published weights; an image looks alike however it is stored, and an unreadable one is named."""
    from scripts.hosts.scoring import BundleScorer

    scorer = BundleScorer(bundle, device="cpu")
    image = phantom_dir / "images" / "patient001.nii.gz"
    assert set(scorer.score(image)) == {"entropy"} and not scorer.learn([])
    items = [{k: str(phantom_dir / f"{k}s" / "patient000.nii.gz") for k in ("image", "label")}]
    assert scorer.learn([*items, {"image": str(image), "label": str(phantom_dir / "none.nii.gz")}])
    assert set(scorer.score(image)) == {"entropy", "disagreement"}
    with pytest.raises(InputError, match="datalist"):
        scorer.score(phantom_dir / "datalist.json")
    asked: list[str] = []
    monkeypatch.setattr("scripts.hosts.scoring.load_weights", lambda net, path, device: asked.append(device) or net)
    BundleScorer(bundle, device="cuda:1")  # not the first GPU
    assert asked == ["cuda:1"]


def page_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "label_app" / "README.md").read_text(), flags=re.S)
    lines = "\n".join(blocks).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def test_commands_and_links_of_the_page(monkeypatch, tmp_path):
    text = (ROOT / "label_app" / "README.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("http") or (ROOT / "label_app" / target.split("#")[0]).exists(), target
    for line in page_commands():
        if line == "make label-demo":  # tests/label
            assert {"label-demo:", "install-label:"} <= {*(ROOT / "Makefile").read_text().split()}
            continue
        python, script, *args = shlex.split(line.replace("/data", str(tmp_path)))
        assert python == ".venv-label/bin/python" and script == "label_app/assemble.py"
        monkeypatch.setattr(sys, "argv", [script, *args])
        assemble.main()
    assert (tmp_path / "app" / "model" / "semsim" / "models" / "model.pt").is_file()
    own = tmp_path / "liver" / "model" / "semsim"
    assert not (own / "models" / "model.pt").exists(), "weights of other classes are of no use"
    assert json.loads((own / "models" / "training.json").read_text())["spatial_size"] == 160
    metadata = json.loads((own / "configs" / "metadata.json").read_text())
    prediction = metadata["network_data_format"]["outputs"]["pred"]
    assert prediction["channel_def"] == {"0": "background", "1": "liver", "2": "tumour"}
    own = json.loads((tmp_path / "liver3d" / "model" / "semsim" / "models" / "training.json").read_text())
    assert own["spatial_dims"] == 3 and own["spatial_size"] == [64, 64, 32] and own["fusion"] == "conv"
    assert own["intensity"]["window"] == [-150, 250]
    with pytest.raises(SystemExit, match="exists already"):
        assemble.assemble(tmp_path / "app")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"spatial_size": 100}, "multiple of 16"),
        ({"app": Path("monaibundle")}, "leave --app out"),
        ({"window": [250, -150]}, "--window 250 -150: expected the lower intensity first"),
    ],
)
def test_what_an_app_for_volumes_cannot_be(tmp_path, options, expected):
    with pytest.raises(SystemExit, match=expected):
        assemble.assemble(tmp_path / "app", volumes=True, **options)
    assert not (tmp_path / "app").exists()


def test_what_monai_label_looks_for():
    """Ids and literal dictionaries that its tasks fill in (they make no parents)."""
    train = yaml.safe_load((BUNDLE / "configs" / "train.yaml").read_text())
    for section, name in (("train", "dataset"), ("train", "unlabeled_dataset"), ("validate", "dataset")):
        assert isinstance(train[section][name], dict), name
    assert isinstance(train["train"]["trainer"], dict) and "run" in train
    assert all(isinstance(handler, dict) for handler in train["train"]["handlers"])
    inference = yaml.safe_load((BUNDLE / "configs" / "inference.yaml").read_text())
    assert {"network_def", "preprocessing", "inferer", "postprocessing", "device", "bundle_root"} <= set(inference)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("liver,tumour", ["background", "liver", "tumour"]),
        ("background, Liver, Tumour", ["background", "Liver", "Tumour"]),
        ("liver", ["background", "liver"]),
        ("", None), ("background", None), ("liver,liver", None), ("Lesion,lesion", None),
        ("<b>x</b>", None), ("a,,b", None),
    ],
)  # fmt: skip
def test_a_name_belongs_to_one_value(tmp_path, given, names):
    """The background is named first or added; a list that could mean something else is refused, and nothing is made."""
    if names is None:
        with pytest.raises(SystemExit, match="class_names"):
            assemble.assemble(tmp_path / "app", class_names=given.split(","))
        assert not (tmp_path / "app").exists()
        return
    bundle = assemble.assemble(tmp_path / "app", class_names=given.split(",")) / "model" / "semsim"
    assert json.loads((bundle / "models" / "training.json").read_text())["class_names"] == names
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    assert list(metadata["outputs"]["pred"]["channel_def"].values()) == names
