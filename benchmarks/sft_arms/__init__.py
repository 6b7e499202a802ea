"""The programs that `python -m benchmarks.long_sft` compares, each one step of LoRA on the same model and rows."""
