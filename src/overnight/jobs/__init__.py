"""What: durable execution: jobs that survive their workers, wait for people and time, and never act twice.
Owns: the transitions of a job, worker.
Depends on: effects, budgets, reviews, ledger, store, domain.
Never: calls a model or a tool itself; the gateway is handed in, tools are the effects of job code.
"""

from .commands import BeginAttempt, Complete, CreateJob
from .definitions import JobFunction, add_folder, job, load_job
from .effect_decorator import (
    Effect,
    EffectFailed,
    NotDone,
    effect,
)
from .effect_execution import CANNOT_TELL, NOT_DONE, Done
from .encoding import fingerprint
from .external_boundaries import (
    Approval,
    ChatAnswer,
    JobFailed,
    ModelFailed,
    NotInJob,
    approval,
    chat,
)
from .external_programs import ForeignJob, JobParked, checked
from .operations import Decision, Operations
from .services import ModelPort, ModelRequest, NoModel
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
from .task_registry import JobEvicted
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
    "Effect",
    "EffectFailed",
    "ForeignJob",
    "JobEvicted",
    "JobFailed",
    "JobFunction",
    "JobParked",
    "ModelFailed",
    "ModelPort",
    "ModelRequest",
    "NoModel",
    "NotDone",
    "NotInJob",
    "Operations",
    "Retry",
    "StepFailed",
    "Worker",
    "add_folder",
    "approval",
    "chat",
    "checked",
    "effect",
    "fingerprint",
    "job",
    "load_job",
    "now",
    "random",
    "sleep",
    "step",
    "timeout",
    "uuid",
]
