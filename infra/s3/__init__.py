"""Access to a bucket: what each kind of user needs, and no more."""
