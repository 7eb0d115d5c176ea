"""What prediction makes of folders as they come: endings in any case, labels beside images, volumes too large."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import pytest
import samples
import torch
from helpers import workflow
from scripts.dataio.datalist import read_images
from scripts.dataio.files import find_images, join_channels, without_labels
from scripts.dataio.readers import image_loader
from scripts.errors import InputError, chain, find_input_error
from scripts.method.network import SegmentationNet


def names(items: list[dict], folder: Path) -> list:
    shown = ([Path(f).relative_to(folder).as_posix() for f in ([i] if isinstance(i, str) else i)]
             for i in (item["image"] for item in items))  # fmt: skip
    return [files[0] if len(files) == 1 else files for files in shown]


@pytest.fixture
def weights(tmp_path) -> str:
    torch.save(SegmentationNet(out_channels=2).state_dict(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


def predict(images: Path, out: Path, weights: str, break_at: str = "") -> None:
    flow = workflow("infer", "inference", dataset_dir=str(images), output_dir=str(out), ckpt_path=weights,
                    spatial_size=32, class_names=["background", "organ"], show_progress=False)  # fmt: skip
    evaluator = flow.parser.get_parsed_content("evaluator")
    inferer = evaluator.inferer

    def limited(inputs, network, *args, **kwargs):
        if break_at and inputs.shape[-1] > 4:
            raise RuntimeError(break_at)
        return inferer(inputs, network, *args, **kwargs)

    evaluator.inferer = limited
    flow.run()


def test_endings_in_any_case_are_read_and_named_without(tmp_path, weights):
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
    predict(tmp_path / "scans", tmp_path / "out", weights)
    made = {p.name for p in (tmp_path / "out").iterdir()}
    assert made == {f"{name}_seg.nii.gz" for name in ("P0", "P1", "P2", "P3", "P4.5")}
    assert nib.load(tmp_path / "out" / "P1_seg.nii.gz").shape == (16, 12, 3)


@pytest.mark.parametrize("text", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"])
def test_a_volume_too_large_for_the_machine_stops_none_of_the_others(tmp_path, weights, text):
    for name, slices in (("a", 3), ("b", 8), ("c", 3)):
        samples.write_nifti(tmp_path / "scans" / f"{name}.nii.gz", samples.blob((16, 12, slices))[0])
    with pytest.raises(RuntimeError) as caught:
        predict(tmp_path / "scans", tmp_path / "out", weights, break_at=text)
    said = str(find_input_error(caught.value))
    assert said.startswith(str(tmp_path / "scans" / "b.nii.gz")) and "--slice_batch" in said
    assert "--batch_size" not in said and "fusion" not in said, "remedies of a prediction, not of a training"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_seg.nii.gz", "c_seg.nii.gz"]
    with pytest.raises(RuntimeError) as caught:
        predict(tmp_path / "scans", tmp_path / "out2", weights, break_at="something else")
    assert "something else" in [str(cause) for cause in chain(caught.value)]


def test_labels_are_not_predicted(tmp_path, caplog):
    for name in ("imagesTr/a", "imagesTs/b", "labelsTr/a", "P1/mr", "P1/mr_seg", "P1/masked"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    found = read_images(tmp_path)
    assert names(found, tmp_path) == [f"{name}.nii.gz" for name in ("P1/masked", "P1/mr", "imagesTr/a", "imagesTs/b")]
    assert "2 files are labels by their names" in caplog.text
    assert names(read_images(tmp_path / "labelsTr"), tmp_path) == ["labelsTr/a.nii.gz"], "asked for, so predicted"
    assert list(without_labels(find_images(tmp_path / "P1"))) == ["masked", "mr"]


def test_channels_of_nnunet_are_one_image(tmp_path):
    for name in ("A_0000", "A_0001", "B_0000", "B_0001", "C"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert names(read_images(tmp_path, in_channels=2), tmp_path) == [
        ["A_0000.nii.gz", "A_0001.nii.gz"], ["B_0000.nii.gz", "B_0001.nii.gz"], "C.nii.gz"
    ]  # fmt: skip
    assert len(read_images(tmp_path)) == 5, "to a network of one channel these are five images"
    (tmp_path / "B_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"B_0000\.nii\.gz: the channels 0001 of B are missing"):
        read_images(tmp_path, in_channels=2)
    assert set(join_channels({"x_0000": Path("x"), "y_0002": Path("y")})) == {"x_0000", "y_0002"}
