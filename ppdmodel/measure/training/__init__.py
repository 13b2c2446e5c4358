"""Exit heads trained on hidden states, the model frozen."""
