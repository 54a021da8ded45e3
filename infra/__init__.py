"""What the pipeline runs on: a local object store, bucket policies."""
