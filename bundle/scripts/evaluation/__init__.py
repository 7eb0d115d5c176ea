"""What trained weights do: prediction on the grid of the file, scores, exports."""
