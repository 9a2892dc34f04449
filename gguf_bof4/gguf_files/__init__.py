"""GGUF files: reading them, one or several parts, and teaching the gguf package this project's types."""
