"""What the paper describes: augmentation, network, similarities, losses; and which image to annotate next."""
