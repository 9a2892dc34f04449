"""GGUF files: registration of the types with the gguf package, reading, and models of one or several parts."""
