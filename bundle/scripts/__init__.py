"""SemSim for MONAI. One direction of travel; each module imports only from those to its left:

errors -> resources -> phantom -> datalist -> transforms -> loaders -> network -> similarity -> losses
-> acquisition -> trainer -> checkpoints -> query -> label -> handlers -> report -> plan
"""
