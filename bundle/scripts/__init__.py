"""SemSim for MONAI. One direction of travel; each module imports only from those to its left:

errors -> resources -> phantom -> files -> readers -> survey -> split -> datalist -> releases -> transforms -> loaders
-> network -> similarity -> losses -> trainer -> checkpoints -> handlers -> report -> plan
"""
