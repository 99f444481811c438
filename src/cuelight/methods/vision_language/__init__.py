"""Methods for vision-language models: prompts in one or both towers of a dual encoder."""
