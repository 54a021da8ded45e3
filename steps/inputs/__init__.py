"""What a stage is given: inputs, folders, checks, context."""
