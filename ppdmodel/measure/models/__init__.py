"""Finding and loading models: folders, hub ids, GGUF files, packaged weights."""
