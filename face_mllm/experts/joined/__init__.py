"""An expert inside the multimodal LLM: as a token, as words in the prompt, and by late fusion."""
