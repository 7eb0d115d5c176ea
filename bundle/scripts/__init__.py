"""SemSim for MONAI. One direction of travel; each module imports only from those to its left:

errors -> precision -> resources -> phantom -> files -> readers -> transforms -> survey -> tables -> split -> datalist
-> releases -> drawing -> loaders -> augmentation -> fusion -> network -> similarity -> losses -> acquisition -> trainer
-> prediction -> checkpoints -> initial -> query -> label -> handlers -> views -> report -> figures -> examples -> page
-> html_report -> plan -> doors -> command_line -> export -> __main__
"""
