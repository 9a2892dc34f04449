"""llama-server by the client library of OpenAI's interface, with a trained model in BOF4_S that has outlier lists."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from llama import THREADS, greedy, succeed
from served import Server, serving, wait_for

SENTENCES = ["The cat sits on the mat.", "Paris is the capital of France.", "Water boils at 100 degrees."]
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Germany": "Berlin", "China": "Beijing"}
SLOTS = 4
"""Requests that the server works on at once; the others wait."""

LIMIT = 24
"""Tokens of an answer. Which answers end earlier depends on the processor: each instruction set rounds in its own way,
and the logits of the two likeliest tokens may differ by 0.01."""

FRESH = {"cache_prompt": False}
"""The whole prompt in one batch: one whose beginning is in the cache may be rounded differently."""


@pytest.fixture(scope="module")
def server(smol_opq: Path) -> Iterator[Server]:
    with serving(smol_opq, "--parallel", str(SLOTS), "-c", "4096", "--api-key", "secret") as server:
        yield server


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", timeout=120, max_retries=0)


def question(country: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is the capital of {country}?"}]


def busy_slots(server: Server) -> int:
    status, text, _ = server.get("/slots", Authorization="Bearer secret")
    assert status == 200, text
    return sum(slot["is_processing"] for slot in json.loads(text))


def test_the_model_is_listed_and_the_key_is_checked(server: Server, smol_opq: Path) -> None:
    (model,) = client_of(server).models.list().data
    assert model.id == str(smol_opq)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_a_chat_is_answered_as_by_llama_completion(server: Server, smol_opq: Path) -> None:
    done = client_of(server).chat.completions.create(
        model="any", messages=question("France"), max_tokens=LIMIT, temperature=0, extra_body=FRESH
    )
    (choice,) = done.choices
    printed = greedy(smol_opq, "What is the capital of France?", "-n", str(LIMIT))
    expected = printed.removesuffix("[end of text]").strip()
    assert choice.message.content == expected
    assert "Paris" in expected
    has_ended = printed.endswith("[end of text]")
    assert choice.finish_reason == ("stop" if has_ended else "length")
    assert done.usage is not None
    # "The capital of France is Paris" has six tokens; the token of the end counts
    assert 6 <= done.usage.completion_tokens <= LIMIT
    assert has_ended or done.usage.completion_tokens == LIMIT


@pytest.mark.parametrize("limit", [4, LIMIT])
def test_a_stream_has_the_same_tokens(server: Server, limit: int) -> None:
    client = client_of(server)
    whole = client.chat.completions.create(
        model="any", messages=question("Japan"), max_tokens=limit, temperature=0, extra_body=FRESH
    )
    stream = client.chat.completions.create(
        model="any", messages=question("Japan"), max_tokens=limit, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body=FRESH,
    )  # fmt: skip
    chunks = list(stream)
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 3
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] == whole.choices[0].finish_reason
    assert reasons[-1] == "length" or (limit > 4 and reasons[-1] == "stop")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == limit or reasons[-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_an_answer_follows_a_json_schema(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome", "Berlin"]},
            "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
            "sights": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 2, "maxItems": 2},
        },
        "required": ["city", "population", "sights"],
        "additionalProperties": False,
    }
    done = client_of(server).chat.completions.create(
        model="any", messages=question("France"), max_tokens=120, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
    )  # fmt: skip
    content = done.choices[0].message.content
    assert content is not None
    answer = json.loads(content)
    assert set(answer) == {"city", "population", "sights"}
    assert answer["city"] in {"Paris", "Rome", "Berlin"}
    assert type(answer["population"]) is int
    assert [type(sight) for sight in answer["sights"]] == [str, str]


def test_several_clients_at_once(server: Server) -> None:
    """One more than there are slots, each with its own question."""
    assert len(CAPITALS) > SLOTS
    barrier = threading.Barrier(len(CAPITALS))

    def ask(country: str) -> str:
        client = client_of(server)
        barrier.wait()
        stream = client.chat.completions.create(
            model="any", messages=question(country), max_tokens=LIMIT, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    with ThreadPoolExecutor(len(CAPITALS)) as pool:
        answers = dict(zip(CAPITALS, pool.map(ask, CAPITALS), strict=True))
    # which slots are busy decides about the rounding, and so whether so small a model knows the capital
    for country, capital in CAPITALS.items():
        said = answers[country]
        assert capital in said or country in said
        assert not any(other in said for other in CAPITALS.values() if other != capital)
    assert sum(capital in answers[country] for country, capital in CAPITALS.items()) > len(CAPITALS) // 2


def long_story(client: openai.OpenAI) -> openai.Stream[Any]:
    """A stream that has begun, and does not end by itself for as long as a test needs it."""
    stream = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=3000, temperature=0,
        stream=True, extra_body={"ignore_eos": True},
    )  # fmt: skip
    read_some(stream)
    return stream


def read_some(stream: openai.Stream[Any]) -> None:
    """Five chunks: the first ones come from a slot that is generating."""
    assert len(list(islice(stream, 5))) == 5


def test_all_slots_generate_at_once_and_another_request_waits(server: Server) -> None:
    client = client_of(server)
    streams = [long_story(client) for _ in range(SLOTS)]
    with ThreadPoolExecutor(1) as pool:
        try:
            assert busy_slots(server) == SLOTS
            waiting = pool.submit(
                client.chat.completions.create, model="any", messages=question("Japan"), max_tokens=1, temperature=0
            )
            for stream in streams:
                read_some(stream)
            assert busy_slots(server) == SLOTS
            assert not waiting.done()
        finally:
            for stream in streams:
                stream.close()
        assert waiting.result().choices[0].message.content
    wait_for(lambda: busy_slots(server) == 0, "the end of all requests", 10)


def test_a_cancelled_stream_frees_its_slot(server: Server) -> None:
    client = client_of(server)
    stream = long_story(client)
    assert busy_slots(server) == 1
    stream.close()
    wait_for(lambda: busy_slots(server) == 0, "the end of the cancelled request", 10)
    done = client.chat.completions.create(model="any", messages=question("Japan"), max_tokens=LIMIT, temperature=0)
    assert "Tokyo" in (done.choices[0].message.content or "")


def test_errors_of_a_request_are_errors_of_the_client(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="exceed"):
        client_of(server).chat.completions.create(
            model="any", messages=[{"role": "user", "content": "word " * 6000}], max_tokens=4
        )


def test_embeddings_are_those_of_llama_embedding(smol_opq: Path) -> None:
    pooling = ("--pooling", "mean")
    with serving(smol_opq, "--embeddings", *pooling, "-c", "512") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        answer = client.embeddings.create(model="any", input=SENTENCES)
    assert [item.index for item in answer.data] == [0, 1, 2]
    found = np.array([item.embedding for item in answer.data])
    printed = succeed(
        "embedding", "-m", smol_opq, *pooling, *THREADS, "-c", "512", "--embd-separator", "|",
        "--embd-output-format", "array", "-p", "|".join(SENTENCES), "--log-verbosity", "1",
    )  # fmt: skip
    expected = np.array(json.loads(printed))
    assert found.shape == expected.shape == (3, 576)
    # both normalize and print floats; the order in which the sentences are batched may change the last bits
    assert np.abs(found - expected).max() < 1e-4
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)
