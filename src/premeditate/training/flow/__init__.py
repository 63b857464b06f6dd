"""Flow-matching editors on the training core: policy, objectives, adapters, encodings, LoRA, memory, export."""
