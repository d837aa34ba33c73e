"""The servers ours is compared with: one script for each, in an environment of its own (see `install`)."""
