"""The report: from files alone, with the data, of volumes and of pictures; self-contained."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import samples
import torch
from helpers import workflow
from PIL import Image
from scripts.errors import InputError, find_input_error
from scripts.method.network import SegmentationNet, SemSimNet
from scripts.method.similarity import affinity
from scripts.preparation.create import create
from scripts.report import plots
from scripts.report.build import Report, write
from scripts.report.drawing import canvas, class_legend
from scripts.report.samples import FeatureLook, Slice

EVERY = {
    "scores", "case_best", "case_worst", "losses", "masks", "validation", "class_shares", "affinity",
    "features",
}  # fmt: skip


def train(output: Path, *names: str, **options) -> Path:
    workflow("train", "train", *names, output_dir=str(output), show_progress=False, **options).run()
    return output


def report(output: Path, **options) -> str:
    workflow("train", "train", "evaluate", output_dir=str(output), show_progress=False, run_id="reporting",
             **options).run()  # fmt: skip
    return (output / "report" / "index.html").read_text(encoding="utf-8")


def embedded(page: str) -> list[bytes]:
    """Pictures of a page; fails where it needs anything from elsewhere."""
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in sources), "it needs no network and no other file"
    assert "<script" not in page and "url(" not in page and "@import" not in page
    return [base64.b64decode(s.split(",", 1)[1]) for s in sources if s.startswith("data:")]


@pytest.fixture(scope="module")
def trained(phantom_dir, tmp_path_factory) -> Path:
    """A short training on volumes, with a record of how right its pseudo-labels are."""
    data = {"dataset_dir": str(phantom_dir), "datalist": str(phantom_dir / "datalist.json")}
    output = train(tmp_path_factory.mktemp("report") / "run", "semsim_minus", epochs=2, spatial_size=32, val_interval=1,
                   **data)  # fmt: skip
    names = ("right ventricle", "myocardium", "left ventricle")
    keys = ("confident", "precision", "recall")
    rows = [{"epoch": e, **{f"{n} {k}": 0.3 * e for n in names for k in keys}} for e in (1, 2)]
    pd.DataFrame(rows).to_csv(output / "pseudo_labels.csv", index=False)
    return output


def test_with_the_data_everything_is_shown(trained, phantom_dir):
    page = report(trained, dataset_dir=str(phantom_dir), datalist=str(phantom_dir / "datalist.json"))
    files = {p.stem: p.read_bytes() for p in (trained / "report").glob("*.png")}
    assert set(files) == EVERY | {"pseudo_label_quality"}
    pictures = embedded(page)
    assert set(pictures) == set(files.values()) and all(p.startswith(b"\x89PNG") for p in pictures)
    scores = json.loads((trained / "scores.json").read_text())
    for part in ("SemSim-", "patient000", "right ventricle", "2 cases of the list &#39;testing&#39;", "Worst: pat",
                 f"{scores['mean']['dice']:.3f}", "2 epochs", "model_best.pt", "95 % Hausdorff distance (mm)",
                 ):  # fmt: skip
        assert part in page, part
    assert "Not part of this report" not in page


def test_from_the_files_of_a_training_alone(run_bundle, trained, tmp_path):
    run = tmp_path / "run <1>"
    run.mkdir()
    for name in ("training_log.csv", "validation_log.csv", "training.json"):
        shutil.copy(trained / name, run)
    result = run_bundle("report", str(run), module="scripts")
    assert result.stdout.strip().endswith("report/index.html")
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert {p.stem for p in (run / "report").glob("*.png")} == {"losses", "masks", "validation", "class_shares"}
    assert len(embedded(page)) == 4 and "Not evaluated yet" in page and "run reporting" in page
    assert "run &lt;1&gt;" in page and "run <1>" not in page


def test_a_training_is_called_what_it_is(tmp_path):
    """By what it learns from: without L_u, or before unlabelled images take part, it is not supervised."""
    settings = {"fusion": "conv", "class_names": ["background", "x"], "labeled_cases": ["a"], "unlabeled_images": 5,
                "epochs": 10, "use_unlabeled": True}  # fmt: skip
    row = {"epoch": 1, "seconds": 1.0, "loss": 1.0, "loss_s": 1.0}
    late = {**row, "loss_intra": 0.5, "loss_labeled": 0.5, "loss_entropy": 0.1, "pseudo_1": 0.1, "label_1": 0.1}
    found = {}
    for name, rows, more in (
        ("without L_u", [late], {}),
        ("begun", [row], {}),
        ("weights of 0", [row] * 10, {}),
        ("switched off", [row], {"use_unlabeled": False}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(json.dumps(settings | more))
        pd.DataFrame(rows).to_csv(tmp_path / name / "training_log.csv", index=False)
        found[name] = "supervised, on the labelled" in Report(tmp_path / name).run().read_text(encoding="utf-8")
    assert found == {"without L_u": False, "begun": False, "weights of 0": True, "switched off": True}


def test_every_term_has_its_curve(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_line", lambda *_, label, **__: drawn.append(label))
    log = pd.DataFrame({"epoch": [1], "loss": [1.0], "loss_s": [1.0], "loss_labeled": [0.5], "loss_entropy": [0.1]})
    plots.loss_curves(log, tmp_path / "losses.png")
    assert [label.split(",")[0] for label in drawn] == ["total L", "L_s", "L_labeled", "loss_entropy"]


def test_a_term_below_zero_is_seen(tmp_path, monkeypatch):
    lowest = []
    monkeypatch.setattr(plots, "_finish", lambda ax, *_: lowest.append(ax.get_ylim()[0]))
    for value in (0.1, -0.5):
        log = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5], "loss_own": [np.nan, value]})
        plots.loss_curves(log, tmp_path / "losses.png")
    assert lowest == [0, -0.5]


def test_names_are_those_of_the_table(tmp_path):
    """A case or class called NA or None is no missing value, and 01 no number."""
    rows = [{"case": case, "class": name, "dice": dice, "unit": "mm"}
            for case, dice in (("NA", 0.25), ("01", 0.75)) for name in ("None", "tumour")]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "scores.csv", index=False)
    page = Report(tmp_path, class_names=["background", "None", "tumour"]).run().read_text(encoding="utf-8")
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page) + re.findall(r"<th[^>]*>([^<]*)</th>", page)
    assert {"NA", "01", "None", "tumour", "0.250", "0.750"} <= {*cells}


def test_many_classes_with_odd_names_are_all_to_be_read(tmp_path):
    """Their names stand inside the pictures, which a browser can show, beside curves of a size to look at."""
    names = ["background", "cost $1$ in $\\foo$", *(f"organ <number> {c} & more" for c in range(2, 15))]
    shares = {f"{kind}_{c}": [0.1, 0.2] for c in range(1, 15) for kind in ("pseudo", "label")}
    log = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5], "loss_s": [1.0, 0.5], "seconds": [1.0, 1.0], **shares})
    log.to_csv(tmp_path / "training_log.csv", index=False)
    rows = [{"case": "a", "class": name, "dice": 0.5, "hd95": 1.0, "assd": 1.0, "unit": "mm"} for name in names[1:]]
    pd.DataFrame(rows).to_csv(tmp_path / "scores.csv", index=False)
    page = Report(tmp_path, class_names=names).run().read_text(encoding="utf-8")
    assert "organ &lt;number&gt; 14 &amp; more" in page and len(embedded(page)) == 3
    sizes = {p.stem: Image.open(p).size for p in (tmp_path / "report").glob("*.png")}
    assert sizes["scores"][0] < 1600 and sizes["class_shares"][0] > 1100, sizes
    with canvas(tmp_path / "case.png", size=(8, 2)) as (figure, _):
        class_legend(figure, dict(enumerate(names[1:], 1)), {"prediction": "solid", "truth": "dashed"})
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.width < figure.bbox.width and len(legend.get_texts()) == 16
    height = Image.open(tmp_path / "case.png").height / 110
    assert height > 1.5 + box.height / figure.dpi, "the picture grows by its legend"


@pytest.mark.parametrize("dice, shown", [([0.8], ["Best"]), ([0.2, 0.8], ["Best", "Worst"]),
                                         ([0.2, 0.8, 0.5], ["Best", "Median", "Worst"])])  # fmt: skip
def test_of_few_cases_each_is_shown_once(tmp_path, monkeypatch, dice, shown):
    class Cases:
        data = dice

        def planes(self, index):
            return index

    monkeypatch.setattr(plots, "case_slices", lambda planes, case, names, file: Image.new("L", (1, 1)).save(file))
    rows = [{"case": f"p{n}", "class": "mean", "dice": value, "unit": "mm"} for n, value in enumerate(dice)]
    rows += [{**row, "class": "other", "dice": row["dice"] - 0.1} for row in rows]
    rows.sort(key=lambda row: row["case"])
    pd.DataFrame(rows).to_csv(tmp_path / "scores.csv", index=False)
    report = Report(tmp_path, class_names=["background", "mean", "other"], cases=Cases())
    page = report.run().read_text(encoding="utf-8")
    assert re.findall(r"<h3>(\w+): p\d", page) == shown
    cells = re.findall(r'<td class="number">(0\.\d+)</td>', page)
    assert f"{dice[0]:.3f}" in cells and f"{dice[0] - 0.05:.3f}" in cells, "a class called mean beside the mean"


def test_scores_of_other_weights_are_not_called_this_trainings(tmp_path):
    """In a folder of its own an evaluation tells of the training of these weights, in that of another it says so."""
    for name, content in (("A", b"a"), ("B", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_best.pt").write_bytes(content)
        settings = {"fusion": "conv", "class_names": ["background", f"organ{name}"], "labeled_cases": [f"only{name}"]}
        (tmp_path / name / "training.json").write_text(json.dumps(settings))
        log = pd.DataFrame([{"epoch": 1, "seconds": 1.0, "loss": 1.0, "loss_s": 1.0, "mean_dice": 0.5}])
        log.to_csv(tmp_path / name / "training_log.csv", index=False)
        log.to_csv(tmp_path / name / "validation_log.csv", index=False)
    (tmp_path / "alone").mkdir()
    shutil.copytree(tmp_path / "B", tmp_path / "copy")
    said = "are of other weights than this training&#39;s"
    for name, weights, told in (
        ("A", tmp_path / "B" / "model_best.pt", "A"),
        ("alone", tmp_path / "B", "B"),
        ("copy", tmp_path / "B", "B"),
        ("B", tmp_path / "moved" / "model_best.pt", "B"),
    ):
        (tmp_path / name / "scores.json").write_text(json.dumps({"weights": str(weights), "cases": 1}))
        rows = [{"case": "p", "class": "organB", "dice": 0.5, "unit": "mm"}]
        pd.DataFrame(rows).to_csv(tmp_path / name / "scores.csv", index=False)
        page = Report(tmp_path / name, class_names=["background", "organB"]).run().read_text(encoding="utf-8")
        assert f"only{told}" in page and f"background, organ{told}" in page
        named = str(tmp_path / "B" / "model_best.pt") in page
        assert (said in page) == (name == "A") and named == (name in ("A", "alone"))


def test_a_network_of_ones_own_is_not_said_to_see_volumes(tmp_path):
    class Cases:
        data = ()

    (tmp_path / "training_log.csv").write_text("epoch,loss,loss_s,seconds\n1,0.5,0.5,1\n")
    for dims, said in ((2, "look into the network of SemSim alone"), (3, "this network sees volumes")):
        page = Report(tmp_path, spatial_dims=dims, cases=Cases()).run().read_text(encoding="utf-8")
        assert page.count(said) == 2


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="expected the folder of a training or an evaluation"):
        write(str(tmp_path))


@pytest.mark.parametrize("name", ["training_log.csv", "scores.csv", "training.json"])
def test_a_file_that_was_cut_off_is_said_in_a_line(tmp_path, name):
    (tmp_path / "training_log.csv").write_text("epoch,loss\n1,0.5\n")
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=rf"{name}: expected a .*, received one that cannot be read .* copy it anew"):
        Report(tmp_path).run()


def test_scores_of_another_list_are_refused(trained, tmp_path):
    pd.DataFrame([{"case": "a", "class": "x", "dice": 0.5, "unit": "mm"}]).to_csv(tmp_path / "scores.csv", index=False)

    class Cases:
        data = [{}, {}]

    with pytest.raises(InputError, match="evaluate again"):
        Report(tmp_path, class_names=["background", "x"], cases=Cases()).run()


def test_a_network_without_fusion_has_no_features(trained):
    look = FeatureLook(SemSimNet(fusion="none"), [{}], [{}], lambda x: x, "cpu")
    page = Report(trained, features=look).run().read_text(encoding="utf-8")
    assert page.count("This network has no fused features") == 2


def test_a_fusion_of_an_earlier_version_is_refused(phantom_dir, tmp_path):
    """Where its features are asked for, in one line; prediction needs none."""
    torch.save(SemSimNet().state_dict(), tmp_path / "model_last.pt")
    (tmp_path / "training.json").write_text('{"fusion": "sfm_light"}')
    data = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path)}
    flow = workflow("train", "train", "evaluate", **data)
    assert isinstance(flow.parser.get_parsed_content("network"), SegmentationNet)
    with pytest.raises(Exception) as caught:
        flow.parser.get_parsed_content("feature_network")
    line = str(find_input_error(caught.value))
    assert "expected sfm, conv or none, received 'sfm_light'; weights of another kind need the version" in line


def test_affinity_of_a_pixel_by_hand():
    """Two structures of opposite features: the map of a pixel lights up its own."""
    features = torch.zeros(2, 4, 4)
    features[0], features[1, :, 2:] = 1, 0
    features[:, :, 2:] = torch.tensor([0.0, 1.0])[:, None, None]
    classes = torch.zeros(4, 4, dtype=torch.long)
    classes[:, 2:] = 1
    look = FeatureLook(SemSimNet(fusion="none"), [], [], lambda x: x, "cpu", temperature=0.1)
    one = Slice("a", torch.rand(1, 16, 16), features, classes, picture=True)
    assert one.upright(np.arange(4).reshape(2, 2)).tolist() == [[0, 2], [1, 3]]
    front_on_top = Slice("a", one.image, features, classes).upright(np.arange(4).reshape(2, 2))
    assert front_on_top.tolist() == [[1, 3], [0, 2]]
    image, maps = look.affinities(one, ["background", "organ"])
    pixel, weights = maps["organ"]
    assert image.shape == (16, 16) and weights.shape == (4, 4) and weights.sum() == pytest.approx(1, abs=1e-5)
    assert weights[2:].sum() > 0.99, "rows run along the second axis"
    assert pixel[0] > 7.5
    row, column = (int((p + 0.5) / 4) for p in pixel)  # in features; a picture's rows run along the second axis
    whole = affinity(features[None], temperature=0.1)[0, column * 4 + row].reshape(4, 4)
    np.testing.assert_allclose(weights, whole.T, atol=1e-6)


def test_pictures_in_colour_from_a_folder_to_a_report(tmp_path, capsys):
    """2D RGB of uneven sizes with masks of 0 and 255: the printed command trains, and the report shows them."""
    for number in range(9):
        shape = (30 + 4 * number, 50 - 2 * number, 1)
        image, label = samples.blob(shape, seed=number)
        colour = image.clip(0, 255).astype(np.uint8) // np.array([1, 2, 4], np.uint8)
        samples.write_picture(tmp_path / "images" / f"skin{number}.{'png' if number % 2 else 'jpg'}", colour)
        if number < 6:
            samples.write_picture(tmp_path / "labels" / f"skin{number}.png", label[..., 0] * 255)
    create(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "d.json"), labeled=2, validation=2,
           testing=2, class_names="background,lesion")  # fmt: skip
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    given = dict(zip(command[5::2], command[6::2]))
    options = {name: given[f"--{name}"] for name in ("dataset_dir", "datalist")}
    small = {"epochs": 60, "spatial_size": 32, "batch_size": 2, "val_interval": 5, "loss#threshold": 0.8,
             "learning_rate": 0.005}  # fmt: skip
    output = train(tmp_path / "run", "semsim_minus", **options, **small)
    page = report(output, dataset_dir=options["dataset_dir"], datalist=options["datalist"])
    assert {p.stem for p in (output / "report").glob("*.png")} >= EVERY - {"affinity"}
    assert "lesion" in page and "distances are in voxels" in page
    scores = pd.read_csv(output / "scores.csv")
    assert len(scores) == 2 and scores["dice"].mean() > 0.8, "a picture called lesion all over has 0.54"
