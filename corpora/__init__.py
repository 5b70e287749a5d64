"""Text to token files: tokenizers, readers of files and of the hub, and the writer of prepared corpora."""
