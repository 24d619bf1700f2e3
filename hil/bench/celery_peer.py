"""Tasks that do nothing, on Celery: what `hil.bench.leases` is held against. Runs in `.venv-peers`, not in ours.

    .venv-peers/bin/python hil/bench/celery_peer.py --redis-port 6400 --chunk 10 --tasks 200 --prefetch 1

Like durability: a task is acknowledged after it has run and goes to another worker when its own is lost, results are
kept, and Redis writes its append-only file (how often it syncs it is the caller's to say). One worker process, which
takes one task at a time. All tasks are queued before the worker starts; throughput is counted between the first and
the last result, by the times that the worker writes into them, so neither queueing nor starting counts. A latency is
one task, from sending it to having its result, with nothing else going on. Redis has to be empty: it is nobody else's.

Prints one line of JSON. Imports nothing of ours, since nothing of ours is installed there.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import celery  # type: ignore[import-not-found]
import kombu  # type: ignore[import-not-found]
import redis  # type: ignore[import-not-found]

QUEUE_DB, RESULT_DB = 0, 1
WARM_UP_TASKS = 20
WAIT_S = 120.0
POLL_S = 0.05
URL = os.environ.get("DRIVEWAY_PEER_REDIS", "redis://127.0.0.1:6379")

app = celery.Celery("celery_peer", broker=f"{URL}/{QUEUE_DB}", backend=f"{URL}/{RESULT_DB}")
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_concurrency=1,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


def _nothing(items: list[int]) -> list[dict[str, dict[str, int]]]:
    """Each item's answer is the item, in the words of the package that does nothing."""
    return [{"outputs": {"y": item}} for item in items]


nothing = app.task(name="nothing")(_nothing)


def main() -> int | str:
    """Measure, and print the figures; the exit status, or why nothing was measured."""
    parser = argparse.ArgumentParser(description="Tasks that do nothing, on Celery.")
    parser.add_argument("--redis-port", type=int, required=True)
    parser.add_argument("--chunk", type=int, required=True, help="items of a task")
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--prefetch", type=int, required=True, help="tasks that the worker takes ahead")
    parser.add_argument("--latencies", type=int, default=0, help="how many single tasks to time")
    options = parser.parse_args()
    url = f"redis://127.0.0.1:{options.redis_port}"
    if url != URL:  # the application above is made when this file is loaded
        os.environ["DRIVEWAY_PEER_REDIS"] = url
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])  # noqa: S606 - this program again
    results = redis.Redis(port=options.redis_port, db=RESULT_DB)
    kept = sorted(results.info("keyspace"))
    if kept:
        return f"the Redis at port {options.redis_port} is not empty ({', '.join(kept)}): give one of its own"
    for _ in range(WARM_UP_TASKS):
        nothing.apply_async(args=[[0]])
    sent = [nothing.apply_async(args=[list(range(options.chunk))]) for _ in range(options.tasks)]
    log = Path(f"worker-{options.chunk}.log").open("wb")  # noqa: SIM115 - closed below
    worker = subprocess.Popen(_worker(options.prefetch), cwd=Path(__file__).parent, stdout=log, stderr=log)
    try:
        _wait_for(results, WARM_UP_TASKS + options.tasks)
        ended_s = sorted(_ended_s(results, task.id) for task in sent)
        latencies_ms = [_latency_ms(options.chunk) for _ in range(options.latencies)]
    finally:
        worker.terminate()
        worker.wait()
        log.close()
    figures = {
        "items_per_s": (options.tasks - 1) * options.chunk / (ended_s[-1] - ended_s[0]),
        "latencies_ms": latencies_ms,
        "versions": {
            "celery": celery.__version__,
            "kombu": kombu.__version__,
            "redis-py": redis.__version__,
            "redis": results.info("server")["redis_version"],
        },
    }
    print(json.dumps(figures))
    return 0


def _worker(prefetch: int) -> list[str]:
    options = ("--pool", "prefork", "--concurrency", "1", "--prefetch-multiplier", str(prefetch), "--loglevel", "ERROR")
    return [sys.executable, "-m", "celery", "-A", "celery_peer", "worker", *options]


def _wait_for(results: redis.Redis, tasks: int) -> None:
    """Until there are so many results."""
    deadline_s = time.monotonic() + WAIT_S
    while results.dbsize() < tasks:
        if time.monotonic() > deadline_s:
            sys.exit(f"{results.dbsize()} of {tasks} tasks were done in {WAIT_S:.0f} s")
        time.sleep(POLL_S)


def _ended_s(results: redis.Redis, task: str) -> float:
    """When the worker had the task's result."""
    meta = json.loads(results.get(f"celery-task-meta-{task}"))
    if meta["status"] != "SUCCESS":
        sys.exit(f"a task failed: {meta}")
    return dt.datetime.fromisoformat(meta["date_done"]).timestamp()


def _latency_ms(chunk: int) -> float:
    began_s = time.perf_counter()
    nothing.apply_async(args=[list(range(chunk))]).get(timeout=WAIT_S)
    return (time.perf_counter() - began_s) * 1000


if __name__ == "__main__":
    sys.exit(main())
