"""The page of a report: its parts, and a template that contains all figures and needs no network."""

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
        "Not part of this report, because it was made only from the files of the training. To add it, use the data: "
        "python -m monai.bundle run reporting --config_file \"['configs/train.yaml','configs/evaluate.yaml']\" "
        "--dataset_dir DIR --datalist FILE --output_dir OUTPUT_DIR."
    ),
    "cases": (
        "The best, the median and the worst case by the mean of the classes, each case once, cropped around the "
        "labels. Solid lines: prediction; dashed lines: truth."
    ),
    "losses": ("Mean of each epoch, before weighting; L = 1/2 (L_s + the other terms, weighted)."),
    "masks": (
        "Fraction of the positions whose pseudo-label is confident enough to count. Near 0 the unlabelled images "
        "have no effect; near 1 wrong pseudo-labels count as well. Most positions are background, which is "
        "confident early, so a high ratio says little about the other classes."
    ),
    "validation": ("Mean over the validation cases; the weights of the best epoch are in model_best.pt."),
    "quality": (
        "Computed on unlabelled images whose labels are known but not used for training. Confident: fraction of the "
        "true pixels of a class with a confident pseudo-label; precision and recall among these pixels."
    ),
    "shares": (
        "If the solid line of a class falls to zero, the class has disappeared from the pseudo-labels (collapse). "
        "Labelled and unlabelled images may differ in how much of each class they show."
    ),
    "unknown": (
        "The quality of the pseudo-labels is unknown, because the unlabelled images have no labels. The mask ratios "
        "above say how confident they are."
    ),
    "affinity": (
        "L_intra refines the prediction of a pixel by those of similar pixels in the same image. The maps show the "
        "weight of every other position (M, equation 4) for one pixel in the middle of each class (the cross): red "
        "is little, yellow most. After a good training the pixel's own structure is bright and little else."
    ),
    "features": (
        "L_cross pulls features of unlabelled images to the prototypes of the same class in labelled ones. The "
        "scatter plots show the features of both in one plane (t-SNE): labelled ones coloured by their true class, "
        "unlabelled ones by the predicted class, the other group in light grey. If the two distributions agree, the "
        "same colours are in the same places. Distances between distant groups have no meaning in t-SNE. The table "
        "has cosines of the features themselves: the largest in each row should be that of its own class."
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
    """A figure of a section.

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

    def without(self, reason: str) -> Section:
        """This section, which says no more than why there is nothing."""
        self.missing, self.texts = True, [reason]
        return self


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as HTML; whatever stands in names and paths is escaped."""
    template = jinja2.Environment(autoescape=True).from_string(PAGE.read_text("utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections)
