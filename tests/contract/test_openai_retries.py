"""The openai client waits as `Retry-After` says."""

import threading
from pathlib import Path

import httpx
import openai

from tests.fakes.chat_calls import USER
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter


def test_refused_call_is_retried_when_there_is_room(tmp_path: Path) -> None:
    statuses: list[int] = []
    options = FakeShardOptions(step_s=0.005)
    with RunningRouter(tmp_path, options, max_concurrent_requests=1) as router:
        holder = router.send("/v1/chat/completions", {"messages": [USER], "max_tokens": 5000, "stream": True})
        router.wait_until_counts(running=1, waiting=0)

        def note(answer: httpx.Response) -> None:
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                threading.Thread(target=holder.close).start()

        http = httpx.Client(trust_env=False, event_hooks={"response": [note]})
        with openai.OpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=3, http_client=http) as client:
            answer = client.chat.completions.create(model="tgi", messages=[USER], max_tokens=3)
        assert answer.choices[0].message.content == "abc"
        assert statuses == [429, 200]
