"""SemSim for MONAI. Direction of travel, each module imports only to its left:

errors -> phantom -> datalist -> transforms -> loaders -> network -> similarity -> losses -> trainer -> handlers -> report
"""

from . import datalist, errors, handlers, loaders, losses, network, phantom, report, similarity, trainer, transforms

__all__ = [
    "datalist",
    "errors",
    "handlers",
    "loaders",
    "losses",
    "network",
    "phantom",
    "report",
    "similarity",
    "trainer",
    "transforms",
]
