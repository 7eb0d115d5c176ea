"""Whether the terms of the loss pull in one direction: cosines between their gradients, at the end of a training.

    python benchmarks/gradients.py measure --run benchmarks/runs/NAME --data DIR
    python benchmarks/gradients.py table benchmarks/results/gradients_*.json

Of some steps as the training takes them, from its last weights, without an update: the gradient of L_u on the view
strong_1, and beside it those of L_intra, of L_cross, and of L_u on the two views that UniMatch decodes too: strong_2
and the weak one with half of its channels dropped. A term whose gradient is that of L_u again adds to its weight alone.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import common
import torch
from common import RESULTS, write_json
from comparison import gradient_lines
from monai.utils import set_determinism
from pseudo_labels import parsed
from torch import Tensor, nn

VIEWS = ("strong_1", "strong_2", "weak_perturbed")


def flat_gradient(term: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The gradient of a scalar as one vector, zeros where it does not depend on a parameter."""
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().double() for g, p in zip(found, parameters)])


def measure(run: str, data: str, batches: int = 8, seed: int = 0, output: str = "") -> None:
    """Measure the gradients of one training and write what was found.

    Args:
        run: folder of a training of ``accuracy.py``, of a method that has similarities.
        data: folder with ``images`` and ``labels``.
        batches: steps to look at.
        seed: of their draws.
        output: default ``benchmarks/results/gradients_NAME.json``.
    """
    set_determinism(seed)
    folder = Path(run).resolve()
    settings = json.loads((folder / "training.json").read_text())
    if settings["fusion"] == "none":
        raise SystemExit(f"{folder}: expected a training of SemSim or SemSim-; this one has no similarities.")
    with tempfile.TemporaryDirectory() as temporary:
        changed = {"output_dir": temporary, "spatial_size": settings["spatial_size"], "early_sizes": [], "seed": seed,
                   "loss#views": dict.fromkeys(VIEWS, 1.0), "loss#perturb": ["weak_perturbed"]}  # fmt: skip
        parser = parsed(folder, settings["spatial_dims"], str(Path(data).resolve()), 7, augmented=True, **changed)
        trainer = parser.get_parsed_content("train#trainer")
    state = torch.load(folder / "model_last.pt", map_location="cpu", weights_only=True)
    trainer.network.load_state_dict(state)
    single = {view: copy.copy(trainer.loss_function) for view in VIEWS}  # as in the training, but for the views
    for view, loss in single.items():
        loss.views, loss.lambda_intra, loss.lambda_cross = {view: 1.0}, 0.0, 0.0
    decoding = [p for name, p in trainer.network.named_parameters() if not name.startswith("fusion")]
    cosines: dict[str, list[float]] = {}
    norms: dict[str, list[float]] = {}
    loader = trainer.data_loader
    loader.set_epoch(1)
    for batch, _ in zip(loader, range(batches)):
        label = batch["labeled"]["label"]
        student, weak, mixes = trainer._forward(batch["labeled"]["image"], batch["unlabeled"])
        terms = trainer.loss_function(student, label, weak, mixes)
        scalars = {view: loss(student, label, weak, mixes)["loss_u"] for view, loss in single.items()}
        scalars |= {"L_intra": terms["loss_intra"], "L_cross": terms["loss_cross"]}
        gradients = {name: flat_gradient(scalar, decoding) for name, scalar in scalars.items()}
        first = gradients["strong_1"]
        for name, gradient in gradients.items():
            norms.setdefault(name, []).append(round(float(gradient.norm()), 5))
            if name != "strong_1":
                cosine = torch.nn.functional.cosine_similarity(first, gradient, dim=0)
                cosines.setdefault(name, []).append(round(float(cosine), 4))
    record: dict[str, Any] = {
        "run": folder.name,
        "command": f"python benchmarks/gradients.py measure --run NAME --data DIR --batches {batches}",
        "seed": seed,
        "commit": common.git("rev-parse", "HEAD"),
        "versions": common.versions(),
        "labelled_cases": settings["labeled_cases"],
        "spatial_size": settings["spatial_size"],
        "cosines_with_loss_u_on_strong_1": cosines,
        "norms": norms,
    }
    write_json(output or RESULTS / f"gradients_{folder.name}.json", record)
    print("\n".join(gradient_lines([record])))


def table(*results: str) -> None:
    """Print results as a Markdown table."""
    print("\n".join(gradient_lines([json.loads(Path(result).read_text()) for result in results])))


if __name__ == "__main__":
    import fire

    fire.Fire({"measure": measure, "table": table})
