"""A training: steps, checkpoints, logs, and what it costs in time and memory."""
