"""The tables of ucd-ray, in one database with Optuna's own."""

from __future__ import annotations

import sqlalchemy as sa

tables = sa.MetaData()

study_table = sa.Table(
    "ucd_study",
    tables,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("driver", sa.Text),  # JSON: host, pid, started; null when nobody drives it
    sa.Column("heartbeat", sa.Float),
    sa.Column("about", sa.Text, nullable=False, server_default="{}"),  # JSON: classes, run times
)

step_table = sa.Table(
    "ucd_step",
    tables,
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("replicate", sa.Integer, primary_key=True),  # of the trial; 0: its first or only one
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("cached", sa.Boolean, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("iterations", sa.Integer, nullable=False),
    sa.Column("entry", sa.String(32)),  # of the step cache: the network after this step
    sa.Column(
        "environment", sa.String(16)
    ),  # what trained it; null: by a version that did not tell
)

environment_table = sa.Table(
    "ucd_environment",
    tables,
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("digest", sa.String(16), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),  # JSON
)

metric_table = sa.Table(
    "ucd_metric",
    tables,
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("replicate", sa.Integer, primary_key=True),  # of the trial; 0: its first or only one
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("images", sa.String(10), primary_key=True),  # select or val
    sa.Column("metric", sa.String(40), primary_key=True),
    sa.Column("value", sa.Float),  # percent; null: no class with truth pixels
)

class_table = sa.Table(
    "ucd_class",
    tables,
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("replicate", sa.Integer, primary_key=True),  # of the trial; 0: its first or only one
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("images", sa.String(10), primary_key=True),
    sa.Column("class_id", sa.Integer, primary_key=True),
    sa.Column("iou", sa.Float),
    sa.Column("forgetting", sa.Float),
)

confusion_table = sa.Table(
    "ucd_confusion",
    tables,
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("replicate", sa.Integer, primary_key=True),  # of the trial; 0: its first or only one
    sa.Column("step", sa.Integer, primary_key=True),  # from 1 on: at step 0 nothing is old
    sa.Column("counts", sa.LargeBinary, nullable=False),  # on val; see ucd_ray.confusion
)

command_table = sa.Table(
    "ucd_command",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),  # in the order they were given
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),  # pause, resume, stop, cancel, edit, enqueue
    sa.Column("body", sa.Text, nullable=False),  # JSON
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("done", sa.Float),  # when the driver carried it out; null: not yet
    sa.Column("outcome", sa.Text),
)

event_table = sa.Table(
    "ucd_event",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),  # in the order they happened
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), nullable=False),
    sa.Column("number", sa.Integer),  # of the trial; null: of the study
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("text", sa.Text, nullable=False),  # for people
    sa.Column("data", sa.Text),  # JSON: the same for programs; null: nothing beyond the text
    sa.Index("ucd_event_of_study", "study", "id"),
)

hold_table = sa.Table(
    "ucd_hold",
    tables,
    sa.Column("cluster", sa.String(100), primary_key=True),  # address
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("slot", sa.String(40), primary_key=True),  # which of the study's gangs
    sa.Column("workers", sa.Integer, nullable=False),
    sa.Column("cpus", sa.Float, nullable=False),  # of one worker
    sa.Column("gpus", sa.Float, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("placed", sa.Boolean, nullable=False),  # its workers are up
)

ledger_table = sa.Table(
    "ucd_ledger",
    tables,
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # of the trial; -1: of the study
    sa.Column("kind", sa.String(20), primary_key=True),  # useful, pruned, failed, idle, saved
    sa.Column("cpu_seconds", sa.Float, nullable=False),
    sa.Column("gpu_seconds", sa.Float, nullable=False),
)

revision_table = sa.Table(
    "ucd_revision",
    tables,
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # 0: as it was created
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("changes", sa.Text, nullable=False),  # JSON: a sentence for each
    sa.Column("spec", sa.Text, nullable=False),  # from then on
)

taken_table = sa.Table(
    "ucd_taken",
    tables,
    sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
    sa.Column("source", sa.String(100), primary_key=True),  # another study; it may be gone by now
    sa.Column("number", sa.Integer, primary_key=True),  # of the trial there
    sa.Column("trial", sa.Text, nullable=False),  # JSON: state, values, params, curve
)
