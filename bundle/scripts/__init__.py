"""SemSim for MONAI. Imports go one way: from folders above, and within a folder from modules to the left.

    errors -> precision -> distributed
    dataio:      files -> phantom -> layouts -> geometry -> intensity -> dicom -> segmentation -> endings -> readers
                 -> axis -> transforms -> survey -> tables -> split -> datalist -> benchmarks -> sizes -> loaders
    method:      augmentation -> memory_format -> fusion -> network -> similarity -> losses -> acquisition
    training:    memory -> trainer -> checkpoints -> settings -> initial -> budget -> handlers -> cost -> clock
    evaluation:  inferer -> predict -> metrics -> export
    report:      slices -> tensorboard -> plots -> samples -> page -> build
    hosts:       scoring -> monai_label -> doors -> options
    __main__

dataio: from files on disk to batches; method: what the paper describes; training: steps, checkpoints, costs;
evaluation: prediction, scores, exports; report: the page and its pictures; hosts: code for MONAI Label
and checks of MONAI's command line; __main__: the command ``semsim``.
"""
