"""Use of trained weights: prediction on the grid of the file, scores, exports."""
