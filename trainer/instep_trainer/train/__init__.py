"""`instep train`: the bundled trainer, a small GPT over DDP on the bytes of any text folder."""
