"""A bundle's own Python package, under a name that no other bundle has."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def module(bundle: Path, name: str) -> ModuleType:
    """A module of a bundle: ``errors``, ``method.network``.

    MONAI Label puts ``scripts`` of one bundle after the other on the path and takes it away again meanwhile.
    """
    package = f"semsim_{zlib.crc32(str(bundle.resolve()).encode()):08x}"
    if package not in sys.modules:
        folder = bundle / "scripts"
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


def settings(bundle: Path) -> dict[str, Any]:
    """What the weights of a bundle were trained with; empty where nothing says so."""
    path = bundle / "models" / "training.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def class_names(bundle: Path) -> list[str]:
    """Names of the label values 0, 1, 2, ...: of what is saved beside the weights, or else of the metadata."""
    if names := settings(bundle).get("class_names"):
        return list(names)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    classes = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return [classes[value] for value in sorted(classes, key=int)]


def loaded(bundle: Path, weights: Path, device: str) -> Any:
    """The network with the weights of a file, all of them, of the classes and channels saved beside them.

    Raises:
        InputError: they are of another network, of a training with other settings, or no weights.
    """
    settings = module(bundle, "training.settings")
    network = settings.trained_network(str(weights), device)
    settings.check_noted(weights)
    return network


def check_told(bundle: Path, weights: Path) -> None:
    """That weights which come without their ``training.json`` say what they were trained with, or are those in use.

    Raises:
        InputError: they say nothing.
    """
    reader, published = module(bundle, "training.weights"), bundle / "models" / "model.pt"
    if reader.noted(weights):
        return
    new, known = (reader.read_state(file) if file.is_file() else {} for file in (weights, published))
    if new.keys() != known.keys() or not all(torch.equal(new[name], known[name]) for name in new):
        raise module(bundle, "errors").InputError(
            f"{weights}: expected weights that say what they were trained with, as this program saves them; put others "
            f"into the models of the bundle on the server, with their training.json."
        )
