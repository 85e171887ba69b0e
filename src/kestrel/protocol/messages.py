"""Every message that managers, workers and users exchange, one class per JSON `type`.

The tag is the field `type`. Unknown fields are ignored (a newer peer may send them), an unknown
`type` or a bad field is answered with `error`. docs/protocol.md and the JSON Schema are generated
from these classes and their docstrings. They stand in `worker_messages` and `user_messages`, and what they
are made of in `fields`; everybody else takes them from here.

Times are seconds as floats; wall-clock times are Unix time. Indices of tasks start at 0.
"""

from __future__ import annotations

from kestrel.protocol.fields import (
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    TASKS_PER_JOB_MAX,
    Command,
    Error,
    Message,
    Natural,
    Parameters,
    Pattern,
    Patterns,
    PositiveInt,
    Seconds,
    ShortText,
)
from kestrel.protocol.user_messages import (
    Accepted,
    Cancel,
    Drain,
    Event,
    Explain,
    Explanation,
    Extend,
    Help,
    Job,
    JobInfo,
    JobStatus,
    ListTasks,
    LostWorker,
    Output,
    Pool,
    PoolStatus,
    ResultPage,
    Results,
    Status,
    TaskCounts,
    TaskInfo,
    TaskList,
    TaskResult,
    Text,
    Watch,
    WorkerGroup,
    WorkerInfo,
)
from kestrel.protocol.worker_messages import (
    Ack,
    AttemptReport,
    HeldAttempt,
    OutputPart,
    Profile,
    ReadOutput,
    Report,
    Revoke,
    Revoked,
    Stop,
    Tasks,
    TaskSpec,
    Welcome,
)

__all__ = [
    "PROTOCOL_OLDEST",
    "PROTOCOL_VERSION",
    "TASKS_PER_JOB_MAX",
    "Accepted",
    "Ack",
    "AttemptReport",
    "Cancel",
    "Command",
    "Drain",
    "Error",
    "Event",
    "Explain",
    "Explanation",
    "Extend",
    "HeldAttempt",
    "Help",
    "Job",
    "JobInfo",
    "JobStatus",
    "ListTasks",
    "LostWorker",
    "ManagerToUser",
    "ManagerToWorker",
    "Message",
    "Natural",
    "Output",
    "OutputPart",
    "Parameters",
    "Pattern",
    "Patterns",
    "Pool",
    "PoolStatus",
    "PositiveInt",
    "Profile",
    "ReadOutput",
    "Report",
    "ResultPage",
    "Results",
    "Revoke",
    "Revoked",
    "Seconds",
    "ShortText",
    "Status",
    "Stop",
    "TaskCounts",
    "TaskInfo",
    "TaskList",
    "TaskResult",
    "TaskSpec",
    "Tasks",
    "Text",
    "ToManager",
    "UserToManager",
    "Watch",
    "Welcome",
    "WorkerGroup",
    "WorkerInfo",
    "WorkerToManager",
]

WorkerToManager = Profile | Report | Revoked | OutputPart
ManagerToWorker = Welcome | Tasks | Ack | Stop | Revoke | ReadOutput | Error
UserToManager = (
    Job | Extend | Cancel | Status | ListTasks | Results | Output | Watch | Pool | Explain | Drain | Help
)
ManagerToUser = (
    Accepted
    | JobStatus
    | Event
    | ResultPage
    | TaskList
    | OutputPart
    | PoolStatus
    | Explanation
    | Text
    | Error
)
ToManager = WorkerToManager | UserToManager | Error
