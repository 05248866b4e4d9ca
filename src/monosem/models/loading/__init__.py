"""From a name, a folder or a file to a Hugging Face model and its tokenizer."""
