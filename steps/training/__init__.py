"""The training loop, its checkpoints and the moving average."""
