"""The demo under load: many clients at once, some of whom leave, cancel, send bad files or only canvas contents.

    python benchmarks/app_load.py --clients 50 --runs 20      # what became of each run, and what the server kept
    python benchmarks/app_load.py --clients 4 --runs 1300     # more than 10,000 requests: does it grow?

A small untrained model is served by a process of its own, as `maskimg demo` would serve it. Printed are the answers by
kind, the most drawings that ran at a time (1 is promised), and the server's memory, open files and threads before and
after. The exit code is 1 where a promise was broken.
"""

import argparse
import asyncio
import collections
import io
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

REQUESTS: collections.Counter = collections.Counter()  # by method
KINDS = {"draw": 0.75, "leave": 0.10, "cancel": 0.05, "bad file": 0.05, "blobs": 0.05}
FULL = "queue is full"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--runs", type=int, default=20, help="of each client")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    address, pid = ours.recv(), server.pid
    try:
        asyncio.run(one_of_each(address))  # what is made once is there before anything is counted
        before, started = state(pid), time.perf_counter()
        answers = asyncio.run(load(address, given.clients, given.runs, given.seed))
        seconds = time.perf_counter() - started
        time.sleep(3)  # for connections that were left to be noticed
        after = state(pid)
        ours.send("peak")
        peak = ours.recv()
    finally:
        server.kill()

    print(f"{given.clients} clients, {given.runs} runs each, {REQUESTS.total():,} requests, {seconds:.0f} s")
    for (kind, answer), count in sorted(answers.items()):
        print(f"  {kind:<9} {answer:<34} {count}")
    print(f"drawings at a time: {peak}")
    for name, value in before.items():
        print(f"{name}: {value} before, {after[name]} after")
    broken = [answer for _, answer in answers if answer.startswith(("HTTP 5", "lost"))]
    if broken or peak != 1 or after["resident MB"] > before["resident MB"] + 100:
        sys.exit("a promise was broken")


def serve(pipe: Any) -> None:
    """The page of a small model on a free port; answers `peak` with the most drawings that ran at a time."""
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="maskimg-load-")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import torch

    from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
    from maskimg.pipeline import Pipeline
    from maskimg_apps.demo import app
    from vqgan import Tokenizer, TokenizerConfig

    torch.set_num_threads(1)
    tokenizer = Tokenizer(TokenizerConfig(levels=(4, 4, 4), channels=(16, 16), encoder_blocks=1, decoder_blocks=1))
    net = MaskedTransformer(TransformerConfig(64, (4, 4), dim=32, depth=2, heads=2))
    pipeline = Pipeline(tokenizer, net, about={"name": "load"}, device="cpu", dtype="fp32")
    running, peak = 0, 0
    steps = pipeline.steps

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        try:
            yield from steps(*arguments, **options)
        finally:
            running -= 1

    pipeline.steps = counted
    pipe.send(app.launch(app.build(pipeline), app.Address(port=app.free_port("127.0.0.1", 0))))
    while pipe.recv() == "peak":
        pipe.send(peak)


def state(pid: int | None) -> dict[str, int]:
    """What a process holds, from /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "resident MB": int(lines["VmRSS"].split()[0]) // 1024,
        "open files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(lines["Threads"]),
    }


async def one_of_each(address: str) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        for kind in KINDS:
            await one(client, kind, random.Random(0))


async def counted(request: httpx.Request) -> None:
    REQUESTS[request.method] += 1


async def load(address: str, clients: int, runs: int, seed: int) -> collections.Counter:
    answers: collections.Counter = collections.Counter()

    async def client_of(number: int) -> None:
        chance = random.Random(seed * 1_000_003 + number)
        hooks = {"request": [counted]}
        async with httpx.AsyncClient(base_url=address, timeout=600, event_hooks=hooks) as client:
            for _ in range(runs):
                (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
                answers[kind, await one(client, kind, chance)] += 1

    await asyncio.gather(*(client_of(number) for number in range(clients)))
    return answers


async def one(client: httpx.AsyncClient, kind: str, chance: random.Random) -> str:
    """One run of a kind -> what became of it, in words."""
    if kind == "blobs":
        return await post_blob(client, chance)
    values: dict[str, Any] = {"images": 1, "steps": 4, "seed": chance.randrange(2**32), "random_seed": False}
    name = "generate"
    if kind == "bad file":
        file = {"files": ("bad.png", b"not a picture")}
        (path,) = (await client.post("gradio_api/upload", files=file)).json()
        values, name = {"image": {"path": path, "meta": {"_type": "gradio.FileData"}}}, "reconstruct"
    asked = await client.post(f"gradio_api/call/v2/{name}", json=values)
    if asked.status_code == 503 and FULL in asked.text.lower():
        return "refused: the queue is full"
    if asked.status_code != 200:
        return f"HTTP {asked.status_code}"
    event = asked.json()["event_id"]
    if kind == "cancel":
        body = {"session_hash": event, "fn_index": 0, "event_id": event}
        return f"cancelled: HTTP {(await client.post('gradio_api/cancel', json=body)).status_code}"
    stay = chance.uniform(0, 0.3) if kind == "leave" else 600
    try:
        async with asyncio.timeout(stay):
            return told((await client.get(f"gradio_api/call/v2/{name}/{event}")).text)
    except TimeoutError:
        return "left" if kind == "leave" else "lost: no answer in 10 minutes"


def told(text: str) -> str:
    """The end of an answer in words: a stream of events, of which the last counts."""
    kind, _, data = text.rpartition("event: ")[2].partition("\n")
    if kind == "complete":
        return "pictures"
    if kind == "error" and "not a readable" in data:
        return "refused: not a readable picture"
    return f"lost: {kind} {data[:60]!r}"


async def post_blob(client: httpx.AsyncClient, chance: random.Random) -> str:
    """What the browser posts of a canvas, and no run that would use it."""
    config = (await client.get("config")).json()
    editor = next(each["id"] for each in config["components"] if each["type"] == "imageeditor")
    file = io.BytesIO()
    Image.frombytes("RGB", (256, 256), chance.randbytes(256 * 256 * 3)).save(file, format="PNG")
    form = {"type": "background", "index": "", "id": str(chance.random()), "fn_name": "accept_blobs"}
    form |= {"component_id": str(editor), "session_hash": str(chance.random())}
    answer = await client.post("gradio_api/component_server", data=form, files={"data": ("a.png", file.getvalue())})
    return f"posted: HTTP {answer.status_code}"


if __name__ == "__main__":
    main()
