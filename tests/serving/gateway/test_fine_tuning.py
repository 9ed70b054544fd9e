"""Files and fine-tuning jobs with the official client, in front of a real queue that no worker empties."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from bench import mock_upstream
from serving.auth import add_key
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from training.jobs import JobStore
from training.jobs.claims import Claims
from training.jobs.gpus import Capacity, Needs

CHATS = b"".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": "answer"}]}
    ).encode()
    + b"\n"
    for index in range(3)
)


def store_of(endpoint: Endpoint) -> JobStore:
    store = getattr(endpoint.gateway.training, "store", None)
    assert isinstance(store, JobStore)
    return store


def work_on(endpoint: Endpoint, job_id: str) -> Claims:
    """Hold the job as a worker does."""
    claims = Claims(store_of(endpoint))
    job = claims.claim(Capacity(), lambda _: Needs())
    assert job is not None
    assert job.id == job_id
    return claims


async def test_a_file_is_uploaded_listed_read_and_deleted(endpoint: Endpoint) -> None:
    files = endpoint.openai.files
    made = await files.create(file=("cases.jsonl", io.BytesIO(CHATS)), purpose="fine-tune")
    assert (made.object, made.filename, made.bytes, made.purpose) == ("file", "cases.jsonl", len(CHATS), "fine-tune")
    assert made.id.startswith("file-")
    assert await files.retrieve(made.id) == made
    assert (await files.content(made.id)).content == CHATS
    second = await files.create(file=("more.jsonl", io.BytesIO(b"{}\n")), purpose="fine-tune")
    assert [file.id async for file in await files.list(limit=1)] == [second.id, made.id]
    assert [file.id async for file in await files.list(order="asc")] == [made.id, second.id]
    deleted = await files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError, match=made.id):
        await files.retrieve(made.id)


async def test_an_upload_may_be_larger_than_a_request_but_not_than_its_own_limit(
    start: StartEndpoint, mock_url: str
) -> None:
    endpoint = await start(mock_url, max_body_bytes=2048, max_upload_bytes=8192)
    made = await endpoint.openai.files.create(file=("a", b"x" * 4096), purpose="fine-tune")
    assert made.bytes == 4096
    with pytest.raises(openai.APIStatusError) as refused:
        await endpoint.openai.files.create(file=("a", b"x" * 9000), purpose="fine-tune")
    assert refused.value.status_code == 413


async def test_uploads_that_are_none_are_refused(endpoint: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await endpoint.openai.files.create(file=("a", b"x"), purpose="batch")
    for arguments in ({"json": {}}, {"data": {"purpose": "fine-tune"}}):
        answer = await endpoint.http.post("/v1/files", **arguments)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


async def test_a_job_on_the_casebank_is_created_joined_listed_and_cancelled(endpoint: Endpoint) -> None:
    jobs = endpoint.openai.fine_tuning.jobs
    made = await jobs.create(model=mock_upstream.BASE, training_file="casebank:support-agent", seed=7)
    assert (made.object, made.status, made.model) == ("fine_tuning.job", "queued", mock_upstream.BASE)
    assert (made.training_file, made.seed, made.fine_tuned_model, made.error) == (
        "casebank:support-agent",
        7,
        None,
        None,
    )
    assert made.hyperparameters.n_epochs == "auto"
    assert (await jobs.create(model="support-agent", training_file="casebank:support-agent")).id == made.id
    other = await jobs.create(model="legal", training_file="casebank:legal", metadata={"priority": "high", "team": "x"})
    assert [job.id async for job in await jobs.list(limit=1)] == [other.id, made.id]
    assert [job.id async for job in await jobs.list(extra_query={"metadata[team]": "x"})] == [other.id]
    assert (await jobs.retrieve(made.id)).id == made.id
    cancelled = await jobs.cancel(made.id)
    assert (cancelled.status, cancelled.finished_at is not None) == ("cancelled", True)
    with pytest.raises(openai.ConflictError):
        await jobs.cancel(made.id)


async def test_hyperparameters_reach_the_trainer(endpoint: Endpoint) -> None:
    made = await endpoint.openai.fine_tuning.jobs.create(
        model="legal",
        training_file="casebank:legal",
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 0.5}},
        },
    )
    assert made.method is not None
    assert made.method.supervised is not None
    hyper = made.method.supervised.hyperparameters
    assert hyper is not None
    assert (hyper.n_epochs, hyper.batch_size, hyper.learning_rate_multiplier) == (2, 8, 0.5)
    request = store_of(endpoint).get(made.id).request
    assert (request.overrides, request.learning_rate_multiplier) == ({"epochs": 2, "batch_size": 8}, 0.5)


async def test_a_version_is_trained_on(endpoint: Endpoint) -> None:
    jobs = endpoint.openai.fine_tuning.jobs
    version = endpoint.gateway.registry.resolve("legal").engine_name
    made = await jobs.create(model=version, training_file="casebank:legal")
    assert store_of(endpoint).get(made.id).request.overrides == {"continue_from": version}
    with pytest.raises(openai.NotFoundError):
        await jobs.create(model="legal@ffffffffffff", training_file="casebank:legal")


async def test_an_uploaded_file_is_for_the_agent_that_is_named(endpoint: Endpoint) -> None:
    file = await endpoint.openai.files.create(file=("cases.jsonl", CHATS), purpose="fine-tune")
    jobs = endpoint.openai.fine_tuning.jobs
    with pytest.raises(openai.UnprocessableEntityError, match="which agent"):
        await jobs.create(model=mock_upstream.BASE, training_file=file.id)
    for agent, options in (
        ("by-suffix", {"suffix": "by-suffix"}),
        ("by-metadata", {"metadata": {"agent": "by-metadata"}}),
    ):
        made = await jobs.create(model=mock_upstream.BASE, training_file=file.id, **options)
        job = store_of(endpoint).get(made.id)
        assert (job.agent, job.source, job.request.base) == (agent, file.id, mock_upstream.BASE)
    with pytest.raises(openai.ConflictError, match="needs file"):
        await endpoint.openai.files.delete(file.id)


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"model": "nobody"}, 404, "nobody"),
        ({"training_file": "casebank:"}, 422, "casebank"),
        ({"training_file": "somewhere"}, 422, "casebank:AGENT"),
        ({"training_file": "file-none"}, 404, "file-none"),
        ({"model": "support", "training_file": "casebank:legal"}, 422, "means agent"),
        ({"validation_file": "file-1"}, 422, "held out"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 422, "report_to"),
        ({"suffix": "other"}, 422, "suffix"),
        ({"metadata": {"priority": "urgent"}}, 422, "priority"),
        ({"method": {"type": "dpo"}}, 422, "supervised"),
        ({"hyperparameters": {"n_epochs": "many"}}, 422, "n_epochs"),
        ({"surprise": 1}, 422, "surprise"),
    ],
)
async def test_what_cannot_be_trained_is_refused_in_the_envelope(
    endpoint: Endpoint, fields: dict[str, object], status: int, word: str
) -> None:
    body = {"model": "legal", "training_file": "casebank:legal", "suffix": None} | fields
    if body["training_file"] == "file-none":
        body["suffix"] = "legal"
    answer = await endpoint.http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert word in error["message"]


async def test_events_and_checkpoints_are_the_clients_own(endpoint: Endpoint) -> None:
    jobs = endpoint.openai.fine_tuning.jobs
    made = await jobs.create(model="legal", training_file="casebank:legal")
    claims = work_on(endpoint, made.id)
    claims.store.record(made.id, "step 10 of 20", data={"step": 10, "loss": 0.5})
    folder = endpoint.gateway.settings.home / "jobs" / made.id
    for step in (10, 20):
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    lines = [{"step": 5, "loss": 0.7}, {"step": 10, "loss": 0.5, "validation_loss": 0.6}, {"step": 20, "loss": 0.2}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 21, "lo')
    events = [event async for event in await jobs.list_events(made.id, limit=1)]
    assert [event.type for event in events] == ["metrics", "message", "message"]
    assert (events[0].message, events[0].data) == ("step 10 of 20", {"step": 10, "train_loss": 0.5})
    checkpoints = [each async for each in await jobs.checkpoints.list(made.id)]
    assert [each.step_number for each in checkpoints] == [20, 10]
    assert (checkpoints[1].metrics.train_loss, checkpoints[1].metrics.valid_loss) == (0.5, 0.6)
    assert checkpoints[0].fine_tuning_job_id == made.id
    for ask in (jobs.retrieve, jobs.list_events, jobs.cancel, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            await ask("ftjob-none")


async def test_a_finished_job_names_the_version_that_it_promoted(endpoint: Endpoint) -> None:
    jobs = endpoint.openai.fine_tuning.jobs
    made = await jobs.create(model="legal", training_file="casebank:legal")
    claims = work_on(endpoint, made.id)
    assert (await jobs.retrieve(made.id)).status == "running"
    claims.keep(made.id, "train", {"measures": {"tokens": 1234}})
    claims.finish(made.id, {"adapter": "legal@123456789abc", "promoted": True, "gate": {"passed": True}}, "champion")
    done = await jobs.retrieve(made.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "legal@123456789abc", 1234)


async def test_a_failed_job_tells_why(endpoint: Endpoint) -> None:
    from training.jobs.errors import Hopeless

    jobs = endpoint.openai.fine_tuning.jobs
    made = await jobs.create(model="legal", training_file="casebank:legal")
    work_on(endpoint, made.id).fail(made.id, Hopeless("no cases", "dataset_empty"), max_attempts=1, final=True)
    failed = await jobs.retrieve(made.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "dataset_empty", "no cases")


async def test_the_status_is_that_of_the_run_in_progress(endpoint: Endpoint) -> None:
    async def status() -> dict[str, object]:
        answer = await endpoint.http.get("/v1/training/status")
        assert answer.status_code == 200
        return dict(answer.json())

    nothing = await status()
    assert (nothing["running"], nothing["step"], nothing["job"]) == (False, None, None)
    made = await endpoint.openai.fine_tuning.jobs.create(model="legal", training_file="casebank:legal")
    assert (await status())["queued"] == 1
    claims = work_on(endpoint, made.id)
    claims.announce()
    told = {
        "step": 3,
        "total_steps": 9,
        "epoch": 0.5,
        "total_epochs": 2.0,
        "loss": 0.25,
        "learning_rate": 1e-4,
        "eta_seconds": 60.0,
        "started_at": "2026-01-01T00:00:00+00:00",
        "checkpoint_at": None,
        "error": None,
    }
    folder = endpoint.gateway.settings.home / "jobs" / made.id
    folder.mkdir(parents=True)
    (folder / "training-status.json").write_text(json.dumps(told))
    now = await status()
    assert {key: now[key] for key in told} == told
    assert (now["running"], now["job"], now["agent"], now["state"]) == (True, made.id, "legal", "running")
    workers = now["workers"]
    assert isinstance(workers, list)
    assert len(workers) == 1
    assert (await endpoint.openai.fine_tuning.jobs.retrieve(made.id)).estimated_finish is not None


@pytest.mark.parametrize("admin", [True, False])
async def test_jobs_and_files_need_an_admin_key(
    start: StartEndpoint, mock_url: str, home: Callable[[str], Path], tmp_path: Path, admin: bool
) -> None:
    keys = tmp_path / "keys.toml"
    key = add_key(keys, "one", admin=admin)
    endpoint = await start(mock_url, api_keys_file=keys)
    client = endpoint.openai.with_options(api_key=key)
    asked = (
        lambda: client.fine_tuning.jobs.create(model="legal", training_file="casebank:legal"),
        client.fine_tuning.jobs.list,
        lambda: client.files.create(file=("a", b"x"), purpose="fine-tune"),
        client.files.list,
    )
    for ask in asked:
        if admin:
            await ask()
        else:
            with pytest.raises(openai.PermissionDeniedError):
                await ask()
    headers = {"authorization": f"Bearer {key}"}
    assert (await endpoint.http.get("/v1/training/status", headers=headers)).status_code == httpx.codes.OK
    assert (await endpoint.http.get("/v1/training/status")).status_code == httpx.codes.UNAUTHORIZED


async def test_the_training_worker_is_let_in_with_a_key_of_its_own(
    start: StartEndpoint, mock_url: str, tmp_path: Path
) -> None:
    from serving.auth import TRAINING

    keys = tmp_path / "keys.toml"
    add_key(keys, "one", admin=True)
    endpoint = await start(mock_url, api_keys_file=keys)
    endpoint.gateway.keys.admit("worker-token", TRAINING)
    headers = {"authorization": "Bearer worker-token"}
    assert (await endpoint.http.get("/v1/models", headers=headers)).status_code == httpx.codes.OK
    refused = await endpoint.http.post("/v1/adapters", json={"name": "x", "source": "/"}, headers=headers)
    assert refused.status_code == httpx.codes.FORBIDDEN
