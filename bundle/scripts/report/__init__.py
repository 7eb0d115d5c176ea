"""What people look at: the HTML page, its figures, pictures in TensorBoard."""
