"""Intensities are part of the model: kept beside the weights, followed everywhere, and the padding of a CT ignored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import samples
import torch
from helpers import engine_with, workflow
from monai.data import MetaTensor
from scripts.dataio.intensity import Intensityd, padding_value, transform_of
from scripts.errors import InputError, find_input_error
from scripts.preparation.create import create
from scripts.training.settings import SaveSettings

WINDOW = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -150, "a_max": 250, "b_min": 0.0, "b_max": 1.0,
          "clip": True}  # fmt: skip


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """Two volumes in Hounsfield units with labels, and a list of them."""
    folder = tmp_path_factory.mktemp("ct")
    for name in ("a", "b"):
        image, label = samples.blob((16, 16, 3), seed=3)
        samples.write_nifti(folder / f"images/{name}.nii.gz", (image - 150).astype(np.int16))
        samples.write_nifti(folder / f"labels/{name}.nii.gz", label)
    items = [{"image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz"} for n in "ab"]
    (folder / "datalist.json").write_text(json.dumps({"training": items[:1], "testing": items[1:]}))
    return folder


def trained(ct, output, **options):
    workflow("train", "train", "labeled_only", dataset_dir=str(ct), output_dir=str(output), spatial_size=32,
             epochs=1, steps_per_epoch=1, batch_size=1, show_progress=False, class_names=["background", "organ"],
             **options).run()  # fmt: skip
    return json.loads((output / "training.json").read_text())


def prepared(kind, name, ct, output, *files, **options):
    """What the network of a prediction (or evaluation) sees of a volume."""
    if kind == "infer":
        options |= {"ckpt_path": str(output / "model_last.pt"), "dataset_dir": str(ct / "images")}
    else:
        options |= {"dataset_dir": str(ct), "output_dir": str(output)}
    flow = workflow(kind, *files, **options)
    item = {"image": str(ct / "images/b.nii.gz")}
    if kind == "train":
        item["label"] = str(ct / "labels/b.nii.gz")
    return np.asarray(flow.parser.get_parsed_content(name)(item)["image"])


def everywhere(ct, output, **options):
    yield prepared("infer", "preprocessing", ct, output, "inference", **options)
    yield prepared("train", "validate#preprocessing", ct, output, "train", "evaluate", **options)


def test_a_transform_of_ones_own_is_followed_without_being_repeated(ct, tmp_path):
    settings = trained(ct, tmp_path, intensity=WINDOW)
    assert settings["intensity"] == WINDOW
    seen = prepared("train", "validate#preprocessing", ct, tmp_path, "train", intensity=WINDOW, spatial_size=32,
                    class_names=["background", "organ"])  # fmt: skip
    assert seen.max() < 0.9
    for image in everywhere(ct, tmp_path):
        np.testing.assert_allclose(image, seen)
    for image in everywhere(ct, tmp_path, window=[-150, 50]):  # what is given explicitly wins
        assert image.max() == 1 and not np.allclose(image, seen)
    other = {**WINDOW, "a_max": 50}
    assert prepared("infer", "preprocessing", ct, tmp_path, "inference", intensity=other).max() == 1


def test_a_window_is_an_option(ct, tmp_path):
    settings = trained(ct, tmp_path, window=[-150, 250])
    assert settings["intensity"]["window"] == [-150, 250] and "@" not in json.dumps(settings["intensity"])
    brightest = Intensityd("image", window=(-150, 250))({"image": read(ct)})["image"].max()
    for image in everywhere(ct, tmp_path):
        np.testing.assert_allclose(image.max(), brightest, atol=0.02)


def test_evaluation_sees_what_prediction_sees_whatever_the_datalist_says(ct, tmp_path):
    """Its window is for trainings: one given there instead, or none, holds; so do the weights' for another data set."""
    lists = json.loads((ct / "datalist.json").read_text())
    stating = tmp_path / "stating.json"
    stating.write_text(json.dumps({**lists, "window": [0, 100]}))
    for name, window in (("wide", [-1000, 1000]), ("none", None)):
        trained(ct, tmp_path / name, datalist=str(stating), window=window)
        seen = prepared("train", "validate#preprocessing", ct, tmp_path / name, "train", "evaluate",
                        datalist=str(stating))  # fmt: skip
        np.testing.assert_allclose(seen, prepared("infer", "preprocessing", ct, tmp_path / name, "inference"))
        brightest = Intensityd("image", window=window)({"image": read(ct)})["image"].max()
        np.testing.assert_allclose(seen.max(), brightest, atol=0.02)


def test_a_ct_with_an_offset_is_named(caplog):
    ct = torch.full((1, 30, 30, 4), -1000.0)
    ct[:, 5:25, 5:25] = 40
    ct[:, 10:12, 10:12] = 900
    Intensityd("image", window=(-150, 250))({"image": ct})
    assert not caplog.text
    Intensityd("image", window=(-150, 250))({"image": MetaTensor(ct + 1024, meta={"filename_or_obj": "a.nii.gz"})})
    assert "a.nii.gz: 44% of its voxels lie above the window, which ends at 250" in caplog.text
    assert "subtract what was added" in caplog.text


def read(ct):
    from scripts.dataio.readers import image_loader

    return image_loader()(ct / "images/b.nii.gz")


def test_references_are_kept_as_what_they_stand_for(ct, tmp_path):
    settings = trained(ct, tmp_path, intensity="@mine", mine={**WINDOW, "a_max": "$@limits[1]"}, limits=[0, 300])
    assert settings["intensity"] == {**WINDOW, "a_max": 300}


@pytest.mark.parametrize("off", [True, "$@epochs == 1", "true"])
def test_what_is_switched_off_in_a_transform_stays_so(ct, tmp_path, off):
    """Training followed `_disabled_`; prediction and evaluation switched the transform on again."""
    standard = {"_target_": "NormalizeIntensityd", "keys": "image"}
    mine = {"_target_": "Compose", "transforms": [{**standard, "_disabled_": off}, {**WINDOW, "_disabled_": False}]}
    settings = trained(ct, tmp_path, intensity=mine)
    assert settings["intensity"] == {"_target_": "Compose", "transforms": [{**WINDOW, "_disabled_": False}]}
    seen = prepared("train", "validate#preprocessing", ct, tmp_path, "train", intensity=WINDOW, spatial_size=32,
                    class_names=["background", "organ"])  # fmt: skip
    for image in everywhere(ct, tmp_path):
        np.testing.assert_allclose(image, seen)


def test_what_is_switched_off_in_a_file_of_an_earlier_version_stays_so(tmp_path):
    """Also where a training that began with that version is resumed."""
    off = {"_target_": "NormalizeIntensityd", "keys": "image", "_disabled_": True}
    earlier, now = ({"_target_": "Compose", "transforms": transforms} for transforms in ([off, WINDOW], [WINDOW]))
    assert transform_of(earlier)({"image": torch.tensor([[-150.0, 250.0]])})["image"].tolist() == [[0, 1]]
    for given in (earlier, now):
        engine = engine_with([{"loss": 1.0}])
        SaveSettings(tmp_path, {"intensity": given}, [{"image": "a.nii.gz"}]).attach(engine)
        engine.run([0], max_epochs=1)
        (tmp_path / "resume_checkpoint_1.pt").touch()


def test_no_transform_at_all_is_refused(ct, tmp_path):
    off = {**WINDOW, "_disabled_": True}
    for given in ({"intensity": off}, {"intensity": "@mine", "mine": off}):
        with pytest.raises(RuntimeError) as error:
            trained(ct, tmp_path, **given)
        assert "intensity: expected a transform, received none" in str(find_input_error(error.value))
    with pytest.raises(InputError, match=r"training\.json: intensity: expected a transform, .* `_disabled_`; switch"):
        transform_of(off, "training.json")


def test_a_window_that_nothing_reads_is_refused(ct, tmp_path):
    with pytest.raises(RuntimeError) as error:
        trained(ct, tmp_path, intensity=WINDOW, window=[0, 1])
    assert "leave one of the two out" in str(find_input_error(error.value))
    with pytest.raises(InputError, match="lowest and highest"):
        Intensityd("image", window=[250, -150])


def test_weights_that_do_not_say_are_named(ct, tmp_path, caplog):
    trained(ct, tmp_path)
    settings = json.loads((tmp_path / "training.json").read_text())
    del settings["intensity"]
    (tmp_path / "training.json").write_text(json.dumps(settings))
    weights = tmp_path / "model_last.pt"
    prepared("infer", "preprocessing", ct, tmp_path, "inference")
    assert "taken from the weights themselves: intensity." in caplog.text
    torch.save(dict(torch.load(weights, weights_only=True)), weights)  # as an earlier version wrote them
    image = prepared("infer", "preprocessing", ct, tmp_path, "inference")
    assert "some settings are missing; using intensity: percentiles" in caplog.text and 0.9 < image.max() < 1.001


@pytest.mark.parametrize(
    "target", ["os.system", "scripts.hosts.monai_label.dataset_dir", "SaveImaged", "$print(1)", "Compos"]
)
def test_settings_beside_weights_are_no_code(target):
    with pytest.raises(InputError, match="no intensity transform of MONAI"):
        transform_of({"_target_": target, "keys": "image"}, "training.json")
    nested = {"_target_": "Compose", "transforms": [WINDOW, {"_target_": target}]}
    with pytest.raises(InputError, match=r"training\.json"):
        transform_of(nested, "training.json")


@pytest.mark.parametrize("module", ["scripts.intensity", "scripts.dataio.intensity"])
def test_settings_from_before_the_rooms_are_read(module):
    """`training.json` names the transform by its module, which was another one once."""
    (made,) = transform_of([{"_target_": f"{module}.Intensityd", "keys": "image", "window": [-150, 250]}], "t.json")
    assert isinstance(made, Intensityd) and made({"image": torch.tensor([[[50.0]]])})["image"].item() == 0.5


def test_padding_of_a_ct_counts_as_air():
    rng = np.random.default_rng(0)
    tissue = rng.normal(40, 15, (1, 20, 20, 4)).round()
    padded, air = tissue.copy(), tissue.copy()
    padded[:, :8], air[:, :8] = -3024, -1024
    scaled = [Intensityd("image")({"image": MetaTensor(torch.tensor(a))})["image"].numpy() for a in (padded, air)]
    np.testing.assert_array_equal(*scaled)
    assert padding_value(padded) == -3024 and padding_value(air) is None
    assert padding_value(rng.integers(-4096, 4096, (9, 9))) is None, "values spread below air are no padding"


def test_padding_of_a_ct_that_was_resampled_counts_as_air():
    """Interpolation leaves a few voxels between padding and air, and noise some below air."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, 64)] * 2, indexing="ij")
    radius = np.hypot(x, y)
    outside, body = radius > 0.99, radius < 0.6
    scan = np.where(body, 40.0, -1000.0) + np.random.default_rng(0).normal(0, 20, x.shape)
    edge = (radius > 0.97) & ~outside
    resampled = np.where(outside, -3024.0, np.where(edge & (x > 0.6), -2100.0, scan))
    assert 0 < (resampled == -2100).sum() < 0.05 * outside.sum()
    assert padding_value(resampled) == -3024
    image = Intensityd("image")({"image": MetaTensor(torch.tensor(resampled)[None])})["image"][0].numpy()
    tissue, air = image[body].mean(), image[~body & ~outside & ~edge].mean()
    assert tissue - air > 0.8, "the range is of air and tissue, not of the padding"
    phase = np.random.default_rng(0).uniform(-4096, 4096, (50, 50))
    phase[:40] = -4096
    assert padding_value(phase) is None, "an image of other values below air, with a background"


def test_numbers_below_zero_that_lost_their_sign_are_said(tmp_path, capsys):
    """CT saved as uint16: air at 64536 was brightest, and nothing said so."""
    for name in "abc":
        image, label = samples.blob((20, 20, 3), seed=ord(name))
        image = (image - 160).astype(np.int16)
        image[:2] = np.arange(-1000, -940).reshape(20, 3)
        image = image.view(np.uint16) if name == "a" else image
        if name == "c":  # a white background of 16 bits
            image = np.where(image < -900, 65535, image.clip(min=0)).astype(np.uint16)
        samples.write_nifti(tmp_path / f"images/{name}.nii.gz", image)
        samples.write_nifti(tmp_path / f"labels/{name}.nii.gz", label)
    create(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "d.json"), class_names="b,t")
    assert "1 images hold numbers from 0 on and just below 65536, and none between, a.nii.gz" in capsys.readouterr().out


def test_create_recognises_ct_and_proposes_a_window(tmp_path, capsys):
    for case, outside in (("a", -3024), ("b", -1024), ("c", -3024)):
        image, label = samples.blob((20, 20, 3), seed=1)
        image = (image - 160).astype(np.int16)  # tissue -60 to 0, the organ 90 to 150
        image[:2] = outside
        image[2, 0, 0] += ord(case)  # no two are alike
        label[:2] = 0
        samples.write_nifti(tmp_path / f"images/{case}.nii.gz", image)
        samples.write_nifti(tmp_path / f"labels/{case}.nii.gz", label)
    options = {name: str(tmp_path / name) for name in ("images", "labels")}
    create(**options, output=str(tmp_path / "d.json"), class_names="background,organ")
    shown = capsys.readouterr().out
    assert "\nwindow      30 to 210 HU become 0 and 1" in shown
    assert "Hounsfield units" in shown and "2 images are filled up" in shown
    assert json.loads((tmp_path / "d.json").read_text())["window"] == [30, 210]
    create(**options, output=str(tmp_path / "scored.json"), class_names="background,organ", labeled=0, testing=3)
    assert "window" not in json.loads((tmp_path / "scored.json").read_text()), "of labels that are to be predicted"
    assert "window " not in capsys.readouterr().out
    (row,) = [line for line in shown.splitlines() if line.startswith("intensity")]
    assert "-3024 to 149; in the median image -59" in row, "percentiles leave the padding out"
    for noise, case in enumerate("abc"):
        samples.write_nifti(tmp_path / f"images/{case}.nii.gz", samples.blob((20, 20, 3), seed=1)[0] + noise)
    create(**options, output=str(tmp_path / "e.json"), class_names="background,organ")
    assert "window" not in json.loads((tmp_path / "e.json").read_text())


def test_an_image_of_hardly_anything_but_zeros_stays_in_the_unit_range_and_is_named(caplog):
    image = torch.zeros(1, 100, 100)
    image[0, 0, :10] = torch.arange(100.0, 1100.0, 100.0)
    scaled = Intensityd("image")({"image": image})["image"]
    np.testing.assert_allclose(scaled[0, 0, :10], np.arange(0.1, 1.05, 0.1), rtol=1e-5)
    assert "percentiles are equal" in caplog.text and "--window" in caplog.text
