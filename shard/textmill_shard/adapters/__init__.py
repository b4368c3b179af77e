"""Reads a LoRA adapter's folder: what PEFT wrote, checked as a stranger's file."""
