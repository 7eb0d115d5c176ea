"""Values in label files: taken where they are sure, asked for where they are not, and those that nobody judged."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import samples
import torch
from helpers import workflow
from monai.losses import DiceCELoss
from PIL import Image
from scripts.dataio import stated
from scripts.dataio.transforms import IGNORED, CheckVolumed, LabelValuesd, LeaveOutIgnoredd
from scripts.errors import InputError
from scripts.method.augmentation import CutMix
from scripts.method.losses import SemSimLoss, Target
from scripts.method.network import Output
from scripts.method.similarity import class_prototypes
from scripts.preparation.create import create
from scripts.preparation.survey import look

SHAPE = (16, 12, 3)


def written(folder: Path, *labels: np.ndarray) -> list[str]:
    """A patient for each label, and one without; returns the folders."""
    for number, label in enumerate([*labels, None]):
        samples.write_nifti(folder / "images" / f"p{number}.nii.gz", samples.blob(SHAPE, seed=number)[0])
        if label is not None:
            samples.write_nifti(folder / "labels" / f"p{number}.nii.gz", label)
    return [str(folder / "images"), str(folder / "labels"), str(folder / "d.json")]


def organ(seed: int = 0, classes: int = 2) -> np.ndarray:
    return samples.blob(SHAPE, seed=seed, classes=classes)[1].astype(np.int16)


def with_rim(value: int) -> np.ndarray:
    label = organ()
    label[:2] = value
    return label


@pytest.mark.parametrize(
    "labels, options, asked",
    [
        ([with_rim(-1)], {}, r"-1 \(in .*p0\.nii\.gz\) may be a class .*--ignore_label -1"),
        ([with_rim(-1)], {"class_names": "background,organ"}, "--ignore_label -1"),
        ([with_rim(-1)], {"class_names": "a,b,c"}, '--label_values "0,-1,1"'),
        ([with_rim(255)], {}, r'255 \(in .*--label_values "0,1,255".*--ignore_label 255'),
        ([with_rim(255)], {"class_names": "background,organ"}, "--ignore_label 255"),
        ([organ(0, 4) * 85], {}, "170, 255, and 255 .*edges that were smoothed: then save masks of 0 and 255 alone"),
        ([organ(), organ(1) * 255], {}, r"Masks of 0 and 1 beside masks of 0 and 255: .*p0.*p1.*store them alike"),
        ([organ() + 1], {}, 'no 0 for the background.*--label_values "1,2"'),
        ([organ() * 0], {}, 'nothing but background.*--label_values "0,1"'),
        ([organ() * 3], {"label_values": "0,1"}, "shows the value 3, which is not one of label_values"),
    ],
)
def test_values_that_leave_the_classes_open_are_asked_for(tmp_path, labels, options, asked):
    with pytest.raises(InputError, match=asked):
        create(*written(tmp_path, *labels), **options)
    assert not (tmp_path / "d.json").exists()


@pytest.mark.parametrize(
    "labels, options, expected",
    [
        ([organ()], {}, {"class_names": ["background", "class 1"]}),
        ([organ() * 255], {}, {"class_names": ["background", "class 1"], "label_values": [0, 255]}),
        ([organ(classes=5)], {}, {"class_names": ["background", "class 1", "class 2", "class 3", "class 4"]}),
        ([organ() + 1], {"label_values": "1,2", "class_names": "a,b"},
         {"class_names": ["a", "b"], "label_values": [1, 2]}),
        ([organ()], {"label_values": "1,0", "class_names": "outside,inside"},  # the background is what is marked
         {"class_names": ["outside", "inside"], "label_values": [1, 0]}),
        ([with_rim(255)], {"ignore_label": 255}, {"class_names": ["background", "class 1"], "ignore_label": 255}),
        ([with_rim(-1)], {"ignore_label": -1, "class_names": "background,Crohn's lesion"},
         {"class_names": ["background", "Crohn's lesion"], "ignore_label": -1}),
    ],
)  # fmt: skip
def test_the_printed_command_trains_on_the_classes_of_the_files(tmp_path, capsys, labels, options, expected):
    """Names and values stand in the datalist, so the command has no option that could be left out."""
    folder = tmp_path / "my data (e)"
    create(*written(folder, *labels), **options)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    given = dict(zip(command[5::2], command[6::2]))
    assert given == {
        "--config_file": "['configs/train.yaml','configs/semsim_minus.yaml']", "--dataset_dir": str(folder),
        "--datalist": str(folder / "d.json"), "--output_dir": "RUN", "--minutes": "60",
    }  # fmt: skip
    flow = workflow("train", "train", "semsim_minus", dataset_dir=str(folder), datalist=given["--datalist"],
                    output_dir=str(tmp_path / "run"), batch_size=1)  # fmt: skip
    settings = flow.parser.get_parsed_content("settings")
    found = {name: settings[name] for name in ("class_names", "label_values", "ignore_label")}
    assert found == {"label_values": None, "ignore_label": None, **expected}


def test_an_option_goes_before_what_the_datalist_states(tmp_path):
    create(*written(tmp_path, organ(classes=3)), class_names="background,liver,tumour")
    given = {"class_names": ["nothing", "organ"], "label_values": [0, 2], "ignore_label": 1, "in_channels": 3}
    flow = workflow("train", "train", dataset_dir=str(tmp_path), datalist=str(tmp_path / "d.json"), **given)
    assert {name: flow.parser.get_parsed_content(name) for name in given} == given


@pytest.mark.parametrize("labels, order, expected", [
    ({"0": "background", "1": "liver"}, None, (["background", "liver"], None, None)),
    ({"background": 0, "liver": 3, "ignore": 4}, None, (["background", "liver"], [0, 3], 4)),  # as nnU-Net writes them
    (["background", "liver"], None, (["background", "liver"], None, None)),
    ({"0": "liver", "1": "background"}, [1, 0], (["background", "liver"], [1, 0], None)),
])  # fmt: skip
def test_classes_of_a_datalist_written_by_hand(tmp_path, labels, order, expected):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"labels": labels, "label_values": order, "training": []}))
    found = (stated.class_names(path, ["some", "default"]), stated.label_values(path), stated.ignore_label(path))
    assert found == expected


@pytest.mark.parametrize("content, message", [
    ({"labels": {"0": "background", "one": "liver"}}, r"d\.json: expected `labels` such as"),
    ({"labels": {"0": "outside", "1": "inside"}, "label_values": [0, 2]}, r"d\.json: expected `label_values` of"),
    ({"training": []}, r"d\.json: expected names of the classes, received none; add \"labels\""),
])  # fmt: skip
def test_classes_that_make_no_sense_are_refused(tmp_path, content, message):
    (tmp_path / "d.json").write_text(json.dumps({**content, "training": []}))
    with pytest.raises(InputError, match=message):
        stated.class_names(tmp_path / "d.json", [])


def test_a_class_is_not_scored_as_another(tmp_path):
    """Two hospitals number their classes otherwise: a line with the option that says so, instead of wrong scores."""
    path, trained = tmp_path / "d.json", (["background", "liver", "spleen"], [0, 1, 5])
    for labels, refused in (
        ({"0": "background", "1": "liver", "5": "spleen"}, ""),
        ({"0": "background", "1": "class 1", "5": "class 2"}, ""),  # nobody named them
        ({"0": "background", "5": "spleen", "9": "ignore"}, ""),
        ({"0": "background", "1": "spleen", "5": "liver"}, r'liver to have the value 1.*received 5.*"\[0,5,1\]"'),
        ({"0": "background", "1": "liver", "2": "spleen"}, ""),  # see below
        (
            {"0": "background", "1": "spleen"},
            r"spleen to have the value 5.*received 1; give --label_values and a value",
        ),
    ):
        path.write_text(json.dumps({"labels": labels, "testing": []}))
        if refused:
            with pytest.raises(InputError, match=refused):
                stated.check_classes(path, *trained)
        else:
            stated.check_classes(path, *trained)
    with pytest.raises(InputError, match=r"expected label values \[0, 1, 5\], received 2"):
        LabelValuesd("label", trained[1], trained[0])({"label": torch.arange(3)[None]})


def test_nearly_whole_numbers_are_whole(tmp_path, capsys):
    nearly = organ().astype(np.float32) * np.float32(0.99999994)
    create(*written(tmp_path, nearly), class_names="background,organ")
    assert "label 1 organ" in capsys.readouterr().out
    label = torch.as_tensor(nearly)[None]
    checked = CheckVolumed(in_channels=1, num_classes=2)({"image": torch.zeros(1, *SHAPE), "label": label})["label"]
    assert checked.unique().tolist() == [0, 1]
    mapped = LabelValuesd("label", [0, 1], ["a", "b"])({"label": label * 1.0001})["label"]
    assert mapped.unique().tolist() == [0, 1]
    with pytest.raises(InputError, match=r"received 0\.5"):
        CheckVolumed(in_channels=1, num_classes=2)({"image": torch.zeros(1, *SHAPE), "label": label * 0.5})


def test_a_value_that_stands_for_two_things_is_refused(tmp_path, capsys):
    """Segments of 3D Slicer in another order, palettes of other colours; `label_values` says that the values count."""
    label = organ()[..., 0].astype(np.uint8)
    for number, shown in enumerate((label, 1 - label)):
        samples.write_picture(
            tmp_path / f"images/p{number}.png", samples.blob(SHAPE, seed=number)[0][..., 0].astype(np.uint8)
        )
        picture = Image.fromarray(np.moveaxis(shown, 0, 1))
        picture.putpalette(([0] * 3 + [255] * 3)[:: 1 - 2 * number])
        (tmp_path / "labels").mkdir(exist_ok=True)
        picture.save(tmp_path / f"labels/p{number}.png")
    options = [str(tmp_path / name) for name in ("images", "labels", "d.json")]
    with pytest.raises(InputError, match=r"p1\.png: the value 0 is 'colour 255 255 255', in .*p0\.png 'colour 0 0 0'"):
        create(*options)
    create(*options, label_values="0,1", dry_run=True)
    header = (
        "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 16 12 3\nencoding: raw\nSegment0_LabelValue:=1\nSegment0_Name:={}"
    )
    names = ["Tumour", "tumour", "Segment_1", "liver"]
    for number, name in enumerate(names):
        samples.write_nifti(tmp_path / f"scans/p{number}.nii.gz", samples.blob(SHAPE, seed=number)[0])
        (tmp_path / "segments").mkdir(exist_ok=True)
        voxels = organ().astype(np.uint8).tobytes(order="F")
        (tmp_path / f"segments/p{number}.seg.nrrd").write_bytes(f"{header.format(name)}\n\n".encode() + voxels)
    options = [str(tmp_path / name) for name in ("scans", "segments", "d.json")]
    with pytest.raises(
        InputError, match=r"p3\.seg\.nrrd: the value 1 is 'liver', in .*p0\.seg\.nrrd 'Tumour'"
    ) as error:
        create(*options, trust="voxels")
    assert len(str(error.value).splitlines()) == 1
    (tmp_path / "scans/p3.nii.gz").unlink()
    (tmp_path / "segments/p3.seg.nrrd").unlink()
    create(*options, trust="voxels", dry_run=True)


def test_a_palette_whose_background_is_not_0_is_refused(tmp_path):
    """As Pillow saves a mask of few colours: white comes first."""
    for number in range(2):
        plane = samples.blob(SHAPE, seed=number)[0][..., 0].astype(np.uint8)
        samples.write_picture(tmp_path / f"images/p{number}.png", plane)
        mask = Image.fromarray(np.moveaxis(organ()[..., 0].astype(np.uint8) * 255, 0, 1))
        (tmp_path / "labels").mkdir(exist_ok=True)
        mask.quantize(2).save(tmp_path / f"labels/p{number}.png")
    options = [str(tmp_path / name) for name in ("images", "labels", "d.json")]
    with pytest.raises(InputError, match=r"p0\.png: .* 0 is 'colour 255 255 255' and 1 is black; .*--label_values"):
        create(*options, class_names="background,organ")
    create(*options, class_names="background,organ", label_values="1,0")
    assert json.loads((tmp_path / "d.json").read_text())["label_values"] == [1, 0]


def test_a_jpeg_smears_the_values_of_a_label(tmp_path):
    samples.write_picture(tmp_path / "a.jpg", organ()[..., 0].astype(np.uint8) * 200, quality=95)
    with pytest.raises(InputError, match=r"a\.jpg: \d+ different values .*JPEG stores with losses: use PNG"):
        look(tmp_path / "a.jpg", label=True)


def test_the_limit_of_classes_is_named_and_can_be_raised(tmp_path):
    many = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 105).astype(np.uint8)
    folders = written(tmp_path, many)
    with pytest.raises(InputError, match=r"105 different whole numbers.*more than the 64 classes.*--most_classes 105"):
        create(*folders)
    create(*folders, most_classes=105)
    assert json.loads((tmp_path / "d.json").read_text())["labels"]["104"] == "class 104"


def test_a_class_that_no_training_label_shows_is_warned_of(tmp_path, capsys, caplog):
    folders = written(tmp_path, organ(), organ(1, classes=3))
    create(*folders, labeled="p0", validation="p1", class_names="background,a,b")
    assert "warning: no label of `training` shows b (2): it cannot be learnt" in capsys.readouterr().out
    flow = workflow("train", "train", dataset_dir=str(tmp_path), datalist=folders[2], output_dir=str(tmp_path / "run"),
                    class_names=["background", "a", "b"], spatial_size=16, show_progress=False)  # fmt: skip
    flow.parser.get_parsed_content("train#dataset")
    assert "No label of `training` shows 'b'" in caplog.text


def test_what_nobody_judged_enters_no_term_of_the_loss():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 3, (2, 1, 8, 8))
    loss = SemSimLoss(num_classes=3)
    monai = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, squared_pred=True, lambda_dice=0.5, lambda_ce=0.5)
    torch.testing.assert_close(loss(Output({"labeled": logits}, {}), label)["loss_s"], monai(logits, label))
    half = label.clone()
    half[:, :, 4:] = IGNORED
    terms = loss(Output({"labeled": logits}, {}), half)
    alone = loss(Output({"labeled": logits[:, :, :4]}, {}), label[:, :, :4])
    torch.testing.assert_close(terms["loss_s"], alone["loss_s"])
    torch.testing.assert_close([terms[f"label_{c}"] for c in range(3)], [alone[f"label_{c}"] for c in range(3)])
    terms["loss"].backward()
    assert logits.grad[:, :, :4].abs().min() > 0 and logits.grad[:, :, 4:].abs().max() == 0
    empty = loss(Output({"labeled": logits}, {}), torch.full_like(label, IGNORED))
    assert all(torch.isfinite(value) for value in empty.values())


def test_what_nobody_judged_is_in_no_prototype_and_no_pasted_target():
    features = torch.zeros(1, 2, 4, 4)
    features[:, 0, :, :2], features[:, 1, :, 2:] = 1.0, 1.0
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    label[:, :, 2:] = IGNORED
    found = class_prototypes(features, label, num_classes=2, regions=1)
    assert found.present.tolist() == [[True, False]] and found.vectors[0, 0, 0].tolist() == [1, 0]
    pseudo, sure = torch.ones(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4, dtype=torch.bool)
    everywhere = CutMix(box=torch.ones(1, 1, 4, 4, dtype=torch.bool), partner=torch.tensor([1]))
    pasted = Target(pseudo, sure).paste(everywhere, label[:, None])
    assert pasted.sure[:, :, :2].all() and not pasted.sure[:, :, 2:].any() and pasted.pseudo.min() == 0


@pytest.mark.parametrize("divergence", ["softmax", "cosine"])
def test_a_labelled_batch_without_a_judged_position_trains_on_unlabelled_images(divergence):
    """A thin stroke may lie between the positions of the features: no prototype, and L_cross is zero, not NaN."""
    torch.manual_seed(0)
    label = torch.full((2, 1, 16, 16), IGNORED)
    label[:, :, 0] = 1
    logits = {name: torch.randn(2, 3, 16, 16, requires_grad=True) for name in ("labeled", "strong_1")}
    features = {name: torch.rand(2, 5, 4, 4, requires_grad=True) for name in ("labeled", "strong_1", "strong_2")}
    weak = Output({"weak": torch.randn(2, 3, 16, 16)}, {"weak": torch.rand(2, 5, 4, 4)})
    loss = SemSimLoss(num_classes=3, threshold=0.5, uncertainty_divergence=divergence)
    terms = loss(Output(logits, features), label, weak)
    assert terms["loss_cross"] == 0 == terms["mask_cross"] and terms["loss_u"] > 0 and terms["loss_intra"] > 0
    half = 0.5 * (terms["loss_s"] + 0.5 * terms["loss_u"] + 0.25 * terms["loss_intra"])
    torch.testing.assert_close(terms["loss"], half)
    terms["loss"].backward()
    assert all(torch.isfinite(x.grad).all() for x in (*logits.values(), *features.values()) if x.grad is not None)


@pytest.mark.parametrize("values", [None, [0, 200]])
def test_training_and_scores_leave_out_what_nobody_judged(tmp_path, values):
    items = []
    for number in range(3):
        image, label = samples.blob(SHAPE, seed=number)
        label = label.astype(np.int16) * (1 if values is None else 200)
        label[:8] = 255
        samples.write_nifti(tmp_path / f"images/p{number}.nii.gz", image)
        samples.write_nifti(tmp_path / f"labels/p{number}.nii.gz", label)
        items.append({"image": f"images/p{number}.nii.gz", "label": f"labels/p{number}.nii.gz"})
    lists = {"training": items[:1], "unlabeled": [items[2]["image"]], "validation": items[1:2]}
    (tmp_path / "d.json").write_text(json.dumps(lists))
    options = {"dataset_dir": str(tmp_path), "datalist": str(tmp_path / "d.json"), "output_dir": str(tmp_path / "run")}
    training = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2, "spatial_size": 32, "label_values": values,
                "class_names": ["background", "organ"], "ignore_label": 255, "show_progress": False}  # fmt: skip
    workflow("train", "train", "semsim_minus", **options, **training, **{"cutmix#prob": 1.0}).run()
    flow = workflow("train", "train", "evaluate", **options, show_progress=False)
    evaluator = flow.parser.get_parsed_content("validate#evaluator")
    flow.run()
    output = evaluator.state.output[0]
    assert set(output["label"].unique().tolist()) == {0, 1}
    assert not output["pred"][:, :8].any() and not output["label"][:, :8].any()
    assert len(pd.read_csv(tmp_path / "run" / "scores.csv")) == 1


def test_scores_leave_out_what_nobody_judged():
    label = torch.tensor([[[0.0, 1.0, IGNORED, IGNORED]]])
    result = LeaveOutIgnoredd()({"pred": torch.tensor([[[0.0, 1.0, 1.0, 0.0]]]), "label": label})
    assert result["label"].tolist() == [[[0, 1, 0, 0]]] == result["pred"].tolist()
