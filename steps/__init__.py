"""The stages of the pipeline and what they share: plain functions and classes that never import Metaflow."""
