"""How this project's types are encoded."""
