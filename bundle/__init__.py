"""SemSim: semi-supervised medical image segmentation as a MONAI bundle."""

__version__ = "0.1.0"
