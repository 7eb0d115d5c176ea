"""SemSim for MONAI. One direction of travel; each module imports only from those to its left:

errors -> precision -> resources -> phantom -> files -> layouts -> geometry -> intensity -> dicom -> segmentation
-> endings -> readers -> slices -> transforms -> survey -> tables -> split -> datalist -> releases -> drawing
-> sizes -> loaders -> augmentation -> layout -> fusion -> network -> similarity -> losses -> acquisition -> trainer
-> inferer -> prediction -> checkpoints -> initial -> query -> label -> handlers -> views -> report -> figures
-> examples -> page -> html_report -> budget -> plan -> clock -> doors -> command_line -> export -> __main__
"""
