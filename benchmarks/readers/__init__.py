"""Exported folders in programs that share no code with this repository; `benchmarks.readers_agree` runs them."""
