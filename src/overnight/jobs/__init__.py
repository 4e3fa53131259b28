"""What: durable execution: jobs that survive their workers, wait for people and time, and never repeat an effect.
Owns: the table worker, with the ledger.
Depends on: effects, budgets, reviews, ledger, store, domain.
Never: calls a model or a tool itself; the gateway is passed in, tools are the effects of job code.
"""

from overnight.reviews import Decision

from .chat_and_approval import (
    Approval,
    ChatAnswer,
    HumanAnswer,
    ModelFailed,
    approval,
    ask,
    chat,
)
from .child_jobs import JobFailed
from .commands import BeginAttempt, Complete, CreateJob
from .current_record import about
from .definitions import JobFunction, add_folder, job, load_job
from .effect_decorator import (
    EffectFailed,
    NotDone,
    effect,
)
from .effect_records import CANNOT_TELL, NOT_DONE, Done
from .effect_status import StatusReport, Unverifiable, check_status
from .encoding import fingerprint
from .external_job import ExternalJob, check_identifiers, remote_attempt
from .job_parked import JobParked
from .operations import Operations
from .prompts import prompt
from .remote_job import RemoteJob, gateway_root
from .services import ModelRequest, NoModel
from .steps_and_timers import (
    Retry,
    StepFailed,
    now,
    random,
    sleep,
    step,
    timeout,
    uuid,
)
from .worker import Worker

__all__ = [
    "CANNOT_TELL",
    "NOT_DONE",
    "Approval",
    "BeginAttempt",
    "ChatAnswer",
    "Complete",
    "CreateJob",
    "Decision",
    "Done",
    "EffectFailed",
    "ExternalJob",
    "HumanAnswer",
    "JobFailed",
    "JobFunction",
    "JobParked",
    "ModelFailed",
    "ModelRequest",
    "NoModel",
    "NotDone",
    "Operations",
    "RemoteJob",
    "Retry",
    "StatusReport",
    "StepFailed",
    "Unverifiable",
    "Worker",
    "about",
    "add_folder",
    "approval",
    "ask",
    "chat",
    "check_identifiers",
    "check_status",
    "effect",
    "fingerprint",
    "gateway_root",
    "job",
    "load_job",
    "now",
    "prompt",
    "random",
    "remote_attempt",
    "sleep",
    "step",
    "timeout",
    "uuid",
]
