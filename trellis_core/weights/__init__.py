"""Every layout of checkpoints: official folders, repackaged files, GGUF, low precision; and whether parts fit together."""
