"""Training: steps, checkpoints, logs, and the cost in time and memory."""
