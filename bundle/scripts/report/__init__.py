"""What users look at: the HTML page, its figures, and images in TensorBoard."""
