"""What each logger takes, and how: one file a logger."""
