"""sentence-transformers behind a plain server, for `bench/tasks.py`: `python task_peer.py MODEL THREADS PORT`.

The file runs in an environment with sentence-transformers, starlette and uvicorn, and imports nothing of this project.
"""

import asyncio
import json
import sys

import torch
import uvicorn
from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MODEL_DIR, THREADS, PORT = sys.argv[1:4]
torch.set_num_threads(int(THREADS))
MODEL = SentenceTransformer(MODEL_DIR, device="cpu")
LOCK = asyncio.Lock()


async def embed(request: Request) -> Response:
    """Encode the texts of one call in a thread, one call after the other, as such servers usually do."""
    text = json.loads(await request.body())["inputs"]
    async with LOCK:
        vectors = await asyncio.to_thread(MODEL.encode, [text], show_progress_bar=False)
    return Response(json.dumps(vectors.tolist()), media_type="application/json")


async def health(request: Request) -> Response:
    return Response("ok")


if __name__ == "__main__":
    app = Starlette(routes=[Route("/embed", embed, methods=["POST"]), Route("/health", health)])
    uvicorn.run(app, host="127.0.0.1", port=int(PORT), log_level="warning")
