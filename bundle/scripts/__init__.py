"""SemSim for MONAI. One direction of travel; each module imports only from those to its left:

errors -> precision -> resources -> phantom -> files -> layouts -> geometry -> intensity -> dicom -> segmentation
-> endings -> readers -> slices -> transforms -> survey -> tables -> split -> datalist -> releases -> drawing -> loaders
-> augmentation -> layout -> fusion -> network -> similarity -> losses -> acquisition -> trainer -> inferer
-> prediction -> checkpoints -> query -> label -> handlers -> views -> report -> figures -> examples -> page
-> html_report -> budget -> plan -> clock -> command_line
"""
