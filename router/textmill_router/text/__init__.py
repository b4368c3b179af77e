"""Token ids become text, and text becomes token ids."""
