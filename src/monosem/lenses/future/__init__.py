"""The future lens: linear maps and soft prompts."""
