"""The whole final schema, to be read. A change here needs a migration."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from llmkit.persistence import migrate
from llmkit.persistence.addresses import DatabaseAddress, create_database_file
from llmkit.persistence.compiled_statements import sqlite_statements
from scripts import compile_statements as compiled_ahead

COLUMNS = {
    "prices": """
        endpoint            text     not null
        model               text     not null
        valid_from_utc      time     not null
        above_input_tokens  integer  not null
        source              text     not null
        is_own              boolean  not null
        input_usd           text     not null
        output_usd          text     not null
        cached_input_usd    text
        reasoning_usd       text
    """,
    "llm_costs_daily": """
        workspace_id          text    not null
        day_utc               text    not null
        endpoint              text    not null
        model                 text    not null
        stage                 text    not null
        requests              bigint  not null
        uncounted_requests    bigint  not null
        unpriced_requests     bigint  not null
        billed_input_tokens   bigint
        billed_output_tokens  bigint
        cost_usd              text
        served_calls          bigint  not null
        served_input_tokens   bigint
        served_output_tokens  bigint
        is_closed             boolean not null
    """,
    "llm_runs": """
        id                  uuid     not null
        workspace_id        text     not null
        pipeline_run_id     text
        stage               text
        status              text     not null
        owner               text     not null
        created_at_utc      time     not null
        heartbeat_at_utc    time     not null
        finished_at_utc     time
        requested_route     text
        provider            text
        model               text
        response_model      text
        profile             text     not null
        epoch               integer  not null
        idempotency_key     text
        flight_key          text
        prompt_sha256       text     not null
        served_from         text
        source_run_id       uuid
        finish_reason       text
        input_tokens        bigint
        output_tokens       bigint
        total_tokens        bigint
        cached_input_tokens bigint
        reasoning_tokens    bigint
        usage_estimated     boolean
        cost_usd            float
        latency_ms          float
        attempts            integer
        error_code          text
        error_message       text
        request_preview     text     not null
        response_preview    text
        metadata_json       text     not null
        plan_json           text
        result_json         text
        logprob_mean        float
        logprob_min         float
        first_token_ms      float
    """,
    "llm_attempts": """
        run_id              uuid     not null
        number              integer  not null
        workspace_id        text     not null
        provider            text     not null
        model               text     not null
        status              text     not null
        started_at_utc      time     not null
        latency_ms          float    not null
        params_sha256       text
        schema_sha256       text
        input_tokens        bigint
        output_tokens       bigint
        total_tokens        bigint
        cached_input_tokens bigint
        reasoning_tokens    bigint
        usage_estimated     boolean  not null
        finish_reason       text
        response_model      text
        model_digest        text
        cost_usd            float
        status_code         integer
        error_code          text
        error_message       text
        first_token_ms      float
        host                text
    """,
    "eval_runs": """
        id                  uuid     not null
        workspace_id        text     not null
        name                text     not null
        task_name           text     not null
        task_sha256         text     not null
        dataset_sha256      text     not null
        created_at_utc      time     not null
        spec_json           text     not null
    """,
    "eval_results": """
        eval_run_id         uuid     not null
        route               text     not null
        sample_id           text     not null
        epoch               integer  not null
        status              text     not null
        finished_at_utc     time     not null
        pipeline_run_id     text     not null
        served_route        text
        output_mode         text
        valid_first_try     boolean
        outcome             text
        schema_sha256       text
        sample_group        text
        input_tokens        bigint
        output_tokens       bigint
        latency_ms          float
        requests            integer  not null
        error_code          text
        error_message       text
        scores_json         text     not null
        scorer_errors_json  text     not null
        score_details_json  text     not null
        warnings_json       text     not null
        output_json         text
        answer_json         text
        content_digest      text
        logprob_mean        float
        logprob_min         float
        field_logprobs_json text
    """,
    "llm_leases": """
        id                  uuid     not null
        pool                text     not null
        owner               text     not null
        amount              bigint   not null
        settled             bigint   not null
        expires_at_utc      time
    """,
    "llm_pauses": """
        endpoint            text     not null
        model               text     not null
        until_utc           time     not null
    """,
    "shared_calls": """
        id                  uuid     not null
        created_at_utc      time     not null
        is_stopped          boolean  not null
    """,
    "eval_digests": """
        eval_run_id         uuid     not null
        host                text     not null
        provider            text     not null
        model               text     not null
        digest              text     not null
        seen_at_utc         time     not null
    """,
}
KEYS = {
    "prices": "endpoint, model, valid_from_utc, above_input_tokens, source",
    "llm_costs_daily": "workspace_id, day_utc, endpoint, model, stage",
    "llm_runs": "id",
    "llm_attempts": "run_id, number -> llm_runs(id), deleted with it",
    "eval_runs": "id",
    "eval_results": "eval_run_id, route, sample_id, epoch -> eval_runs(id), deleted with it",
    "llm_leases": "id",
    "llm_pauses": "endpoint, model",
    "shared_calls": "id",
    "eval_digests": "eval_run_id, host, provider, model -> eval_runs(id), deleted with it",
}
INDEXES = {
    "ix_llm_runs_workspace_id_created_at_utc": "llm_runs (workspace_id, created_at_utc)",
    "ix_llm_runs_pipeline_run_id": "llm_runs (pipeline_run_id)",
    "ix_llm_runs_prompt_sha256": "llm_runs (prompt_sha256)",
    "ix_llm_runs_under_way": "llm_runs (workspace_id, pipeline_run_id) WHERE status = 'STARTED'",
    "uq_llm_runs_idempotency_key": "unique llm_runs (workspace_id, idempotency_key) "
    "WHERE idempotency_key IS NOT NULL AND status IN ('STARTED', 'SUCCEEDED')",
    "uq_llm_runs_flight_key": "unique llm_runs (workspace_id, flight_key) "
    "WHERE flight_key IS NOT NULL AND status = 'STARTED'",
    "ix_llm_leases_pool_expires_at_utc": "llm_leases (pool, expires_at_utc)",
    "uq_eval_runs_workspace_id_name": "unique eval_runs (workspace_id, name)",
}
CHECKS = {
    "ck_llm_runs_status": "STARTED SUCCEEDED FAILED",
    "ck_llm_runs_served_from": "provider cache replay shared",
    "ck_llm_runs_finish_reason": "stop length tool_calls content_filter unknown",
    "ck_llm_attempts_status": "SUCCEEDED FAILED CANCELLED",
    "ck_llm_attempts_finish_reason": "stop length tool_calls content_filter unknown",
    "ck_eval_results_status": "SUCCEEDED FAILED SCORER_FAILED",
}
# What each database calls our kinds.
KINDS = {
    "CHAR(32)": "uuid",
    "UUID": "uuid",
    "VARCHAR": "text",
    "TEXT": "text",
    "DATETIME": "time",
    "TIMESTAMP": "time",
    "INTEGER": "integer",
    "BIGINT": "bigint",
    "BOOLEAN": "boolean",
    "FLOAT": "float",
    "DOUBLE PRECISION": "float",
}


@pytest.fixture
def inspector(database_url: str):
    engine = create_engine(DatabaseAddress.parse(database_url).url)
    yield inspect(engine)
    engine.dispose()


def test_tables(inspector) -> None:
    assert set(inspector.get_table_names()) == {*COLUMNS, "alembic_version"}


@pytest.mark.parametrize("table", COLUMNS)
def test_columns(inspector, table: str) -> None:
    found = [
        " ".join([column["name"], KINDS[str(column["type"])], "" if column["nullable"] else "not null"]).split()
        for column in inspector.get_columns(table)
    ]
    assert found == [line.split() for line in COLUMNS[table].strip().splitlines()]


@pytest.mark.parametrize("table", KEYS)
def test_keys(inspector, table: str) -> None:
    described = ", ".join(inspector.get_pk_constraint(table)["constrained_columns"])
    for key in inspector.get_foreign_keys(table):
        assert key["options"].get("ondelete") == "CASCADE"
        described += f" -> {key['referred_table']}({', '.join(key['referred_columns'])}), deleted with it"
    assert described == KEYS[table]


def test_indexes(inspector) -> None:
    found = {
        index["name"]: f"{'unique ' if index['unique'] else ''}{table} ({', '.join(index['column_names'])})"
        for table in COLUMNS
        for index in inspector.get_indexes(table)
    }
    for table in COLUMNS:
        for unique in inspector.get_unique_constraints(table):
            found[unique["name"]] = f"unique {table} ({', '.join(unique['column_names'])})"
    assert found == {name: text.partition(" WHERE ")[0] for name, text in INDEXES.items()}


def test_checks(inspector) -> None:
    found = {check["name"]: check["sqltext"] for table in COLUMNS for check in inspector.get_check_constraints(table)}
    assert set(found) == set(CHECKS)
    for name, values in CHECKS.items():
        assert found[name].count("'") == 2 * len(values.split())
        assert all(f"'{value}'" in found[name] for value in values.split())


def test_partial_indexes_are_worded_so(sqlite_url: str) -> None:
    """SQLite keeps the words; that both databases mean the same is shown by the contract of the repositories."""
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql LIKE '% WHERE %'").fetchall()
    assert {name: sql.partition(" WHERE ")[2] for name, sql in rows} == {
        name: text.partition(" WHERE ")[2] for name, text in INDEXES.items() if " WHERE " in text
    }


@pytest.mark.parametrize(
    ("column", "value", "index"),
    [
        ("idempotency_key", "k", "uq_llm_runs_idempotency_key"),
        ("flight_key", "f", "uq_llm_runs_flight_key"),
    ],
)
def test_keyed_reads_use_their_index(sqlite_url: str, column: str, value: str, index: str) -> None:
    sql = getattr(sqlite_statements(), f"by_{column}").sql
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", ("lab", value)).fetchall()
    assert [row[-1] for row in plan] == [f"SEARCH llm_runs USING INDEX {index} (workspace_id=? AND {column}=?)"]


@pytest.mark.parametrize("name", compiled_ahead.FILES)
def test_what_is_compiled_ahead_follows_the_tables_and_the_migrations(name: str) -> None:
    kept = (compiled_ahead.FOLDER / name).read_text("utf-8")
    assert kept == compiled_ahead.FILES[name](), "run python -m scripts.compile_statements"


def test_a_new_file_is_what_the_migrations_make(new_sqlite_url: str, tmp_path: Path) -> None:
    migrated = tmp_path / "migrated.db"
    create_database_file(migrated)
    migrate._migrate(DatabaseAddress.of_file(migrated), "head")
    migrate.upgrade(new_sqlite_url)
    assert "alembic" not in open_and_list_modules(tmp_path / "other.db")
    found = [everything_in(path) for path in (migrated, Path(new_sqlite_url.removeprefix("sqlite:///")))]
    assert found[0] == found[1]


def everything_in(path: Path) -> list[object]:
    """Tables and indexes, the revision, and what the file was told when it was new."""
    with closing(sqlite3.connect(path)) as connection:
        queries = ("SELECT name, sql FROM sqlite_master ORDER BY name", "SELECT * FROM alembic_version")
        pragmas = ("page_size", "journal_mode", "auto_vacuum", "encoding")
        found: list[object] = [connection.execute(query).fetchall() for query in queries]
        return found + [connection.execute(f"PRAGMA {pragma}").fetchone() for pragma in pragmas]


def open_and_list_modules(path: Path) -> set[str]:
    """The modules of a process after it has made a new database."""
    code = (
        f"import sys; from llmkit.persistence.migrate import upgrade; upgrade('sqlite:///{path}'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
