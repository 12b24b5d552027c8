"""What `environments.strict_json` asks for: JSON Schemas of shapes, words to fill them, families of prompts."""
