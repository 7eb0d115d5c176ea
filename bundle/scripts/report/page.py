"""The page of a report: its parts and a template that holds all pictures itself and needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

PAGE = Path(__file__).with_name("page.html")

#: What is said beside the figures.
TEXTS = {
    "needs data": (
        "Not part of this report, because it was made from the files of the training alone; with the data: python"
        " -m monai.bundle run reporting --config_file \"['configs/train.yaml','configs/evaluate.yaml']\" "
        "--dataset_dir DIR --datalist FILE --output_dir OUTPUT_DIR."
    ),
    "cases": (
        "The best, the median and the worst case by the mean of the classes, cut out around what is labelled. "
        "Solid lines: prediction; dashed lines: truth."
    ),
    "losses": ("Means of an epoch, before weighting; L = 1/2 (L_s + weighted unlabelled terms)."),
    "masks": (
        "Share of the positions whose pseudo-label is confident enough to count. Near 0 the unlabelled images "
        "teach nothing; near 1 wrong pseudo-labels count as well. Most positions are background, which is "
        "confident early, so a high ratio says little about the other classes."
    ),
    "validation": ("Mean over the validation cases; the weights of the best epoch are in model_best.pt."),
    "quality": (
        "Of unlabelled images whose labels are known and kept from the training. Confident: share of a class's "
        "true pixels with a confident pseudo-label; precision and recall among those."
    ),
    "shares": (
        "A class whose solid line falls to zero has vanished from the pseudo-labels (collapse). The labelled "
        "images need not show the classes as often as the unlabelled ones."
    ),
    "unknown": (
        "How right the pseudo-labels are is unknown, as the unlabelled images have no labels; the mask ratios "
        "above say how confident they are."
    ),
    "affinity": (
        "L_intra rectifies the prediction of a pixel by those of its like in the same image. The maps show, for "
        "one pixel in the midst of each class (the cross), how much weight every other position has (M, equation "
        "4): red little, yellow most. A well-trained map lights up the pixel's own structure and little else."
    ),
    "features": (
        "L_cross pulls features of unlabelled images to the prototypes of the same class in labelled ones. The "
        "features of both, drawn in one plane (t-SNE): labelled ones coloured by their true class, unlabelled "
        "ones by the predicted class, the other group in light grey. Where the two distributions agree, the same "
        "colours lie in the same places. Distances between far groups mean nothing in such a plane; the cosines "
        "in the table are of the features themselves, and the largest of a row should be that of its own class."
    ),
}


@dataclass
class Table:
    """Rows of a table; ``columns`` empty for one of names and values."""

    rows: list[list[str]]
    columns: list[str] = field(default_factory=list)
    caption: str = ""
    folded: bool = False


@dataclass
class Figure:
    """A picture of a section.

    Attributes:
        file: PNG.
        alt: what it shows, for those who cannot see it.
        caption: heading above it.
        text: a sentence below the heading.
    """

    file: Path
    alt: str
    caption: str = ""
    text: str = ""

    @property
    def data(self) -> str:
        """The file for a ``data:`` address."""
        return base64.b64encode(self.file.read_bytes()).decode()


@dataclass
class Section:
    """A section of the page; ``missing`` where it only says why there is nothing."""

    name: str
    title: str
    texts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    missing: bool = False


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as HTML; whatever stands in names and paths is escaped."""
    template = jinja2.Environment(autoescape=True).from_string(PAGE.read_text("utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections)
