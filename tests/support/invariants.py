"""What must hold of the records at every moment, as SQL that finds what breaks it."""

from sqlalchemy import delete, text
from sqlalchemy.orm import Session

from glue.records.database import Database
from glue.records.tables import Base

# Terminal states never change: a trigger writes down every row that leaves one.
_WATCH_TERMINAL_STATES = """
CREATE TABLE resurrection (what text, id text, was text, became text);
CREATE FUNCTION watch_terminal() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE was text; became text;
BEGIN
  was := coalesce(to_jsonb(OLD)->>'state', to_jsonb(OLD)->>'status');
  became := coalesce(to_jsonb(NEW)->>'state', to_jsonb(NEW)->>'status');
  IF was IN ('succeeded', 'failed', 'cancelled') AND was <> became THEN
    INSERT INTO resurrection VALUES (TG_TABLE_NAME, OLD.id, was, became);
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER watch_job BEFORE UPDATE ON job FOR EACH ROW EXECUTE FUNCTION watch_terminal();
CREATE TRIGGER watch_stage BEFORE UPDATE ON stage FOR EACH ROW EXECUTE FUNCTION watch_terminal();
CREATE TRIGGER watch_unit BEFORE UPDATE ON unit FOR EACH ROW EXECUTE FUNCTION watch_terminal();
"""

RULES = {
    "I1 a job that has not ended has a unit that moves it on": """
        SELECT id FROM job WHERE status IN ('queued', 'running', 'paused') AND NOT EXISTS
            (SELECT FROM unit WHERE job_id = job.id AND state IN ('ready', 'leased'))""",
    "I1 a job that is being cancelled waits for a lease": """
        SELECT id FROM job WHERE status = 'cancelling' AND NOT EXISTS
            (SELECT FROM unit WHERE job_id = job.id AND state = 'leased')""",
    "I1 a stage that runs has a unit that moves it on": """
        SELECT id FROM stage WHERE state = 'running' AND NOT EXISTS
            (SELECT FROM unit WHERE stage_id = stage.id AND state IN ('ready', 'leased'))""",
    "I2 the tokens of a unit's claims increase": """
        SELECT earlier.unit_id FROM attempt earlier JOIN attempt later USING (unit_id)
        WHERE earlier.token < later.token AND earlier.started_at >= later.started_at""",
    "I2 a unit is leased exactly while one attempt is open": """
        SELECT coalesce(unit.id, attempt.unit_id)
        FROM (SELECT * FROM unit WHERE state = 'leased') unit
        FULL JOIN (SELECT * FROM attempt WHERE ended_at IS NULL) attempt
            ON attempt.unit_id = unit.id AND attempt.token = unit.lease_token
        WHERE unit.id IS NULL OR attempt.token IS NULL""",
    "I2 an attempt has ended before the next one starts": """
        SELECT earlier.unit_id FROM attempt earlier JOIN attempt later USING (unit_id)
        WHERE earlier.token < later.token AND (earlier.ended_at IS NULL OR earlier.ended_at > later.started_at)""",
    "I3 no event is written under a token that is no longer the latest": """
        SELECT event.unit_id FROM event JOIN attempt later USING (unit_id)
        WHERE event.token < later.token AND event.at > later.started_at""",
    "I3 no artifact is written under a token that is no longer the latest": """
        SELECT artifact.id FROM artifact JOIN attempt later USING (unit_id)
        WHERE artifact.token < later.token AND artifact.created_at > later.started_at""",
    "I3 no score is written under a token that is no longer the latest": """
        SELECT score.key FROM score JOIN attempt mine USING (token) JOIN attempt later USING (unit_id)
        WHERE mine.token < later.token AND score.created_at > later.started_at""",
    "I4 a unit is claimed only when the stages before its own have succeeded": """
        SELECT unit.id FROM attempt JOIN unit ON unit.id = attempt.unit_id JOIN stage ON stage.id = unit.stage_id
        JOIN (VALUES ('search', 'resolve'), ('join', 'search')) AS chain (name, needed) ON chain.name = stage.name
        LEFT JOIN stage earlier ON earlier.job_id = stage.job_id AND earlier.name = chain.needed
        WHERE earlier.state IS DISTINCT FROM 'succeeded' OR earlier.finished_at > attempt.started_at""",
    "I5 a unit succeeds once, and is never started again": """
        SELECT unit.id FROM unit JOIN attempt ON attempt.unit_id = unit.id
        WHERE unit.state = 'succeeded' GROUP BY unit.id
        HAVING count(*) FILTER (WHERE attempt.outcome = 'succeeded') <> 1
            OR max(attempt.started_at) > unit.finished_at""",
    "I6 a stage has one event of success if it succeeded, and none otherwise": """
        SELECT stage.id FROM stage LEFT JOIN event ON event.job_id = stage.job_id AND event.stage = stage.name
            AND event.family = stage.family AND event.type = 'stage.succeeded'
        GROUP BY stage.id HAVING count(event.seq) <> (stage.state = 'succeeded')::int""",
    "I6 a job's last event is its only event of an end": """
        SELECT job.id FROM job LEFT JOIN event ON event.job_id = job.id
            AND event.type IN ('job.succeeded', 'job.failed', 'job.cancelled')
        GROUP BY job.id HAVING count(event.seq) <> (job.finished_at IS NOT NULL)::int
            OR (job.finished_at IS NOT NULL AND max(event.seq) <> job.event_seq)
            OR (job.finished_at IS NOT NULL AND max(event.type) <> 'job.' || job.status)""",
    "I6 events are numbered from 1 without gaps": """
        SELECT job.id FROM job LEFT JOIN event ON event.job_id = job.id GROUP BY job.id
        HAVING count(event.seq) <> job.event_seq OR max(event.seq) <> job.event_seq""",
    "I6 what has ended stays ended": "SELECT id FROM resurrection",
    "I6 a succeeded job has only stages that succeeded": """
        SELECT job.id FROM job JOIN stage ON stage.job_id = job.id
        WHERE job.status = 'succeeded' AND stage.state <> 'succeeded'""",
    "I6 nothing of a job that has ended goes on": """
        SELECT job.id FROM job JOIN unit ON unit.job_id = job.id WHERE job.finished_at IS NOT NULL
            AND (unit.state = 'ready' OR unit.state = 'leased' AND job.status <> 'failed')
        UNION SELECT job.id FROM job JOIN stage ON stage.job_id = job.id
        WHERE job.finished_at IS NOT NULL AND stage.finished_at IS NULL""",
    "I7 nothing is claimed after a cancel was requested": """
        SELECT unit.id FROM attempt JOIN unit ON unit.id = attempt.unit_id JOIN job ON job.id = unit.job_id
        WHERE attempt.started_at > job.cancel_requested_at""",
    "I7 nothing waits to be claimed after a cancel was requested": """
        SELECT unit.id FROM unit JOIN job ON job.id = unit.job_id
        WHERE job.cancel_requested_at IS NOT NULL AND unit.state = 'ready'""",
    "I8 crashes and failures stay within their budgets": """
        SELECT id FROM unit WHERE crashes > max_crashes OR attempts - crashes > max_attempts""",
    "I8 every attempt but the released ones is counted": """
        SELECT unit.id FROM unit LEFT JOIN attempt ON attempt.unit_id = unit.id GROUP BY unit.id
        HAVING unit.attempts <> count(attempt.token) FILTER (WHERE attempt.outcome IS DISTINCT FROM 'released')
            OR (unit.state <> 'cancelled'
                AND unit.crashes <> count(attempt.token) FILTER (WHERE attempt.outcome = 'lost'))""",
}

_ALL = text(
    " UNION ALL ".join(
        f"SELECT $rule${rule}$rule$ AS rule, array_agg(id) AS ids FROM ({query}) AS found (id) HAVING count(*) > 0"
        for rule, query in RULES.items()
    ).replace(":", "\\:")
)


def watch(session: Session) -> None:
    """Prepare a database for `violations`."""
    session.connection().exec_driver_sql(_WATCH_TERMINAL_STATES)


def violations(session: Session) -> dict[str, list[str]]:
    """The rules that are broken, with the ids of the rows that break them."""
    return {row.rule: row.ids for row in session.execute(_ALL)}


def clear(database: Database) -> None:
    """Empty every table."""
    with database.transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
        session.execute(text("DELETE FROM resurrection"))
