"""Weights & Biases."""

from __future__ import annotations

import json
import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import wandb
from wandb.errors import Error

# No public name: its own process, which went away, is told of by these and by no class of `wandb.errors`.
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from cfsp.checks import check_choice
from cfsp.loggers.base import Job, Logger
from cfsp.records.record import Record, record_path

MODES = ("auto", "online", "offline", "disabled")


@dataclass
class Wandb(Logger):
    """One W&B run per record, with the record's id; its group is the sweep.

    mode: "auto" is WANDB_MODE if set, else online with an API key and offline without one. Offline runs
        are stored in `<results>/wandb`; `wandb sync` uploads them.
    artifact: upload the record as an artifact too.

    If the service cannot be reached, the run is stored offline, with a warning on stderr. If it stops
    answering later, the run waits `timeout` seconds at its end; data that is not uploaded by then stays in
    `<results>/wandb`.
    """

    faults: ClassVar[tuple[type[Exception], ...]] = (
        OSError,
        Error,
        HandleAbandonedError,
        MailboxClosedError,
    )

    project: str
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()
    mode: str = "auto"
    artifact: bool = False
    timeout: float = 30.0
    run: Any = field(default=None, init=False)
    job: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_choice("logger.wandb.mode", self.mode, MODES)

    def open(self, job: Job) -> None:
        self.job = job
        mode = self.mode if self.mode != "auto" else os.environ.get("WANDB_MODE") or default_mode()
        try:
            self.run = self.start(mode, job.id)
        except self.faults as error:
            print(f"cfsp: W&B cannot be used online ({error}); the run is kept offline", file=sys.stderr)
            self.run = self.start("offline", self.free_id())

    def free_id(self) -> str:
        """Return an id for the second try: W&B's own process holds the first one until it ends."""
        if wandb.setup().most_recent_active_run is not None:  # a run of the caller uses the process
            return f"{self.job.id}-offline"
        with suppress(*self.faults):  # its process may be gone
            wandb.teardown()
        return self.job.id

    def start(self, mode: str, run_id: str) -> Any:
        job = self.job
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or job.group,
            tags=list(self.tags),
            id=run_id,
            name=job.id,
            resume="allow" if mode == "online" else None,
            config=dict(job.config),
            notes=job.command,
            dir=str(job.results.absolute()),  # W&B's own process may have begun in another folder
            mode=mode,  # pyright: ignore[reportArgumentType]  # W&B says what WANDB_MODE may be
            reinit="create_new",  # beside a run that the caller may have
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self.timeout,
                finish_timeout=self.timeout,  # else a lost network keeps the run from ending
                finish_timeout_raises=True,
            ),
        )
        run.define_metric("recovery/*", step_metric="recovery/step")
        return run

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        extra = {} if step is None else {"recovery/step": step}
        self.run.log({**values, **extra})

    def close(self, record: Record | None) -> None:
        try:
            if record is not None:
                self.tell(record)
        finally:  # else W&B ends the run with the process, as a successful one
            self.run.finish(exit_code=0 if record else 1)

    def tell(self, record: Record) -> None:
        """Log the record as summary, tables and a chart."""
        rows: list[Any] = [
            [stage, name, metric.value, metric.stderr, metric.n, json.dumps(asdict(metric)["protocol"])]
            for stage, found in record.metrics.items()
            for name, metric in found.items()
        ]
        metrics = wandb.Table(["model", "metric", "value", "stderr", "n", "protocol"], data=rows)
        shares: list[Any] = [
            [site, units, kept, kept / units] for site, (units, kept) in record.widths.items()
        ]
        widths = wandb.Table(["site", "units", "kept", "share"], data=shares)
        chart = wandb.plot.bar(widths, "site", "share", title="kept")
        self.run.log({"metrics": metrics, "widths": widths, "kept": chart})
        summary = {f"sparsity/{base}": share for base, share in record.sparsity.items()}
        summary |= {f"parameters/{base}": count for base, count in record.parameters["pruned"].items()}
        summary |= {f"seconds/{stage}": seconds for stage, seconds in record.seconds.items()}
        self.run.summary.update(summary)
        if self.artifact:
            artifact = wandb.Artifact(f"record-{record.id}", type="record")
            artifact.add_file(str(record_path(self.job.results, record.id)))
            self.run.log_artifact(artifact)


def default_mode() -> str:
    """Return "online" if there is an API key, else "offline"."""
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].strip("/")
    with suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc().authenticators(host):
            return "online"
    return "offline"
