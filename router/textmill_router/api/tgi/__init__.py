"""The dialect of text-generation-inference (TGI)."""
