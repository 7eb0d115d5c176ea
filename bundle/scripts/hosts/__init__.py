"""Code for the programs that run the bundle: MONAI Label and MONAI's command line."""
