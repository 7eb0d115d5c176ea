"""What is different in the programs that run the bundle: MONAI Label, the command line of MONAI."""
