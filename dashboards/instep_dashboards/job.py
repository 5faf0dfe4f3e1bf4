"""The board Job: how one job goes, which rank makes the others wait, and what happened to it."""

from __future__ import annotations

from instep_dashboards.panels import Annotation, Board, Panel, Query, Row, Shape, Unit

MINE = '{job="$job"}'
HANG, SLOW, CRASH = "runbooks/hang.md", "runbooks/straggler.md", "runbooks/crash.md"
TRAINER, SERVER = "guide/trainer.md", "guide/server.md"

NOW = Row(
    "Now",
    (
        Panel(
            "Step",
            "Steps that every rank has finished, over the whole run. Worry when it stands still outside an evaluation, "
            "a checkpoint or a compilation.",
            (Query(f"max(instep_job_step{MINE})"),),
            docs=HANG,
            shape=Shape.NUMBER,
            width=4,
        ),
        Panel(
            "Step time",
            "Median of the last ten steps of every rank.",
            (Query(f"max(instep_job_step_seconds{MINE})"),),
            docs=SLOW,
            shape=Shape.NUMBER,
            unit=Unit.SECONDS,
            width=4,
        ),
        Panel(
            "Ranks alive",
            "Ranks with a living process that was reported within 10 s, beside the world size. Worry when fewer are "
            "alive than expected.",
            (
                Query(f"max(instep_job_ranks_alive{MINE})", "alive"),
                Query(f"max(instep_job_ranks_expected{MINE})", "expected"),
            ),
            docs=CRASH,
            shape=Shape.NUMBER,
            width=4,
        ),
        Panel(
            "Slowest rank",
            "The rank with the most time of its own: without waiting for peers, data, checkpoints and evaluation.",
            (Query(f"max(instep_job_slowest_rank{MINE})"),),
            docs=SLOW,
            shape=Shape.NUMBER,
            unit=Unit.NONE,
            width=4,
        ),
        Panel(
            "Last sign of life",
            "Of the most silent rank: a phase, a step or a collective. Worry beyond a few step times.",
            (Query(f"max(instep_job_heartbeat_age_seconds_max{MINE})"),),
            docs=HANG,
            shape=Shape.NUMBER,
            unit=Unit.SECONDS,
            width=4,
        ),
        Panel(
            "Restarts",
            "Restarts used, beside what --max-restarts allows. Worry when the budget is nearly gone: after the last "
            "one a fault ends the job.",
            (
                Query(f"max(instep_job_restarts{MINE})", "used"),
                Query(f"max(instep_job_restarts_max{MINE})", "allowed"),
            ),
            docs=TRAINER,
            shape=Shape.NUMBER,
            width=4,
        ),
    ),
)

PACE = Row(
    "Pace",
    (
        Panel(
            "Step time over ranks",
            "Wall time of recent steps: the median rank, 90 % of the ranks, and the slowest. In a job that works in "
            "step the three lie together, since all wait for the slowest; look at the next graph for who it is.",
            (Query(f"max by (of_ranks) (instep_job_rank_step_seconds{MINE})", "{{of_ranks}}"),),
            docs=SLOW,
            unit=Unit.SECONDS,
        ),
        Panel(
            "Own work over ranks",
            "Time of recent steps without waiting for peers, data, checkpoints and evaluation. Worry when the maximum "
            "leaves the median: one rank makes all others wait.",
            (Query(f"max by (of_ranks) (instep_job_rank_work_seconds{MINE})", "{{of_ranks}}"),),
            docs=SLOW,
            unit=Unit.SECONDS,
        ),
        Panel(
            "Slowest rank against the median",
            "1 is a rank like the others. Worry when it stays above 1.1: the whole job pays for one rank.",
            (Query(f"max(instep_job_slowest_rank_ratio{MINE})", "slowest / median"),),
            docs=SLOW,
            orange_from=1.1,
        ),
        Panel(
            "Where a step goes",
            "Mean time of a recent step in each part, over all ranks; waiting for peers lies inside the parts. Worry "
            "when data or checkpoints grow.",
            (Query(f"max by (part) (instep_job_step_part_seconds{MINE})", "{{part}}"),),
            docs=SLOW,
            unit=Unit.SECONDS,
            is_stacked=True,
        ),
        Panel(
            "Waiting in collectives",
            "Share of recent steps spent waiting for peers. The rank that waits least is the one that the others wait "
            "for. Worry when the median grows: a slow rank, or a slow network.",
            (Query(f"max by (of_ranks) (instep_job_rank_wait_ratio{MINE})", "{{of_ranks}}"),),
            docs=SLOW,
            unit=Unit.RATIO,
        ),
        Panel(
            "Steps finished",
            "Steps that every rank has finished. It goes back after a restart by what was not kept.",
            (Query(f"max(instep_job_step{MINE})", "step"),),
            docs=HANG,
        ),
    ),
)

RANKS = Row(
    "Ranks",
    (
        Panel(
            "Last sign of life by rank",
            "Seconds since each rank's phase, step or collective, measured on its node: the sixteen oldest. In a hang "
            "all grow together; the verdict says which rank began.",
            (Query(f"topk(16, max by (rank) (instep_rank_heartbeat_age_seconds{MINE}))", "rank {{rank}}"),),
            docs=HANG,
            unit=Unit.SECONDS,
        ),
        Panel(
            "Steps behind the furthest rank",
            "The sixteen furthest behind. Ranks that exchange at every step are at most one apart; worry beyond that.",
            (
                Query(
                    f"topk(16, scalar(max(instep_rank_step{MINE})) - max by (rank) (instep_rank_step{MINE}))",
                    "rank {{rank}}",
                ),
            ),
            docs=SLOW,
        ),
        Panel(
            "Ranks by phase",
            "How many ranks are in each phase. Worry when all but one wait: that one is the rank to look at.",
            (Query(f"max by (phase) (instep_job_phase_ranks{MINE})", "{{phase}}"),),
            docs=HANG,
            is_stacked=True,
        ),
    ),
)

EVENTS = Row(
    "What happened",
    (
        Panel(
            "Open incidents of this job",
            "By kind; drills are named. Over is an incident when every rank of a later attempt has kept a step.",
            (Query(f"max by (kind, drill) (instep_job_incidents_open{MINE})", "{{kind}} (drill: {{drill}})"),),
            docs="README.md#when-something-fires",
            is_stacked=True,
        ),
        Panel(
            "Attempt",
            "Every restart opens the next attempt.",
            (Query(f"max(instep_job_attempt{MINE})", "attempt"),),
            docs=TRAINER,
            width=4,
        ),
        Panel(
            "First kept step of the attempt",
            "The first step that every rank finished and kept after the start or restart. No value: nothing was kept "
            "yet, so a fault now would cost what the attempt before had won.",
            (Query(f"max(instep_job_kept_step_first{MINE})", "step"),),
            docs=TRAINER,
            width=6,
        ),
        Panel(
            "Time to the first kept step",
            "From the opening of the running attempt until every rank had kept a step. Worry when restarts take longer "
            "than they used to: storage, or a start that compiles again.",
            (Query(f"max(instep_job_resume_seconds{MINE})", "seconds"),),
            docs=TRAINER,
            unit=Unit.SECONDS,
            width=6,
        ),
    ),
)

JOB = Board(
    uid="instep-job",
    title="Instep / Job",
    description="One job: its pace, its ranks, and what happened to it.",
    rows=(NOW, PACE, RANKS, EVENTS),
    variables=(("job", "label_values(instep_job_step, job)"),),
    annotations=(
        Annotation(
            "Incidents",
            f"max by (job, kind) (instep_job_incidents_open{MINE}) > 0",
            "{{kind}}",
            "red",
        ),
        Annotation("Restarts", f"changes(instep_job_attempt{MINE}[1m]) > 0", "a new attempt", "orange"),
    ),
)
