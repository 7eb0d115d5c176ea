"""Every command in the documentation is run, as it stands there, on a small phantom."""

from __future__ import annotations

import doctest
import json
import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import samples
import torch
import yaml
from conftest import BUNDLE, ENVIRONMENT, ROOT
from helpers import read_rows
from scripts.dataio import phantom
from scripts.method import losses
from scripts.method.network import SegmentationNet

RESULTS = ROOT / "benchmarks" / "results" / "accuracy"
DOCS = [ROOT / "README.md", *sorted((ROOT / "bundle" / "docs").glob("*.md"))]
FOLDERS = [ROOT / "benchmarks", ROOT / "algo_template" / "semsim" / "docs", ROOT / "label_app"]
PAGES = [*DOCS, *(page for folder in FOLDERS for page in sorted(folder.glob("*.md")))]
#: options of MONAI, torch, docker and others
FOREIGN = {"args_file", "ensemble", "input", "logdir", "master_addr", "master_port", "nnodes", "node_rank",
           "nproc_per_node", "shm-size", "ssl_certfile", "ssl_keyfile", "tracking", "work_dir"}  # fmt: skip
#: what else may stand in a block of commands; `make` is what runs these tests and what CI runs
SHELL = ("make demo", "make test", "make install", "make label-demo", ". .venv/bin/activate",
         "export OMP_WAIT_POLICY=PASSIVE", "cd bundle")  # fmt: skip


def commands(path: Path) -> list[str]:
    """Command lines of the bash blocks of a page, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (raw.split("  #")[0].strip() for raw in lines) if line and not line.startswith("#")]


def named_files() -> dict[str, str]:
    """Blocks of YAML and Python that begin with the name of a file, as `# own.yaml`."""
    text = "".join(path.read_text() for path in DOCS)
    blocks = re.findall(r"```(?:yaml|python)\n(# (\w+\.(?:yaml|py))\n.*?)```", text, flags=re.S)
    return {name: code for code, name in blocks}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A user's folder: 18 patients with labels, two more without, new scans, and the files that the pages show."""
    folder = tmp_path_factory.mktemp("user")
    for name, code in named_files().items():
        (folder / name).write_text(code)
    source = phantom.generate(folder / "source", seed=3, split={"training": 18, "unlabeled": 2})
    for name in ("images", "labels"):
        shutil.move(source / name, folder / name)
    items = [{"image": f"images/patient{n:03d}.nii.gz", "label": f"labels/patient{n:03d}.nii.gz"} for n in range(4)]
    lists = {"training": items, "unlabeled": [{"image": f"images/patient{n:03d}.nii.gz"} for n in (18, 19)],
             "testing": [{"image": "images/patient005.nii.gz"}]}  # fmt: skip
    (folder / "a3d.json").write_text(json.dumps(lists))
    given = {"modality": "mri", "dataroot": str(folder), "datalist": str(folder / "a3d.json"), "num_fold": 2,
             "epochs": 1, "spatial_size": 32, "batch_size": 4}  # fmt: skip
    (folder / "input.yaml").write_text(yaml.safe_dump(given))
    samples.make_acdc(folder / "ACDC", range(1, 101))
    for number in range(14):
        image, label = samples.blob((40, 30 + number, 1), seed=number)
        colour = np.repeat(image.clip(0, 255).astype(np.uint8), 3, axis=-1)
        samples.write_picture(folder / "skin" / "images" / f"skin{number}.jpg", colour)
        samples.write_picture(folder / "skin" / "labels" / f"skin{number}.png", label[..., 0] * 255)
    samples.make_organs(folder / "organs", {f"P{n}": ("liver", "spleen") for n in (1, 2)} | {"P3": ()})
    (folder / "new").mkdir()
    shutil.copy(folder / "images" / "patient000.nii.gz", folder / "new" / "scan.nii.gz")
    return folder


def test_every_line_is_a_known_kind():
    for path in DOCS:
        for line in commands(path):
            assert line in SHELL or line.startswith("python -m "), f"{path.name}: {line}"
    assert len(commands(ROOT / "README.md")) >= 10 and sum(len(commands(path)) for path in DOCS) >= 25


def numbered() -> list:
    lines = [(path, line) for path in DOCS for line in commands(path) if line not in SHELL]
    return [pytest.param(path, line, id=f"{path.parent.name}-{i}") for i, (path, line) in enumerate(lines)]


@pytest.mark.parametrize("path, line", numbered())
def test_command_runs_as_written(run_bundle, data, path, line):
    """In the order of the pages: a command may use what an earlier one made."""
    _, _, module, *args = shlex.split(re.sub(r"/data(?=/| |$)", str(data), line))
    if "train.yaml" in line and "evaluate.yaml" not in line:
        args += ["--epochs", "1", "--spatial_size", "32", "--val_interval", "1"]
    if "paper.yaml" in line:
        args += ["--steps_per_epoch", "1"]
    if "--minutes" in line:  # an hour; test_clock.py trains by the clock
        args[args.index("--minutes") + 1] = "$None"
    if "--resume auto" in line:
        args += ["--epochs", "2"]
    if "inference.yaml" in line and args[0] == "run" and "--output_dir" not in line:
        args += ["--output_dir", str(data / "card")]
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*") if p.is_file()}
    run_bundle(*args, module=module)
    files = (p for p in data.rglob("*") if p.is_file())
    made = {str(p.relative_to(data)) for p in files if before.get(p) != p.stat().st_mtime_ns}
    for option, expected in (
        ("--output /data/datalist.json", "datalist.json"),
        ("look.csv", "look.csv"),
        ("benchmark acdc", "acdc.json"),
        ("reporting", "report/index.html"),
        ("scripts report", "first/report/index.html"),
        ("--tracking mlflow", "tracked/mlruns.db"),
        ("skin_masks", "skin_masks/skin7_seg.png"),
        ("--resume auto", "run/resume_checkpoint_2.pt"),
        ("--output_dir /data/run --minutes 60", "run/model_last.pt"),
        ("evaluate.yaml", "scores.csv"),
        ("--output_dir /data/predictions", "predictions/scan_seg.nii.gz"),
        ("multi_gpu_train", "run2/model_last.pt"),
        ("model.ts", "model.ts"),
        ("model.onnx", "model.onnx"),
        ("AutoRunner", "auto3dseg/ensemble_output/images/patient005_ensemble.nii.gz"),
    ):
        if option in " ".join(line.split()):
            assert any(name.endswith(expected) for name in made), made
    for place in re.findall(r"--output(?:_dir)? /data/(\S+)", "" if "--dry_run" in line else line):
        assert any(name == place or name.startswith(f"{place}/") for name in made), f"{place}: {made}"
    if " planning " in line:
        assert not made, "nothing but a summary"
    if "--dry_run" in line:
        assert made <= {"look.csv"}, "no datalist"
    if "card" in args[-1]:
        assert sum(name.endswith("_seg.nii.gz") for name in made) == 30


def test_python_runs_as_written(data, monkeypatch):
    """Every block of Python in the docs, and the one in the docstring of the loss."""
    monkeypatch.chdir(BUNDLE)
    blocks = [code for path in DOCS for code in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.S)]
    blocks = [code for code in blocks if code not in named_files().values()]
    for code in blocks:
        names: dict = {}
        exec(re.sub(r"/data(?=/)", str(data), code), names)
        if "loss" in names:
            assert all(p.grad is not None for p in names["network"].parameters())
        else:  # what the command for the same scan has written
            written = nib.load(data / "predictions" / "scan_seg.nii.gz")
            np.testing.assert_array_equal(names["labels"][0], np.asarray(written.dataobj))
    assert len(blocks) == 2 and doctest.testmod(losses).attempted > 10 and not doctest.testmod(losses).failed


def test_files_of_ones_own_train_as_written(run_bundle, data, monkeypatch, tmp_path):
    """A network with encoder and decoder in UniMatch and SemSim-, a loss term, an intensity; prediction and report."""
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(data))
    assert {"own.py", "own.yaml", "own_loss.py", "own_loss.yaml", "robust.yaml", "segresnet.yaml"} == {*named_files()}
    given = ("--dataset_dir", str(data), "--datalist", str(data / "datalist.json"), "--output_dir")
    short = ("--epochs", "1", "--steps_per_epoch", "1", "--spatial_size", "32", "--unlabeled_start", "0")

    def files(*names: str) -> tuple[str, str]:
        return "--config_file", str([str(data / n) if (data / n).is_file() else f"configs/{n}" for n in names])

    names = "train.yaml", "unimatch.yaml", "own.yaml"
    run_bundle("run", "training", *files(*names), *given, str(tmp_path / "u"), *short)
    names = "train.yaml", "semsim_minus.yaml", "own.yaml", "own_loss.yaml", "robust.yaml"
    more = "--network_def#fusion", "conv"
    run_bundle("run", "training", *files(*names), *given, str(tmp_path / "s"), *short, *more)
    (row,) = read_rows(tmp_path / "s" / "training_log.csv")
    terms = {name: float(row[f"loss_{name}"]) for name in ("s", "u", "intra", "cross", "entropy")}
    whole = 0.5 * (terms["s"] + 0.5 * terms["u"] + 0.25 * (terms["intra"] + terms["cross"])) + 0.1 * terms["entropy"]
    assert terms["entropy"] > 0.1 and float(row["loss"]) == pytest.approx(whole, rel=1e-3)
    assert json.loads((tmp_path / "s" / "training.json").read_text())["intensity"]["_target_"] == "NormalizeIntensityd"
    new = "--dataset_dir", str(data / "new"), "--output_dir", str(tmp_path / "p"), "--ckpt_path", str(tmp_path / "s")
    run_bundle("run", *files("inference.yaml", "own.yaml"), *new)
    assert (tmp_path / "p" / "scan_seg.nii.gz").is_file()


def test_two_processes_write_as_one(data):
    """What the command for several processes left behind: one row, and a file without a wrapper's prefix."""
    log = (data / "run2" / "training_log.csv").read_text().splitlines()
    assert len(log) == 2 and len((data / "run2" / "validation_log.csv").read_text().splitlines()) == 2
    state = torch.load(data / "run2" / "model_last.pt", weights_only=True)
    SegmentationNet().load_state_dict(state, strict=True)


def test_exports_agree_with_the_network_and_have_no_fusion(data):
    network = SegmentationNet()
    weights = torch.load(data / "run" / "model_best.pt", weights_only=True)
    assert any(name.startswith("fusion.") for name in weights)
    network.load_state_dict(weights, strict=True)
    network.eval()
    image = torch.rand(3, 1, 96, 64)
    with torch.no_grad():
        expected = network(image)
    scripted = torch.jit.load(str(data / "model.ts"))
    torch.testing.assert_close(scripted(image), expected, atol=1e-4, rtol=0)
    assert not any("fusion" in name for name, _ in scripted.named_parameters())
    session = onnxruntime.InferenceSession(str(data / "model.onnx"))
    result = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-4)


def test_options_named_in_the_text_exist():
    """Those that stand between commands are keys of a config, or arguments of a function or of a command line."""
    files = [file for folder in ("bundle", "algo_template", "label_app", "benchmarks") for kind in ("*.py", "*.yaml")
             for file in (ROOT / folder).rglob(kind)]  # fmt: skip
    code = "".join(file.read_text() for file in files)
    keys, arguments = r"(?m)^ *[-{]? *(\w+)[:=]", r"[(,] ?\*?(\w+)(?:: |=)"
    known = {*re.findall(keys, code), *re.findall(arguments, code), *re.findall(r'"--([\w-]+)"', code), *FOREIGN}
    for path in PAGES:
        for option in re.findall(r"(?<![\w-])--(\w[\w-]*(?:#\w+)*)", path.read_text()):
            assert known.issuperset(option.split("#")), f"{path.name}: --{option}"


def test_links_lead_somewhere():
    for path in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            if target.startswith("http"):
                continue
            file, _, heading = target.partition("#")
            page = path.parent / file if file else path
            assert page.exists(), f"{path.name}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.+)", page.read_text(), flags=re.M)
                anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
                assert heading in anchors, f"{path.name}: {target}"


def test_tests_named_in_the_table_of_reliability_exist():
    text = (ROOT / "benchmarks" / "RELIABILITY.md").read_text()
    tests = "".join(p.read_text() for p in (ROOT / "tests").rglob("*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 15
    for name in named:
        assert f"def {name}(" in tests, name


def test_functions_and_tests_named_in_the_method_exist():
    text = (ROOT / "bundle" / "docs" / "METHOD.md").read_text()
    source = "".join(p.read_text() for p in (ROOT / "bundle" / "scripts").rglob("*.py"))
    tests = "".join(p.read_text() for p in (ROOT / "tests").rglob("*.py"))
    train = (ROOT / "bundle" / "configs" / "train.yaml").read_text()
    for name in re.findall(r"^\| [^|]+ \| `([A-Za-z_.]+)`", text, flags=re.M):
        assert f" {name.rsplit('.', 1)[-1]}(" in source, name
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
    keys = re.findall(r"^\| \d[^|]+ \| [^|]+ \| ([^|]+) \|", text, flags=re.M)
    for name in {k for cell in keys for k in re.findall(r"`(\w+)`", cell)}:
        assert re.search(rf"^  {name}:", train, flags=re.M), name


def test_numbers_of_the_method_are_those_of_the_results():
    """Pairs after a name are of seed 0, after a name and a colon the mean over three seeds."""
    text = (BUNDLE / "docs" / "METHOD.md").read_text()
    pairs = re.findall(r"`([\w+.]+)`(:?) (0\.\d{3}) / (0\.\d{3})", text)
    assert len(pairs) >= 16

    def dice(name: str, seeds: tuple[int, ...]) -> list[str]:
        run = name if name in ("semsim_minus", "fixmatch") else f"semsim_minus+{name}"
        files = [RESULTS / f"acdc3_96_900_{run}_seed{seed}.json" for seed in seeds]
        records = [json.loads(file.read_text()) for file in files]
        kinds = ("last", "mean_of_last_five")
        return [f"{sum(r[which]['mean']['dice'] for r in records) / len(records):.3f}" for which in kinds]

    for name, colon, *values in pairs:
        assert dice(name, (0, 1, 2) if colon else (0,)) == values, name
    elsewhere = re.findall(r"`(acdc[\w+.]+)` (0\.\d{3}) \((\d) seeds?\)", text)
    assert len(elsewhere) >= 4
    for name, value, count in elsewhere:
        records = [json.loads(file.read_text()) for file in RESULTS.glob(f"{name}_seed*.json")]
        assert len(records) == int(count), name
        assert f"{sum(r['last']['mean']['dice'] for r in records) / len(records):.3f}" == value, name


def test_the_reference_names_every_key_and_no_other():
    """Keys of train.yaml down to `num_classes` are those that a user sets; every config has its line."""
    text = (BUNDLE / "docs" / "REFERENCE.md").read_text()
    train, inference = ((BUNDLE / "configs" / f"{name}.yaml").read_text() for name in ("train", "inference"))
    settable = re.findall(r"^(\w+):", train.split("\nnum_classes:")[0], flags=re.M)
    tables = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S))
    keys = {name: {k for cell in re.findall(r"^\| (`.+?) \|", table, flags=re.M) for k in re.findall(r"`(\w+)`", cell)}
            for name, table in tables.items()}  # fmt: skip
    documented = keys["Keys of `train.yaml` that most users change"] | keys["Keys of the method"]
    assert documented == set(settable) - {"imports"}
    assert keys["Keys of `loss`"] == {*yaml.safe_load(train)["loss"]} - {"_target_"}
    evaluate = (BUNDLE / "configs" / "evaluate.yaml").read_text()
    for heading, config in (("Parts of `train.yaml` that you can replace", train),
                            ("Keys of `inference.yaml`", inference),
                            ("Keys of `evaluate.yaml`", evaluate)):  # fmt: skip
        assert len(keys[heading]) >= 4
        for key in keys[heading]:
            assert re.search(rf"^{key}:", config, flags=re.M), key
    for path in (BUNDLE / "configs").glob("*.yaml"):
        assert f"`{path.name}`" in tables["Configs"], path.name
