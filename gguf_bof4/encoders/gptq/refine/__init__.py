"""Refinement: scales of an encoded model, trained against the unquantized model's next-token distributions."""
