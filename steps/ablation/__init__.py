"""Arms of ablations: the pipeline's own parts, with one thing done differently."""
