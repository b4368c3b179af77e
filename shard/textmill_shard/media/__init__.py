"""From the bytes of image and audio files to pixels and samples, within limits."""
