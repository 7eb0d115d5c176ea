"""Prediction of a folder as it comes from a hospital: mixed grids, broken files, earlier predictions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import samples
import torch
from conftest import config_args
from helpers import workflow
from monai.data import MetaTensor
from monai.transforms import SaveImage
from PIL import Image
from scripts.dataio import phantom
from scripts.dataio.readers import LoadFilesd, image_loader
from scripts.errors import InputError, explain, find_input_error
from scripts.evaluation.predict import (
    PredictionDataset,
    _subject,
    of_one_image,
    output_name,
    prepared_output,
    voxel_type,
)
from scripts.evaluation.stored_header import writer_of
from skimage import measure


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([2 * ((a == c) & (b == c)).sum() / ((a == c).sum() + (b == c).sum()) for c in (1, 2, 3)]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """Of a quick training that knows the phantom, which the shipped ones do not."""
    folder = tmp_path_factory.mktemp("weights")
    data = phantom.generate(folder / "phantom", seed=5, split={"training": 40})  # of 16, it missed patients
    workflow("train", "train", "labeled_only", dataset_dir=str(data), output_dir=str(folder / "run"), epochs=1,
             steps_per_epoch=200, spatial_size=64, learning_rate=0.002, show_progress=False).run()  # fmt: skip
    return str(folder / "run" / "model_last.pt")


def scans(folder: Path, count: int) -> dict[str, Path]:
    """Phantom patients in mixed orientations, spacings and types; returns the truth on the grid of each."""
    source = phantom.generate(folder / "source", seed=11, split={"testing": count})
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    (folder / "scans").mkdir()
    (folder / "truth").mkdir()
    truth = {}
    for number, path in enumerate(sorted((source / "images").iterdir())):
        image, label = nib.load(path), nib.load(source / "labels" / path.name)
        if number % 4 == 1:
            image, label = (v.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]])) for v in (image, label))
        if number % 4 == 2:
            image, label = (v.as_reoriented(np.array([[2, 1], [1, -1], [0, 1]])) for v in (image, label))
        array = np.asarray(image.dataobj, dtype=np.float64)
        kind = [np.int16, np.uint16, np.float32][number % 3]
        affine = turn @ image.affine if number % 4 == 3 else image.affine
        name = f"case{number:03d}"
        ending = [".nii.gz", ".nii"][number % 2]
        scaled = array if kind is np.float32 else (array - array.min()) / np.ptp(array) * 3000
        nib.save(nib.Nifti1Image(scaled.astype(kind), affine), folder / "scans" / f"{name}{ending}")
        nib.save(
            nib.Nifti1Image(np.asarray(label.dataobj).astype(np.uint8), affine), folder / "truth" / f"{name}.nii.gz"
        )
        truth[name] = folder / "truth" / f"{name}.nii.gz"
    return truth


def spoil(folder: Path) -> dict[str, str]:
    """Broken files among the scans, with what is to be said of each."""
    good = next(p for p in sorted(folder.iterdir()) if p.name.endswith(".nii.gz"))
    (folder / "cut.nii.gz").write_bytes(good.read_bytes()[:2000])
    (folder / "text.nii.gz").write_text("no image")
    affine = nib.load(good).affine
    nib.save(nib.Nifti1Image(np.full((20, 20, 4), np.nan, np.float32), affine), folder / "nan.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 4, 3), np.float32), affine), folder / "time.nii.gz")
    return {"cut.nii.gz": "cut off or broken; copy it anew", "text.nii.gz": "could not be read",
            "nan.nii.gz": "finite intensities", "time.nii.gz": "time.nii.gz"}  # fmt: skip


def test_broken_files_are_named_and_the_others_predicted(run_bundle, weights, tmp_path):
    truth = scans(tmp_path, 4)
    problems = spoil(tmp_path / "scans")
    out = tmp_path / "out"
    args = ("run", *config_args("inference"), "--dataset_dir", str(tmp_path / "scans"), "--output_dir", str(out),
            "--ckpt_path", weights)  # fmt: skip
    result = run_bundle(*args, check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    said = result.stderr[result.stderr.rindex("ERROR: ") :]
    assert "4 problems in the data" in said and "4 of 8 images predicted" in result.stdout
    for name, reason in problems.items():
        (line,) = [line for line in said.splitlines() if f"{name}:" in line]
        assert reason in line
    assert sorted(p.name for p in out.rglob("*.*")) == [f"{name}_seg.nii.gz" for name in sorted(truth)]
    for name, path in truth.items():
        predicted, expected = nib.load(out / f"{name}_seg.nii.gz"), nib.load(path)
        np.testing.assert_allclose(predicted.affine, expected.affine, atol=1e-4)
        assert predicted.shape == expected.shape
        assert dice(np.asarray(predicted.dataobj), np.asarray(expected.dataobj)) > 0.4, name
    # a second run replaces nothing, or goes on with what is missing
    for name in problems:
        (tmp_path / "scans" / name).unlink()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.gz")}
    refused = run_bundle(*args, check=False)
    assert refused.returncode == 1 and "a prediction is there already; if it is of" in refused.stderr
    assert "give --existing skip or overwrite, else another --output_dir" in refused.stderr
    (out / "case001_seg.nii.gz").unlink()
    run_bundle(*args, "--existing", "skip")
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*.gz")}
    assert after.keys() == before.keys() and sum(after[p] != before[p] for p in before) == 1


def failing_at_the_second(folder: Path, scan: Path, part: str, error: Exception):
    """The evaluator of a prediction of three scans whose inferer, or whose reading, ends with an error at b."""
    for name in ("a", "b", "c"):
        shutil.copy(scan, folder / f"{name}.nii.gz")
    flow = workflow("infer", "inference", dataset_dir=str(folder), output_dir=str(folder / "out"), spatial_size=32,
                    show_progress=False)  # fmt: skip
    evaluator, dataset = (flow.parser.get_parsed_content(name) for name in ("evaluator", "dataset"))
    owner = evaluator if part == "inferer" else dataset
    method, calls = getattr(owner, part), iter("abc")

    def call(*args):
        if next(calls) == "b":
            raise error
        return method(*args)

    setattr(owner, part, call)
    return evaluator


@pytest.mark.parametrize(
    ("part", "error"),
    [("inferer", torch.OutOfMemoryError("on the GPU")), ("transform", MemoryError("Unable to allocate")),
     ("inferer", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))],
)  # fmt: skip
def test_a_volume_too_large_for_the_memory_stops_none_of_the_others(part, error, phantom_dir, tmp_path):
    """The second of three runs out of memory: it is named with what helps in prediction, the others are written."""
    scan = next((phantom_dir / "images").iterdir())
    with pytest.raises(InputError) as caught:
        failing_at_the_second(tmp_path, scan, part, error).run()
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'b.nii.gz'}: out of memory") and "Lower --slice_batch" in said
    assert "--batch_size" not in said and "fusion" not in said, "remedies of a prediction, not of a training"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_seg.nii.gz", "c_seg.nii.gz"]


def test_an_error_that_is_no_images_ends_the_prediction(phantom_dir, tmp_path):
    scan = next((phantom_dir / "images").iterdir())
    with pytest.raises(RuntimeError, match="something else"):
        failing_at_the_second(tmp_path, scan, "inferer", RuntimeError("something else")).run()


def test_an_image_that_has_no_prediction_stops_none_of_the_others(phantom_dir, tmp_path):
    """A single voxel, which MONAI's writer cannot hold, and an image for which the network gives no numbers."""
    good = next((phantom_dir / "images").iterdir())
    for name in ("a", "d"):
        shutil.copy(good, tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.full((1, 1, 1), 3.0), np.diag([1.0, 1, 2, 1])), tmp_path / "b.nii.gz")
    flat = nib.Nifti1Image(np.full((8, 8, 4), 3, np.int16), np.diag([1.0, 1, 2, 1]))
    nib.save(flat, tmp_path / "c.nii.gz")

    class Divides(torch.nn.Module):
        def forward(self, x):
            flat = x.shape[0] == 4 and x.max() == x.min()
            return torch.cat([x, x, x, x / 0 if flat else x], dim=1)

    out = tmp_path / "out"
    flow = workflow("infer", "inference", dataset_dir=str(tmp_path), output_dir=str(out), spatial_size=32,
                    show_progress=False, network=Divides(), keep_largest=False)  # fmt: skip
    with pytest.raises(InputError) as caught:
        flow.parser.get_parsed_content("evaluator").run()
    first, one, nan = str(caught.value).splitlines()
    assert first.startswith("2 problems") and re.search(r"b.nii.gz: its prediction could not be written .Index", one)
    assert "c.nii.gz: network: expected finite logits, received NaN or infinity" in nan
    assert sorted(p.name for p in out.iterdir()) == ["a_seg.nii.gz", "d_seg.nii.gz"]
    image = str(tmp_path / "a.nii.gz")
    for kind, passed in (
        ("IndexError: 1", True),
        ("PermissionError: [Errno 13] x", False),
        ("RuntimeError: ITK", False),
    ):
        error = RuntimeError(f"cannot find a suitable writer for {out}.\n{kind}")
        assert bool(of_one_image(error, image, "")) == passed, "what all would fail of ends the run"


@pytest.mark.parametrize(
    "files, options, expected",
    [
        (["a.nii.gz"], {"output_postfix": ""}, "would replace this image"),
        (["a.nii.gz", "a.mha"], {}, "is also that of"),
        (["a.nii.gz"], {"existing": "perhaps"}, "expected refuse, skip or overwrite"),
        (
            [f"{'x' * 240}.nii.gz"],
            {},
            r"short enough for its prediction \(255 bytes\), received one that makes 257; short",
        ),
    ],
)
def test_no_file_is_lost_to_another(tmp_path, files, options, expected):
    for name in files:
        (tmp_path / name).touch()
    items = [{"image": str(tmp_path / name)} for name in files]
    with pytest.raises(InputError, match=expected):
        prepared_output(items, tmp_path, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
def test_the_prediction_of_another_patient_passes_for_none(tmp_path, existing):
    """Scans of one name, predicted folder by folder into one: neither is left out for the other, nor replaced by it."""
    moved = np.diag([1.0, 1, 3, 1])
    moved[:3, 3] = 5
    for patient, shape, affine in (("P1", (8, 7, 4), None), ("P2", (8, 7, 5), None), ("P3", (8, 7, 4), moved)):
        place = np.diag([1.0, 1, 3, 1]) if affine is None else affine
        (tmp_path / patient).mkdir()
        nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), place), tmp_path / patient / "scan.nii.gz")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "scan_seg.nii.gz"
    shutil.copy(tmp_path / "P1" / "scan.nii.gz", target)
    items = {patient: [{"image": str(tmp_path / patient / "scan.nii.gz")}] for patient in ("P1", "P2", "P3")}
    assert len(prepared_output(items["P1"], tmp_path / "out", existing=existing)) == (existing == "overwrite")
    for patient, why in (("P2", "8 x 7 x 4 and 8 x 7 x 5 voxels"), ("P3", "its place in space")):
        with pytest.raises(InputError, match=f"one of another grid .{why}.*give another --output_dir"):
            prepared_output(items[patient], tmp_path / "out", existing=existing)
    target.write_bytes(target.read_bytes()[:40])
    with pytest.raises(InputError, match="it cannot be read"):
        prepared_output(items["P1"], tmp_path / "out", existing=existing)


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
def test_the_prediction_of_another_picture_passes_for_none(tmp_path, existing):
    """By its size, whatever both are stored in, and whichever way a picture is turned by viewers."""
    for day, size in (("day1", (30, 20)), ("day2", (40, 20))):
        (tmp_path / day).mkdir()
        Image.new("L", size).save(tmp_path / day / "a.png")
        Image.new("L", size).save(tmp_path / day / "b.tif")
        exif = Image.Exif()
        exif[274] = 6
        Image.new("L", size[::-1]).save(tmp_path / day / "c.jpg", exif=exif)
    for name, ending in (("a", ".png"), ("b", ".tif"), ("c", ".png"), ("a", ".nii.gz"), ("c", ".nii.gz")):
        out = tmp_path / f"{name}{ending}"
        out.mkdir()
        items = [[{"image": str(next((tmp_path / day).glob(f"{name}.*")))}] for day in ("day1", "day2")]
        read = LoadFilesd("image")(items[0][0])["image"]
        SaveImage(out, "seg", ending, separate_folder=False, resample=False, output_dtype=np.uint8, print_log=False,
                  writer=writer_of(ending))(read[None])  # fmt: skip
        assert len(list(out.iterdir())) == 1
        options = {"output_ext": ending, "existing": existing}
        assert len(prepared_output(items[0], out, **options)) == (existing == "overwrite")
        with pytest.raises(InputError, match=r"one of another grid \(30 x 20.* and 40 x 20.* voxels"):
            prepared_output(items[1], out, **options)


def test_a_prediction_is_of_one_image_also_where_it_is_skipped(tmp_path):
    for name in ("a.nii.gz", "a.nii", "out/a_seg.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.diag([1.0, 1, 2, 1])), tmp_path / name)
    items = [{"image": str(tmp_path / name)} for name in ("a.nii.gz", "a.nii")]
    with pytest.raises(InputError, match=r"a\.nii: its prediction .* is also that of .*a\.nii\.gz"):
        prepared_output(items, tmp_path / "out", existing="skip")


@pytest.mark.parametrize("ending", [".Nii.gz", "nii.gz", "NII.GZ"])
def test_endings_and_postfixes_are_one_however_they_are_spelt(tmp_path, ending):
    """So that earlier predictions are neither replaced nor predicted."""
    for name in ("a.nii.gz", "b.nii.gz", "a_2.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.diag([1.0, 1, 2, 1])), tmp_path / name)
    options = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path), "output_postfix": "2", "output_ext": ending}
    flow = workflow("infer", "inference", **options)
    with pytest.raises(Exception, match=r"a_2.nii.gz: a prediction is there already"):
        try:
            flow.parser.get_parsed_content("dataset#data")
        except RuntimeError as error:
            raise find_input_error(error) from error
    flow = workflow("infer", "inference", **options, existing="skip")
    assert [Path(item["image"]).name for item in flow.parser.get_parsed_content("dataset#data")] == ["b.nii.gz"]
    assert flow.parser.get_parsed_content("postprocessing").transforms[-1].saver.output_ext == ".nii.gz"


def test_endings_in_any_case_are_read_and_named_without(tmp_path):
    image, _ = samples.blob((16, 12, 3))
    samples.write_nifti(tmp_path / "a.nii.gz", image)
    samples.write_nifti(tmp_path / "a.nii", image)
    samples.write_itk(tmp_path / "a.mha", image)
    (tmp_path / "scans").mkdir()
    for source, name in (("a.nii.gz", "P0.NII.GZ"), ("a.nii.gz", "P1.Nii.gz"), ("a.nii", "P2.Nii"), ("a.mha", "P3.MHA"),
                         ("a.nii.gz", "P4.5.nii.gz")):  # fmt: skip
        shutil.copy(tmp_path / source, tmp_path / "scans" / name)
        read = image_loader()(tmp_path / "scans" / name)
        torch.testing.assert_close(read.as_tensor(), torch.as_tensor(image[None]), check_dtype=False)
    workflow("infer", "inference", dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "out"),
             spatial_size=32, show_progress=False).run()  # fmt: skip
    made = {p.name for p in (tmp_path / "out").iterdir()}
    assert made == {f"{name}_seg.nii.gz" for name in ("P0", "P1", "P2", "P3", "P4.5")}
    assert nib.load(tmp_path / "out" / "P1_seg.nii.gz").shape == (16, 12, 3)


def test_dicom_files_and_folders_named_by_uid_keep_their_names(tmp_path):
    for uid in ("1.2.840.7", "1.2.840.8"):
        (tmp_path / "in" / uid).mkdir(parents=True)
    single = [{"image": str(tmp_path / "files" / name)} for name in ("1.2.840.7", "1.2.840.8", "v1.5_T2", "x.IMA")]
    prepared_output(single, tmp_path / "out")  # each its own
    assert _subject(single[0]["image"]).endswith("1.2.840.7.dcm") and _subject("a/x.IMA") == "a/x.IMA"
    items = [{"image": str(tmp_path / "in" / uid)} for uid in ("1.2.840.7", "1.2.840.8")]
    assert prepared_output(items, tmp_path / "out") == items
    (tmp_path / "out").mkdir()
    saver = SaveImage(tmp_path / "out", output_postfix="seg", output_ext=".nii.gz", separate_folder=False,
                      output_name_formatter=output_name, print_log=False)  # fmt: skip
    saver(MetaTensor(torch.zeros(1, 4, 4, 2), meta={"filename_or_obj": items[0]["image"]}))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["1.2.840.7_seg.nii.gz"]
    assert prepared_output(items, tmp_path / "out", existing="skip") == items[1:]


def test_one_volume_stored_in_many_ways_is_predicted_alike(weights, tmp_path):
    """Whatever the orientation, slice axis, voxel type and format of the file: the same voxels get the same class."""
    source = phantom.generate(tmp_path / "source", seed=11, split={"testing": 1})
    image = nib.load(next((source / "images").iterdir()))
    (tmp_path / "scans").mkdir()
    turns = {"flipped": [[0, -1], [1, -1], [2, 1]], "upside_down": [[0, 1], [1, 1], [2, -1]],
             "transposed": [[1, 1], [0, 1], [2, 1]], "slices_first": [[1, 1], [2, -1], [0, -1]]}  # fmt: skip
    stored = {"plain": image, **{name: image.as_reoriented(np.array(turn)) for name, turn in turns.items()}}
    for name, volume in stored.items():
        nib.save(volume, tmp_path / "scans" / f"{name}.nii.gz")
    values = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(values.astype(np.float64), image.affine), tmp_path / "scans" / "doubles.nii")
    SaveImage(tmp_path / "scans", output_postfix="", output_ext=".nrrd", separate_folder=False, print_log=False,
              writer="ITKWriter", output_dtype=np.float32)(
        MetaTensor(values[None], affine=image.affine, meta={"filename_or_obj": "other_format.nii.gz"})
    )  # fmt: skip
    workflow("infer", "inference", dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "out"),
             ckpt_path=weights, show_progress=False).run()  # fmt: skip
    predicted = {p.name.removesuffix("_seg.nii.gz"): nib.load(p) for p in (tmp_path / "out").iterdir()}
    assert set(predicted) == {*stored, "doubles", "other_format"}
    expected = np.asarray(predicted["plain"].dataobj)
    assert (expected > 0).sum() > 500
    for name, volume in predicted.items():
        assert volume.shape == (stored[name].shape if name in stored else image.shape)
        same = np.asarray(nib.as_closest_canonical(volume).dataobj)
        assert dice(same, np.asarray(nib.as_closest_canonical(predicted["plain"]).dataobj)) > 0.99, name


def trained_with(weights: str, folder: Path, label_values: list[int]) -> str:
    """A copy of the weights whose training read such labels."""
    shutil.copytree(Path(weights).parent, folder)
    settings = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**settings, "label_values": label_values}))
    return str(folder / "model_last.pt")


def test_predictions_are_coded_as_the_labels(run_bundle, weights, tmp_path):
    """So that a corrected one belongs among them; the class numbers on demand."""
    truth = scans(tmp_path, 2)
    predicted = []
    for coded, options in (([0, 1, 5, 600], ["--label_values", "$None"]), ([0, 1, 5, 600], []), ([3, 255, 1, 0], [])):
        folder = tmp_path / str(len(predicted))
        ckpt_path = trained_with(weights, folder / "run", coded)
        result = run_bundle("run", *config_args("inference"), "--dataset_dir", str(tmp_path / "scans"), *options,
                            "--ckpt_path", ckpt_path, "--output_dir", str(folder / "out"))  # fmt: skip
        said = f"{coded[1]} for right ventricle, {coded[2]} for myocardium, {coded[3]} for left ventricle."
        assert (said in result.stderr + result.stdout) == (not options)
        predicted.append([np.asarray(nib.load(folder / "out" / f"{name}_seg.nii.gz").dataobj) for name in truth])
    for plain, wide, small in zip(*predicted):
        assert {*np.unique(plain)} == {0, 1, 2, 3} and plain.dtype == small.dtype == np.uint8
        np.testing.assert_array_equal(wide, np.array([0, 1, 5, 600])[plain])
        np.testing.assert_array_equal(small, np.array([3, 255, 1, 0])[plain])


@pytest.mark.parametrize("values, ending, expected", [
    ([0, 1, 5, 600], ".png", "from 0 to 255, received .*600"),
    ([0, -1, 1, 2], ".PNG", "from 0 to 255, received .*-1"),
    ([0, 1, 5], ".nii.gz", "a value of its own for each of the 4 classes"),
    ([0, 1, 5, 5], ".nii.gz", "a value of its own for each of the 4 classes"),
    (None, ".jpg", "JPG changes label values"),
    (None, ".npy", "output_ext: expected one of .nii.gz, .*received '.npy'"),
    ([0, 1, 5, 600], ".dcm", "output_ext: expected one of .nii.gz, .*received '.dcm'"),
    ([0, 1, 1.5, 2], ".nii.gz", r"expected whole numbers of 32 bits, .*received \[0, 1, 1.5, 2\]"),
    ([0, 1, 2, 2**31], ".nii.gz", "expected whole numbers of 32 bits, .*received .*2147483648"),
    (255, ".nii.gz", "expected whole numbers of 32 bits, .*received 255"),
    ("0 1 2 3", ".nii.gz", "expected whole numbers of 32 bits, .*received '0 1 2 3'"),
])  # fmt: skip
def test_values_that_the_files_cannot_hold_are_refused(values, ending, expected):
    with pytest.raises(InputError, match=expected):
        voxel_type(["background", "a", "b", "c"], values, ending)


@pytest.mark.parametrize("ending", [".png", ".tif", ".BMP"])
def test_a_volume_is_no_picture(tmp_path, ending):
    """MONAI's writer would keep its first slice alone."""
    for name, shape in (("volume", (8, 6, 4)), ("slice", (8, 6, 1))):
        nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    items = [{"image": str(tmp_path / f"{name}.nii.gz")} for name in ("volume", "slice")]
    found = PredictionDataset(items, LoadFilesd("image"), output_ext=ending)
    assert re.search(r"volume.nii.gz: expected an image of one slice .*8 x 6 x 4 voxels; give --output_ext .nii.gz",
                     found[0].problem)  # fmt: skip
    assert found[1]["image"].shape == PredictionDataset(items, LoadFilesd("image"))[1]["image"].shape == (8, 6, 1)


def test_two_hundred_volumes_with_flat_memory(weights, tmp_path):
    """Every good one on its own grid where the organs are, every broken one named, memory flat."""
    truth = scans(tmp_path, 200)
    problems = spoil(tmp_path / "scans")
    flow = workflow("infer", "inference", dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "out"),
                    ckpt_path=weights, show_progress=False)  # fmt: skip
    evaluator, resident = flow.parser.get_parsed_content("evaluator"), []
    from ignite.engine import Events

    evaluator.add_event_handler(Events.ITERATION_COMPLETED,
                                lambda: resident.append(psutil.Process().memory_info().rss))  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        flow.run()
    said = str(explain(caught.value))
    assert said.startswith("4 problems") and all(name in said for name in problems)
    scores = []
    for name, path in truth.items():
        predicted, expected = nib.load(tmp_path / "out" / f"{name}_seg.nii.gz"), nib.load(path)
        np.testing.assert_allclose(predicted.affine, expected.affine, atol=1e-4)
        scores.append(dice(np.asarray(predicted.dataobj), np.asarray(expected.dataobj)))
    for kinds in (3, 4):  # of voxel types, of orientations
        for kind in range(kinds):
            assert np.mean(scores[kind::kinds]) > 0.6, f"kind {kind} of {kinds}"
    assert np.quantile(scores, 0.05) > 0.3, "weights of a short training miss a few, not a kind"
    assert max(resident[100:]) < 1.1 * max(resident[20:100])


def test_the_largest_piece_is_kept_as_the_training_noted(phantom_dir, tmp_path):
    """A training with ``keep_largest`` predicts and scores so without being told again; the option still decides."""
    run, out = tmp_path / "run", tmp_path / "out"
    common = {"dataset_dir": str(phantom_dir), "output_dir": str(run), "spatial_size": 64, "learning_rate": 0.003}
    flow = workflow("train", "train", "labeled_only", **common, epochs=1, steps_per_epoch=60, keep_largest=True,
                    flips=0.5)  # fmt: skip
    flow.run()

    def pieces(name: str, **options) -> int:
        settings = {"ckpt_path": str(run / "model_last.pt"), "output_dir": str(out / name), **options}
        workflow("infer", "inference", dataset_dir=str(phantom_dir / "images"), show_progress=False, **settings).run()
        counts = [
            measure.label(np.asarray(nib.load(path).dataobj) == c, connectivity=3).max()
            for path in (out / name).glob("*_seg.nii.gz")
            for c in (1, 2, 3)
        ]
        assert counts
        return max(counts)

    assert pieces("noted") == 1 and pieces("all", keep_largest=False) > 1
    assert json.loads((run / "training.json").read_text())["flip_tta"] is True, "as labeled_transforms flip"
    for name, options in (("noted", {}), ("all", {"keep_largest": False})):
        scored = {**common, "output_dir": str(out / name), "ckpt_path": str(run / "model_last.pt"), **options}
        flow = workflow("train", "train", "evaluate", **scored)
        flow.run()
        scores = json.loads((out / name / "scores.json").read_text())
        assert scores["keep_largest"] is (name == "noted") and scores["flip_tta"]
        assert flow.parser.get_parsed_content("validate#inferer").flip_tta

    # over flips, as the training notes; weights that say nothing of it are older and predict without
    def flips() -> list[list[int]]:
        settings = {"ckpt_path": str(run / "model_last.pt"), "output_dir": str(out / "flips"), "show_progress": False}
        flow = workflow("infer", "inference", dataset_dir=str(phantom_dir / "images"), **settings)
        scored = workflow("train", "train", "evaluate", **{**common, **settings})
        found = (flow.parser.get_parsed_content("inferer"), scored.parser.get_parsed_content("validate#inferer"))
        return [inferer.flip_tta for inferer in found]

    assert flips() == [[0, 1], [0, 1]]
    path = run / "training.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "flip_tta"}))
    assert flips() == [[], []]
