"""The board Fleet: what needs somebody now, how the nodes are, and whether the server itself can be trusted."""

from __future__ import annotations

from instep_dashboards.panels import Board, Panel, Query, Row, Shape, Unit

SERVER = "guide/server.md"
ALERTS = "guide/dashboards.md"
RUNBOOKS = "README.md#when-something-fires"
GPU = "runbooks/gpu-fault.md"

NOW = Row(
    "Now",
    (
        Panel(
            "Jobs running",
            "Runs that were heard of within 15 s and have not finished. Worry when it falls and nobody ended a job.",
            (Query("sum(instep_jobs_live)"),),
            docs=SERVER,
            shape=Shape.NUMBER,
            width=4,
        ),
        Panel(
            "Nodes reporting",
            "Nodes whose agents were heard of within 15 s.",
            (Query("max(instep_nodes_reporting)"),),
            docs=f"{ALERTS}#instepnodesilent",
            shape=Shape.NUMBER,
            width=4,
        ),
        Panel(
            "Nodes silent",
            "Nodes that were heard of within a day, but not now: what happens there is unknown, not healthy. "
            "Worry from the first one that nobody switched off.",
            (Query("max(instep_nodes_silent)"),),
            docs=f"{ALERTS}#instepnodesilent",
            shape=Shape.NUMBER,
            width=4,
            orange_from=1,
        ),
        Panel(
            "Incidents open",
            "Incidents that are not over, drills included. Cause, place and evidence are on the server's page.",
            (Query("sum(max by (kind) (instep_incidents_open))"),),
            docs=RUNBOOKS,
            shape=Shape.NUMBER,
            width=4,
            red_from=1,
        ),
        Panel(
            "Suspects",
            "Stalls without positive evidence yet: shown, never acted upon. Most are withdrawn. Worry when one stays "
            "for minutes.",
            (Query("max(instep_suspects_open)"),),
            docs="runbooks/hang.md",
            shape=Shape.NUMBER,
            width=4,
            orange_from=1,
        ),
        Panel(
            "Plans waiting",
            "Proposals that wait for a person. Nothing is done about these nodes until somebody decides.",
            (Query('max(instep_plans{state="waiting"})'),),
            docs=f"{ALERTS}#instepplanwaitsforapproval",
            shape=Shape.NUMBER,
            width=4,
            orange_from=1,
        ),
    ),
)

INCIDENTS = Row(
    "Incidents and what was done",
    (
        Panel(
            "Open incidents by kind",
            "How many incidents of each kind are open. Worry about each; several at once on different jobs point to "
            "something that they share.",
            (Query("max by (kind) (instep_incidents_open)", "{{kind}}"),),
            docs=RUNBOOKS,
            is_stacked=True,
        ),
        Panel(
            "Open incidents by job",
            "Which jobs have an open incident now, and whether it is a drill. A fault of a node without a job stands "
            "under (none).",
            (Query("max by (job, kind, drill) (instep_job_incidents_open)"),),
            docs=RUNBOOKS,
            shape=Shape.ROWS,
        ),
        Panel(
            "Incidents since the server started",
            "Counted when the verdict is there. Worry when a kind grows faster than it used to: the same node, or the "
            "same bug, may be behind all of them.",
            (Query("sum by (kind) (instep_incidents_total)", "{{kind}}"),),
            docs=RUNBOOKS,
        ),
        Panel(
            "Plans by state",
            "What was planned and what became of it. Worry about those that failed, and about those that wait.",
            (Query("max by (state) (instep_plans)", "{{state}}"),),
            docs=f"{ALERTS}#instepplanwaitsforapproval",
        ),
        Panel(
            "Breaker of node plans",
            "1 while nothing is done to nodes without approval, since plans failed in a row. Worry at once: find out "
            "why they failed, then reset it.",
            (Query("max(instep_breaker_open)", "open"),),
            docs=f"{ALERTS}#instepbreakeropen",
        ),
        Panel(
            "Restart orders by outcome",
            "Orders to restart a job. Worry when they are refused or expire: the job's supervisors do not do what the "
            "server says, or do not hear it.",
            (Query('max by (outcome) (instep_orders_kept{action="restart"})', "{{outcome}}"),),
            docs=f"{SERVER}#what-it-does",
        ),
        Panel(
            "Messages to people",
            "Tries to deliver a message to the webhook, and alerts sent to each Alertmanager. Worry when any fail: "
            "incidents are found and nobody is told.",
            (
                Query("sum by (outcome) (instep_webhook_deliveries_total)", "webhook: {{outcome}}"),
                Query("sum by (receiver, outcome) (instep_alerts_sent_total)", "{{receiver}}: {{outcome}}"),
            ),
            docs=f"{ALERTS}#instepmessagesnotdelivered",
        ),
    ),
)

NODES = Row(
    "Nodes",
    (
        Panel(
            "Silent nodes",
            "Since when the agent of each silent node was not heard of; 64 are named at most. Look whether the node is "
            "up, then whether its agent is.",
            (Query("max by (node) (instep_node_silent_seconds)"),),
            docs=f"{ALERTS}#instepnodesilent",
            shape=Shape.ROWS,
            unit=Unit.SECONDS,
        ),
        Panel(
            "Sources that fail",
            "Agents on which a source could not look, by source. A source without its hardware is absent, which is no "
            "failure. Worry when it stays above 0: faults of that kind are not seen there.",
            (Query("sum by (source) (1 - instep_agent_source_success)", "{{source}}"),),
            docs=f"{ALERTS}#instepagentsourcefailing",
            red_from=1,
        ),
        Panel(
            "Slowest sources",
            "How long the slowest agent needed to ask each source. Worry near the source's interval: its readings are "
            "late.",
            (Query("topk(8, max by (source) (instep_agent_source_duration_seconds))", "{{source}}"),),
            docs=f"{ALERTS}#instepagentsourcefailing",
            unit=Unit.SECONDS,
        ),
        Panel(
            "Pressure",
            "Share of the last 10 s in which something on the node waited for CPU, memory or disks: the eight worst. "
            "Worry when one node of a job stands out: its ranks will be the slow ones.",
            (
                Query(
                    'topk(8, max by (instance, resource) (instep_host_pressure_ratio{kind="some"}))',
                    "{{instance}} {{resource}}",
                ),
            ),
            docs="runbooks/straggler.md",
            unit=Unit.RATIO,
        ),
        Panel(
            "Load",
            "Load average of one minute, the eight highest. Compare nodes that do the same work.",
            (Query("topk(8, instep_host_load1)", "{{instance}}"),),
            docs="runbooks/straggler.md",
        ),
        Panel(
            "Memory left",
            "Memory to be had without swapping, the eight lowest. Worry below 5 %: the kernel will end a rank next.",
            (
                Query(
                    "bottomk(8, instep_host_memory_available_bytes / instep_host_memory_total_bytes)",
                    "{{instance}}",
                ),
            ),
            docs="runbooks/crash.md",
            unit=Unit.RATIO,
        ),
    ),
)

GPUS = Row(
    "GPUs",
    (
        Panel(
            "GPUs lost",
            "GPUs that the driver lost or does not let anybody read. Worry from the first: its job fails or hangs.",
            (Query("sum by (instance) (instep_gpu_is_lost)", "{{instance}}"),),
            docs=GPU,
            red_from=1,
        ),
        Panel(
            "Xid and other events",
            "What GPUs reported since their agents started, by type. One Xid may be the program's own fault; worry "
            "when a GPU speaks often. The meaning of each number is in `instep catalogue`.",
            (Query("topk(8, sum by (instance, type) (instep_gpu_events_total))", "{{instance}} {{type}}"),),
            docs=GPU,
        ),
        Panel(
            "Clocks held back",
            "GPUs whose clocks are held by heat, by the board or by its power supply. Worry when one GPU of a job is "
            "among them: its rank will be the slow one.",
            (
                Query(
                    'sum by (reason) (instep_gpu_clock_reason{reason=~"hardware_.*|software_thermal|reliability"})',
                    "{{reason}}",
                ),
            ),
            docs="runbooks/straggler.md",
            orange_from=1,
        ),
        Panel(
            "Temperature",
            "The eight hottest GPUs. What is too hot differs by model: look at the next graph.",
            (Query("topk(8, max by (instance, gpu) (instep_gpu_temperature_celsius))", "{{instance}} GPU {{gpu}}"),),
            docs=GPU,
            unit=Unit.CELSIUS,
        ),
        Panel(
            "Degrees left to slowdown",
            "The eight GPUs that are nearest to being slowed down by heat. Worry at 0.",
            (
                Query(
                    "bottomk(8, min by (instance, gpu) (instep_gpu_temperature_margin_celsius))",
                    "{{instance}} GPU {{gpu}}",
                ),
            ),
            docs=GPU,
            unit=Unit.CELSIUS,
        ),
        Panel(
            "Power",
            "The eight GPUs that draw least. In a job that works in step all draw about the same; one that draws less "
            "waits, or is held back.",
            (Query("bottomk(8, max by (instance, gpu) (instep_gpu_power_watts))", "{{instance}} GPU {{gpu}}"),),
            docs="runbooks/straggler.md",
            unit=Unit.WATT,
        ),
        Panel(
            "Busy",
            "Share of time that any kernel ran: the eight least busy. A GPU that waits in a collective is busy as "
            "well, so a hang shows as 100 %.",
            (Query("bottomk(8, max by (instance, gpu) (instep_gpu_utilization_ratio))", "{{instance}} GPU {{gpu}}"),),
            docs="runbooks/hang.md",
            unit=Unit.RATIO,
        ),
        Panel(
            "Uncorrected memory errors",
            "Since the driver was loaded, the eight GPUs with most. Worry from the first: the program that hit it "
            "ended, and the GPU may need a reset.",
            (
                Query(
                    "topk(8, max by (instance, gpu) (instep_gpu_ecc_uncorrected_volatile_total))",
                    "{{instance}} GPU {{gpu}}",
                ),
            ),
            docs=GPU,
            red_from=1,
        ),
        Panel(
            "Waiting for a reset",
            "GPUs with memory rows that are taken out of use at the next reset. Plan one when the node is free.",
            (Query("sum by (instance) (instep_gpu_row_remap_is_pending)", "{{instance}}"),),
            docs=GPU,
            orange_from=1,
        ),
    ),
)

HEALTH = Row(
    "The server itself",
    (
        Panel(
            "Frames taken",
            "Agents' frames per second: about one per node. Those that came twice are harmless; many of them say that "
            "answers get lost. Worry at 0: the server sees nothing.",
            (
                Query("sum(rate(instep_ingest_frames_total[$__rate_interval]))", "taken"),
                Query("sum(rate(instep_ingest_frames_duplicate_total[$__rate_interval]))", "came twice"),
            ),
            docs=f"{ALERTS}#instepserveringeststalled",
            unit=Unit.PER_SECOND,
        ),
        Panel(
            "Reports and events taken",
            "Supervisors' reports and nodes' events per second. A burst of events is a fault that speaks often.",
            (
                Query("sum(rate(instep_ingest_reports_total[$__rate_interval]))", "reports"),
                Query("sum(rate(instep_ingest_events_total[$__rate_interval]))", "events"),
            ),
            docs=f"{ALERTS}#instepserveringeststalled",
            unit=Unit.PER_SECOND,
        ),
        Panel(
            "Journal to store",
            "Events that are safe in the journal and not yet in the database. Worry when it grows: the database is "
            "slow or away.",
            (Query("max(instep_ingest_events_waiting)", "events waiting"),),
            docs=f"{ALERTS}#instepdetectorsfail",
        ),
        Panel(
            "Journal written",
            "Bytes per second that are kept before they are acknowledged.",
            (Query("sum(rate(instep_journal_written_bytes_total[$__rate_interval]))", "written"),),
            docs=f"{SERVER}#what-it-does",
            unit=Unit.BYTES_PER_SECOND,
        ),
        Panel(
            "Detectors: time of one look",
            "One look at all runs, every quarter of a second. Worry above 0.25 s: what is found is found late.",
            (
                Query(
                    "histogram_quantile(0.5, sum by (le) "
                    "(rate(instep_detector_tick_seconds_bucket[$__rate_interval])))",
                    "median",
                ),
                Query(
                    "histogram_quantile(0.99, sum by (le) "
                    "(rate(instep_detector_tick_seconds_bucket[$__rate_interval])))",
                    "99 %",
                ),
            ),
            docs=f"{ALERTS}#instepdetectorsfail",
            unit=Unit.SECONDS,
            orange_from=0.25,
        ),
        Panel(
            "Detectors: looks that failed",
            "Worry from the first: while it grows no hang is found.",
            (Query("sum(rate(instep_detector_tick_errors_total[$__rate_interval]))", "failed"),),
            docs=f"{ALERTS}#instepdetectorsfail",
            unit=Unit.PER_SECOND,
        ),
    ),
)

FLEET = Board(
    uid="instep-fleet",
    title="Instep / Fleet",
    description="Every job and node that Instep sees: what needs somebody now, and whether the server can be trusted.",
    rows=(NOW, INCIDENTS, NODES, GPUS, HEALTH),
)
