"""SemSim for MONAI. Imports go one way: from folders above, and within a folder from modules to the left.

    errors -> callers -> command_line -> precision -> memory -> distributed
    dataio:      threads -> storage -> files -> folders -> phantom -> geometry -> intensity -> dicom -> dicom_seg
                 -> itk_read -> tiff -> headers -> nifti -> metaimage -> nrrd -> readers -> slice_axis
                 -> label_resampling -> transforms -> patients -> datalist_checks -> datalist -> stated -> orientation
                 -> sizes -> smoothing -> volume_grid -> loaders -> patches
    preparation: pairing -> value_names -> bids -> patient_folders -> layouts -> survey -> tables -> class_values
                 -> next_commands -> split -> list_problems -> merge -> create -> public_datasets
    method:      augmentation -> memory_format -> fusion -> network -> similarity -> losses -> active_learning
    training:    trainer -> weights -> checkpoints -> recipe -> inputs -> lock -> settings -> warm_start -> trained_on
                 -> budget -> handlers -> cost -> clock
    evaluation:  stored_grid -> stored_header -> inferer -> volume_inferer -> predict -> metrics -> export
    report:      planes -> drawing -> overlay -> tensorboard -> plots -> samples -> page -> build
    hosts:       scoring -> monai_label -> config_values -> config_keys -> options
    __main__

dataio: from files on disk to batches; preparation: from people's folders to a datalist; method: what the paper
describes; training: steps, checkpoints, costs; evaluation: prediction, scores, exports; report: the page and its
pictures; hosts: code for MONAI Label and checks of MONAI's command line; __main__: the command ``semsim``.
"""
