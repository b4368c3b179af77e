"""The routes of tasks without generation: `POST /`, the pipelines, and the dialects of embedding servers."""
