"""Makes the embedded base model and its evaluators from OpenMoji."""
